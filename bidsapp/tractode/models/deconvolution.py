"""Non-negativity constrained deconvolution on the sphere: the iteration behind CSD, without tables or maps.

Tournier, Calamante & Connelly, NeuroImage 2007, doi:10.1016/j.neuroimage.2007.02.016; constants and starting point as in
MRtrix3 ``dwi2fod csd`` (Tournier et al. 2019, doi:10.1016/j.neuroimage.2019.116137). Departures: on a CPU the active sets
are found by compiled loops over a register full of voxels, first in single precision, then in float64 from where that
ended; elsewhere those of a tile are updated together by one matrix product. The least point is the same.

Derivative: the iteration ends at the least point of ``|Mf − s|² + λ|f|² + Σ min(hf, 0)²``. Where no amplitude ``hf`` is
exactly 0 the active set does not change with a small change of the signal, and the solution is that of one linear
system, whose derivative ``∂f/∂s = (MᵀM + λ + Σ_active hᵀh)⁻¹ Mᵀ`` is exact (implicit differentiation: no iteration is
unrolled, only the active set is kept). f is continuous and piecewise linear in s; where an amplitude is exactly 0 the
derivative does not exist and that of one side is given. Where 50 rounds do not settle the active set, it is that of the
last system. The response is held fixed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tractode.ops import least_squares, sh_products, sphere
from tractode.ops import spherical_harmonics as sh

TILE = 4096  # 300 amplitudes a voxel: some 10 MB
_TASK = 512  # voxels that one thread takes at a time
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
    device: str = "cpu"

    @cached_property
    def forward(self) -> Float[Tensor, "m l"]:
        """FOD coefficients → signals."""
        factors = rotational_harmonics(self.response, self.order)[sh.degrees(self.order) // 2]
        return (sh.basis(self.directions, self.order) * factors).to(self.device, self.dtype)

    @cached_property
    def constraint(self) -> Float[Tensor, "h l"]:
        """FOD coefficients → weighted amplitudes that should not be negative."""
        axes = sphere.directions(_N_CONSTRAINTS, hemisphere=True)
        weight = _NEGATIVE_WEIGHT * float(self.response[0]) / _N_CONSTRAINTS
        return (weight * sh.basis(axes, self.order)).to(self.device, self.dtype)

    @cached_property
    def lower(self) -> Int[Tensor, "2 q"]:
        """Rows and columns of the lower triangle: all that a Cholesky factor needs of a symmetric matrix."""
        n = sh.n_coefficients(self.order)
        return torch.tril_indices(n, n, device=self.device)

    @cached_property
    def normal(self) -> Float[Tensor, "l l"]:
        """``MᵀM`` with the minimum-norm term on its diagonal."""
        product = self.forward.mT @ self.forward
        return product + _NORM_WEIGHT * product[0, 0] * torch.eye(len(product)).to(product)

    @cached_property
    def penalties(self) -> Float[Tensor, "h q"]:
        """The lower triangle of the outer product of each constraint's row with itself."""
        return self.constraint[:, self.lower[0]] * self.constraint[:, self.lower[1]]

    @cached_property
    def tables(self) -> tuple[Any, ...]:
        """What the compiled rounds need: the packed system as a sparse product of harmonic sums, and the amplitudes' columns."""
        n, h = self.constraint.shape[1], len(self.constraint)
        normal, first, which, weights = sh_products.packed_system(self.normal, self.order)
        weight = _NEGATIVE_WEIGHT * float(self.response[0]) / _N_CONSTRAINTS
        squares = weight**2 * sh.basis(sphere.directions(_N_CONSTRAINTS, hemisphere=True), 2 * self.order)
        n_sums = squares.shape[1] + (-squares.shape[1]) % 16
        harmonics = squares.new_zeros(h, n_sums)
        harmonics[:, : squares.shape[1]] = squares
        columns = self.constraint.new_zeros(n, h + (-h) % 8)
        columns[:, :h] = self.constraint.mT
        numbers = (normal, weights, harmonics.ravel(), columns.ravel())
        system, gaunt, sums, amplitudes = (values.to(self.dtype).numpy() for values in numbers)
        return system, first.numpy(), which.numpy(), gaunt, sums, n_sums, amplitudes, _MAX_ITERATIONS

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
        return whole.to(self.device, self.dtype)

    @cached_property
    def rough(self) -> Deconvolution:
        """The same in single precision."""
        return self if self.dtype == torch.float32 else replace(self, dtype=torch.float32)

    def fitted(self, signal: Float[Tensor, "t m"]) -> tuple[Float[Tensor, "t l"], Bool[Tensor, "t h"]]:
        """Coefficients, and the directions held at zero."""
        target = signal @ self.forward
        if signal.device.type != "cpu":
            active = self.active_set(signal)
            return self.solve(target, active), active
        active = self.rough.negative_at_start(signal.to(torch.float32)).to(torch.uint8)
        if self.dtype == torch.float64:
            self.rough.settled(target.to(torch.float32), active)
        return self.settled(target, active), active.bool()

    def settled(self, target: Float[Tensor, "t l"], active: UInt8[Tensor, "t h"]) -> Float[Tensor, "t l"]:
        """Coefficients by the compiled rounds, which leave their active sets in ``active``."""
        from tractode.models.kernels.active_set import settle  # numba takes part of a second to import

        out, rounds = torch.empty_like(target), torch.empty(len(target), dtype=torch.int32)
        every = (target, active, out, rounds)
        parts = [[x.numpy() for x in part] for part in zip(*(x.split(_TASK) for x in every), strict=True)]
        n_threads = min(torch.get_num_threads(), len(parts))
        if n_threads < 2:
            for one, two, *results in parts:
                settle(one, two, *self.tables, *results)
            return out
        tables = self.tables
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(lambda part: settle(part[0], part[1], *tables, *part[2:]), parts))
        return out

    def negative_at_start(self, signal: Float[Tensor, "t m"]) -> Bool[Tensor, "t h"]:
        """Where the first, unconstrained deconvolution is negative."""
        kept = min(sh.n_coefficients(_INITIAL_ORDER), len(self.start))
        return signal @ self.start[:kept].mT @ self.constraint[:, :kept].mT < 0

    def active_set(self, signal: Float[Tensor, "t m"]) -> Bool[Tensor, "t h"]:
        """The directions held at zero once the iteration stands still (at most 50 rounds), by matrix products."""
        target = signal @ self.forward
        active = self.negative_at_start(signal)
        moving = torch.arange(len(signal), device=signal.device)
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
        fod, active = operator.fitted(signal)
        ctx.save_for_backward(active)
        ctx.operator = operator
        return fod

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

    In single ``precision`` they come faster and differ by about 1e-6 of the largest.
    """
    operator = Deconvolution(
        directions.to("cpu", torch.float64), response.to("cpu", torch.float64), order, precision, str(signal.device)
    )
    return least_squares.in_tiles(lambda tile: operator(tile.to(precision)).to(signal.dtype), signal, TILE)
