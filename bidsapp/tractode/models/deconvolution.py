"""Non-negativity constrained deconvolution on the sphere: the iteration behind CSD, without tables or maps.

Tournier, Calamante & Connelly, NeuroImage 2007, doi:10.1016/j.neuroimage.2007.02.016; constants and starting point as in
MRtrix3 ``dwi2fod csd`` (Tournier et al. 2019, doi:10.1016/j.neuroimage.2019.116137). Departures: the active sets of a
tile of voxels are updated together by one matrix product, in float64.

Derivative: the iteration ends at the least point of ``|Mf − s|² + λ|f|² + Σ min(hf, 0)²``. Where no amplitude ``hf`` is
exactly 0 the active set does not change with a small change of the signal, and the solution is that of one linear
system, whose derivative ``∂f/∂s = (MᵀM + λ + Σ_active hᵀh)⁻¹ Mᵀ`` is exact (implicit differentiation: no iteration is
unrolled, only the active set is kept). f is continuous and piecewise linear in s; where an amplitude is exactly 0 the
derivative does not exist and that of one side is given. Where 50 rounds do not settle the active set, it is that of the
last system. The response is held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.ops import least_squares, sphere
from tractode.ops import spherical_harmonics as sh

TILE = 1024  # 300 amplitudes and a 45 × 45 system a voxel, in float64: some 50 MB
_N_CONSTRAINTS = 300
_NEGATIVE_WEIGHT = 50.0
_NORM_WEIGHT = 0.0002
_MAX_ITERATIONS = 50
_INITIAL_ORDER = 4


@dataclass(frozen=True, eq=False)
class Deconvolution:
    """What the iteration needs of a table and a response, prepared once in float64 and used in ``dtype``."""

    directions: Float[Tensor, "m 3"]
    response: Float[Tensor, " r"]
    order: int
    dtype: torch.dtype = torch.float64

    @cached_property
    def forward(self) -> Float[Tensor, "m l"]:
        """FOD coefficients → signals."""
        factors = rotational_harmonics(self.response, self.order)[sh.degrees(self.order) // 2]
        return (sh.basis(self.directions, self.order) * factors).to(self.dtype)

    @cached_property
    def constraint(self) -> Float[Tensor, "h l"]:
        """FOD coefficients → weighted amplitudes that should not be negative."""
        axes = sphere.directions(_N_CONSTRAINTS, hemisphere=True)
        weight = _NEGATIVE_WEIGHT * float(self.response[0]) / _N_CONSTRAINTS
        return (weight * sh.basis(axes, self.order)).to(self.dtype)

    @cached_property
    def lower(self) -> Int[Tensor, "2 q"]:
        """Rows and columns of the lower triangle: all that a Cholesky factor needs of a symmetric matrix."""
        n = sh.n_coefficients(self.order)
        return torch.tril_indices(n, n)

    @cached_property
    def normal(self) -> Float[Tensor, "l l"]:
        """``MᵀM`` with the minimum-norm term on its diagonal."""
        product = self.forward.mT @ self.forward
        return product + _NORM_WEIGHT * product[0, 0] * torch.eye(len(product), dtype=product.dtype)

    @cached_property
    def penalties(self) -> Float[Tensor, "h q"]:
        """The lower triangle of the outer product of each constraint's row with itself."""
        return self.constraint[:, self.lower[0]] * self.constraint[:, self.lower[1]]

    @cached_property
    def start(self) -> Float[Tensor, "l m"]:
        """Signals → coefficients of degrees 0–4 (as far as the directions allow) by unconstrained deconvolution."""
        order = min(self.order, 2 * (len(self.response) - 1), supported_order(len(self.directions)))
        damped = sh.basis(self.directions, order)
        damped.diagonal().add_(1e-2)
        inverse = torch.linalg.pinv(damped) / rotational_harmonics(self.response, order)[sh.degrees(order) // 2, None]
        kept = min(len(inverse), sh.n_coefficients(_INITIAL_ORDER))
        whole = inverse.new_zeros(sh.n_coefficients(self.order), len(self.directions))
        whole[:kept] = inverse[:kept]
        return whole.to(self.dtype)

    def active_set(self, signal: Float[Tensor, "t m"]) -> Bool[Tensor, "t h"]:
        """The directions held at zero once the iteration stands still (at most 50 rounds)."""
        target = signal @ self.forward
        amplitudes = signal @ self.start.mT @ self.constraint.mT
        active = amplitudes < 0
        moving = torch.arange(len(signal))
        for _ in range(_MAX_ITERATIONS - 1):
            fod = self.solve(target[moving], active[moving])
            updated = fod @ self.constraint.mT < 0
            changed = (updated != active[moving]).any(-1)
            active[moving] = updated
            moving = moving[changed]
            if not len(moving):
                break
        return active

    def solve(self, target: Float[Tensor, "t l"], active: Bool[Tensor, "t h"]) -> Float[Tensor, "t l"]:
        """``(MᵀM + λ + Σ_active hᵀh) f = Mᵀs``."""
        system = target.new_zeros(len(target), target.shape[-1], target.shape[-1])
        system[:, self.lower[0], self.lower[1]] = torch.addmm(
            self.normal[self.lower[0], self.lower[1]], active.to(self.penalties), self.penalties
        )
        return torch.cholesky_solve(target[..., None], torch.linalg.cholesky(system))[..., 0]

    def __call__(self, signal: Float[Tensor, "t m"]) -> Float[Tensor, "t l"]:
        return _Constrained.apply(signal, self)


class _Constrained(torch.autograd.Function):
    """A tile's coefficients as a function of its signals; one byte a voxel and constraint is kept for the derivative."""

    @staticmethod
    def forward(ctx: Any, signal: Float[Tensor, "t m"], operator: Deconvolution) -> Float[Tensor, "t l"]:  # type: ignore[override]
        active = operator.active_set(signal)
        ctx.save_for_backward(active)
        ctx.operator = operator
        return operator.solve(signal @ operator.forward, active)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "t l"]) -> tuple[Float[Tensor, "t m"], None]:  # type: ignore[override]
        (active,) = ctx.saved_tensors
        # The system is symmetric, so the same solve serves its transpose.
        return ctx.operator.solve(grad, active) @ ctx.operator.forward.mT, None


def supported_order(n_directions: int) -> int:
    """The largest even order with no more coefficients than directions."""
    order = 0
    while sh.n_coefficients(order + 2) <= n_directions:
        order += 2
    return order


def rotational_harmonics(response: Float[Tensor, " r"], order: int) -> Float[Tensor, " r2"]:
    """Factors that take each even degree of an FOD to that of the signal; 0 beyond the response's own order.

    A response is the signal of a delta function along z: its zonal coefficients divided by the delta's.
    """
    delta = sh.zonal(2 * (len(response) - 1), response.new_ones(()))
    factors = response.new_zeros(order // 2 + 1)
    n = min(len(factors), len(response))
    factors[:n] = (response / delta)[:n]
    return factors


def constrained_deconvolution(
    signal: Float[Tensor, "v m"],
    directions: Float[Tensor, "m 3"],
    response: Float[Tensor, " r"],
    order: int,
    precision: torch.dtype = torch.float64,
) -> Float[Tensor, "v l"]:
    """FOD coefficients of one shell's signals, in tiles of fixed size; dtype and device follow the signal.

    In single ``precision`` they come one and a half times as fast and differ by about 1e-6 of the largest.
    """
    operator = Deconvolution(directions.to("cpu", torch.float64), response.to("cpu", torch.float64), order, precision)
    fod = least_squares.in_tiles(operator, signal.to("cpu", precision), TILE)
    return fod.to(signal)
