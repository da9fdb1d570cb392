"""Which voxels' diffusion signal would change a connection, and by how much: the derivative, from the ends of lines back.

Signal → coefficients (the model's fit) → lines (the tracker) → weights (`survival`) → expected number of lines that join
two regions. Every link has a derivative, so one backward pass gives what perturbing each voxel in turn would. No paper
does this for a tractogram; derivatives of a result with respect to its image as maps are those of Simonyan, Vedaldi &
Zisserman, *Deep inside convolutional networks*, ICLR Workshop 2014, arXiv:1312.6034. Coefficients are pulled back to
signals in the voxels that lines touch only.

Which of two peaks is followed and where a rule without derivative ends a line are piecewise constant: what a change of
the signal does by way of them is not in the map. `Sensitivity.abrupt` says how much of the connection hangs on such
ends; by default the tracker's cutoff, turn and mask are soft and few are left. It is a first-order answer, for small
changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import OrientationModel
from tractode.errors import InputDataError, ShapeError
from tractode.fields import GradientTable, Image, ImageGrid, ShField, Streamlines
from tractode.tracking.method import StreamlineTracker
from tractode.tracking.sampling import ComponentTable
from tractode.tracking.seeds import random_directions
from tractode.tracking.survival import SoftTermination, Survival, alive_at_ends, end_memberships, survival

BATCH = 2048
LEAST_SHARE = 1e-6  # of the strongest line: weaker ones are left out of the derivative


@dataclass(frozen=True, eq=False)
class Probe:
    """How a connection is asked for: lines of these seeds and initial directions, two regions, soft ends.

    ``regions`` has two channels of memberships in [0, 1] (see `tractode.tracking.survival.memberships`); ``seeds`` are
    in RAS+ mm, ``directions`` unit vectors.
    """

    tracker: StreamlineTracker
    seeds: Float[Tensor, "s 3"]
    directions: Float[Tensor, "s 3"]
    mask: Image
    regions: Image
    termination: SoftTermination

    def __post_init__(self) -> None:
        if self.regions.values.shape[0] != 2:
            raise ShapeError(f"A connection has two regions; got {self.regions.values.shape[0]}.")

    @classmethod
    def of(
        cls, tracker: StreamlineTracker, seeds: Tensor, mask: Image, regions: Image,
        termination: SoftTermination | None = None, generator: torch.Generator | None = None,
    ) -> Probe:  # fmt: skip
        """With random initial directions, and by default the tracker's own rules made soft (`SoftTermination.like`)."""
        source = torch.Generator().manual_seed(0) if generator is None else generator
        directions = random_directions(len(seeds), source).to(seeds)
        return cls(tracker, seeds, directions, mask, regions, termination or SoftTermination.like(tracker, mask))

    def chosen(self, index: Int[Tensor, " m"]) -> Probe:
        """The same of some of the seeds."""
        return Probe(
            self.tracker, self.seeds[index], self.directions[index], self.mask, self.regions, self.termination
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The derivative of a connection with respect to the signal.

    ``connection`` is the expected number of lines, of ``n_lines`` that contribute at all; ``abrupt`` is the share of it in
    lines that live until a rule without derivative ends them on one side or both: the larger it is, the less the
    derivative knows. ``voxels`` are ravelled indices of the grid, ``signal`` and ``gradient`` (connection per unit of
    signal) their rows.
    """

    grid: ImageGrid
    gtab: GradientTable
    connection: float
    n_lines: int
    abrupt: float
    voxels: Int[Tensor, " v"]
    signal: Float[Tensor, "v n"]
    gradient: Float[Tensor, "v n"]

    def predicted_change(self, signal: Float[Tensor, "n i j k"]) -> float:
        """The change of the connection, to first order, if the scan's signal were this one."""
        there = signal.flatten(1)[:, self.voxels].mT.to(self.gradient)
        return float((self.gradient * (there - self.signal)).sum())

    def strength(self) -> Float[Tensor, "i j k"]:
        """``‖s ∘ ∂C/∂s‖ / C``: how strongly the connection depends on the voxel, whatever the sign (1 = 1 % per 1 %)."""
        return self._dense((self.signal * self.gradient).norm(dim=-1))

    def of_signal(self) -> Float[Tensor, "i j k"]:
        """``∂ ln C / ∂ ln s``: the relative change per relative change of all the voxel's weighted signals alike."""
        weighted = ~self.gtab.is_b0
        return self._dense((self.signal * self.gradient)[:, weighted].sum(-1))

    def of_anisotropy_loss(self) -> Float[Tensor, "i j k"]:
        """The relative change if every shell's signals became their mean (1 = all of it), extrapolated from the start."""
        return self._dense((self.gradient * (levelled(self.signal, self.gtab) - self.signal)).sum(-1))

    def _dense(self, values: Float[Tensor, " v"]) -> Float[Tensor, "i j k"]:
        out = torch.zeros(self.grid.n_voxels, dtype=values.dtype, device=values.device)
        out[self.voxels] = values / max(self.connection, 1e-12)
        return out.reshape(self.grid.shape)


def levelled(signal: Float[Tensor, "v n"], gtab: GradientTable, share: float = 1.0) -> Float[Tensor, "v n"]:
    """Signals moved by a share of the way to the mean of their shell: anisotropy lost, mean attenuation kept."""
    out = signal.clone()
    for _, index in gtab.shells():
        at = index.to(signal.device)
        out[:, at] += share * (signal[:, at].mean(-1, keepdim=True) - signal[:, at])
    return out


def connection_weights(lines: Streamlines, weights: Survival, regions: Image) -> Float[Tensor, " s"]:
    """How much of each line joins the two regions, in either order."""
    first, second = end_memberships(lines, weights, regions)
    return weights.seed * (first[:, 0] * second[:, 1] + first[:, 1] * second[:, 0])


def soft_connection(field: ShField, probe: Probe) -> Float[Tensor, ""]:
    """The expected number of lines that join the probe's regions; differentiable in the field's coefficients."""
    return torch.stack([part.weight.sum() for part in _connections(field, probe)]).sum()


@dataclass(frozen=True, eq=False)
class _Part:
    """A batch's lines: how much each joins the regions, its seed, and how likely a hard rule finds one of its ends alive."""

    weight: Float[Tensor, " m"]
    seed: Int[Tensor, " m"]
    abrupt: Float[Tensor, " m"]


def _connections(field: ShField, probe: Probe) -> list[_Part]:
    tracker = probe.termination.loosened(probe.tracker)
    table = ComponentTable.of(field)
    found = []
    for lines in tracker.track(field, probe.seeds, probe.mask, directions=probe.directions):
        weights = survival(lines, table, probe.termination)
        hard = 1 - (1 - alive_at_ends(lines, weights).detach()).prod(-1)
        found.append(_Part(connection_weights(lines, weights, probe.regions), lines.per_streamline["seed"], hard))
    return found


@dataclass(frozen=True, eq=False)
class CoefficientGradient:
    """The connection, the lines that contribute, the abrupt share of it, and ``∂ connection / ∂ coefficients``."""

    connection: float
    n_lines: int
    abrupt: float
    values: Float[Tensor, "l i j k"]


def coefficient_gradient(field: ShField, probe: Probe) -> CoefficientGradient:
    """The derivative of a probe's connection with respect to the field.

    All seeds are tracked once without derivative; those whose lines join the regions are tracked again, in batches.
    """
    with torch.no_grad():
        parts = _connections(field, probe)
    weight, seed, hard = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "seed", "abrupt"))
    total = torch.zeros_like(field.coeffs)
    if not len(weight) or float(weight.max()) <= 0:
        return CoefficientGradient(0.0, 0, 0.0, total)
    joining = seed[weight > LEAST_SHARE * weight.max()].to(probe.seeds.device)
    for index in joining.split(BATCH):
        coeffs = field.coeffs.detach().clone().requires_grad_()
        with torch.enable_grad():
            soft_connection(ShField(field.grid, coeffs, field.order), probe.chosen(index)).backward()
        assert coeffs.grad is not None
        total += coeffs.grad
    connection = float(weight.sum())
    return CoefficientGradient(connection, len(joining), float((weight * hard).sum()) / connection, total)


def sensitivity(
    model: OrientationModel,
    signal: Float[Tensor, "n i j k"],
    gtab: GradientTable,
    field: ShField,
    probe: Probe,
) -> Sensitivity:
    """The derivative of the probe's connection with respect to the signal.

    ``field`` holds the model's coefficients for this signal (``to_sh`` of ``fit``); a model without derivative in the
    signal raises. `InputDataError` (E-SENS-EMPTY) where no line joins the regions.
    """
    pulled = coefficient_gradient(field, probe)
    if pulled.n_lines == 0:
        raise InputDataError(
            "No streamline joins the two regions",
            id="E-SENS-EMPTY",
            needed="at least one streamline whose ends lie in or near both",
            fix="look at where the regions lie in the scan, or give larger ones or more streamlines",
        )
    flat = pulled.values.flatten(1)
    voxels = (flat != 0).any(0).nonzero().ravel()
    rows = signal.flatten(1)[:, voxels.to(signal.device)].mT.to(flat).detach()
    with torch.enable_grad():
        leaf = rows.clone().requires_grad_()
        harmonics = model.to_sh(model.fit(leaf, gtab), field.order)
        (slope,) = torch.autograd.grad(harmonics, leaf, flat[:, voxels].mT.to(harmonics))
    return Sensitivity(
        field.grid, gtab, pulled.connection, pulled.n_lines, pulled.abrupt, voxels, rows, slope
    )  # fmt: skip
