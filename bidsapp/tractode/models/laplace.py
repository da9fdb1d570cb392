"""Laplace's approximation: the covariance of a fit from its derivative at the measured signal.

MacKay, *A practical Bayesian framework for backpropagation networks*, Neural Comput. 1992,
doi:10.1162/neco.1992.4.3.448; for diffusion tensors Koay, Chang, Pierpaoli & Basser, *Error propagation framework for
diffusion tensor imaging via diffusion tensor representations*, IEEE TMI 2007, doi:10.1109/TMI.2007.897415. With
``F = ∂params/∂signal`` of the fit (implicit where it iterates; the active set of a constrained one is held) and the
variances of the signals, the covariance is ``F diag(σ²) Fᵀ``. For least squares this is σ² times the inverse of the
Gauss–Newton Hessian, the covariance of Laplace's approximation. Departure: it is taken from the fit and not from the
curvature of a posterior, so that it also holds for weighted, constrained and overcomplete fits, whose Hessian would be
that of another estimate, or have no inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.contracts import SignalModel
from tractode.fields import GradientTable
from tractode.models.noise import Noise, explained, noise_of
from tractode.models.readouts import read
from tractode.ops import cone, sphere


@dataclass(frozen=True, eq=False)
class Covariance:
    """Covariance of the parameters, ``factor @ factorᵀ``: one column of the factor is the part of one volume's noise."""

    factor: Float[Tensor, "v p n"]
    noise: Noise

    @property
    def matrix(self) -> Float[Tensor, "v p p"]:
        """In products of the parameters' units."""
        return self.factor @ self.factor.mT

    @property
    def deviations(self) -> Float[Tensor, "v p"]:
        """Standard deviation of each parameter."""
        return self.factor.norm(dim=-1)


def laplace(
    model: SignalModel,
    signal: Float[Tensor, "v n"],
    params: Float[Tensor, "v p"],
    gtab: GradientTable,
    has_floor: bool = True,
) -> Covariance:
    """Covariance of a fit's parameters; one backward pass a parameter, and ``v × p × n`` numbers.

    ``params`` are those that the model fits to ``signal``; ``has_floor``: see `tractode.models.noise`.
    """
    signal, gtab = explained(model, signal, gtab)
    noise = noise_of(model, signal, gtab, params.double(), has_floor)
    slopes = _slopes(signal, lambda s: list(model.fit(s, gtab).unbind(-1)))
    return Covariance(torch.stack(slopes, dim=1) * noise.spread[:, None], noise)


@dataclass(frozen=True, eq=False)
class Linearised:
    """Of each readout: its value and standard deviation, and of each axis the half-angle of its cone.

    ``is_known`` is False where a derivative failed: nothing is said of that voxel's errors.
    """

    values: dict[str, Float[Tensor, "v _"]]
    deviations: dict[str, Float[Tensor, "v _"]]
    axes: dict[str, Float[Tensor, "v 3"]]
    cones: dict[str, Float[Tensor, "v 1"]]
    is_known: Bool[Tensor, " v"]


def linearised(
    model: SignalModel,
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    noise: Noise,
    level: float,
) -> Linearised:
    """The delta method for every readout of a fit: one backward pass for each column of a scalar map and two for each axis.

    Voxels without any signal have no error.
    """
    with torch.no_grad():
        at = read(model, model.fit(signal, gtab))
    frames = {name: sphere.frame_to_z(_filled(axis))[:, :2] for name, axis in at.axes.items()}

    def columns(variable: Float[Tensor, "v n"]) -> list[Tensor]:
        moved = read(model, model.fit(variable, gtab), at.axes)
        found = [column for values in moved.scalars.values() for column in values.unbind(-1)]
        for name, frame in frames.items():
            found += list((frame * moved.axes[name][:, None]).sum(-1).unbind(-1))
        return found

    is_dead = (signal == 0).all(-1, keepdim=True)
    found = [torch.where(is_dead, 0, slope * noise.spread) for slope in _slopes(signal, columns)]
    is_known = torch.stack([slope.isfinite().all(-1) for slope in found]).all(0)
    slopes = iter(found)
    deviations = {
        name: torch.stack([next(slopes).norm(dim=-1) for _ in range(values.shape[-1])], dim=-1)
        for name, values in at.scalars.items()
    }
    cones = {}
    for name in frames:
        pair = torch.stack([next(slopes), next(slopes)], dim=1)
        cones[name] = cone.of_normal(pair @ pair.mT, level)[:, None] * is_there(at.axes[name])
    return Linearised(at.scalars, deviations, at.axes, cones, is_known)


def is_there(axis: Float[Tensor, "v 3"]) -> Float[Tensor, "v 1"]:
    """1 where the voxel has the axis."""
    return (axis.norm(dim=-1, keepdim=True) > 0.5).to(axis)


def _filled(axis: Float[Tensor, "v 3"]) -> Float[Tensor, "v 3"]:
    """z for axes that a voxel does not have."""
    return torch.where(is_there(axis) > 0, axis, axis.new_tensor([0.0, 0.0, 1.0]))


def _slopes(signal: Float[Tensor, "v n"], function: Callable[[Tensor], list[Tensor]]) -> list[Float[Tensor, "v n"]]:
    """The derivative of each column with respect to its own voxel's signal (voxels do not know of each other)."""
    with torch.enable_grad():
        variable = signal.detach().requires_grad_()
        found = []
        for column in function(variable):
            (slope,) = (
                torch.autograd.grad(column.sum(), variable, retain_graph=True, allow_unused=True)
                if column.requires_grad
                else (None,)
            )
            found.append(torch.zeros_like(signal) if slope is None else slope)
    return found
