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

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.ops import sh_products, sphere
from tractode.ops import spherical_harmonics as sh

TILE = 1024  # of matrix products: 300 amplitudes and a 45 × 45 system a voxel, in float64: some 50 MB
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

    def fitted(
        self, signal: Float[Tensor, "v n"], volumes: Int[Tensor, " m"] | None = None, keep: bool = True
    ) -> tuple[Float[Tensor, "v l"], Bool[Tensor, "v2 h"]]:
        """Coefficients in the signal's dtype, and the directions held at zero (no rows unless ``keep``).

        ``volumes`` says which of the signals belong to the directions; all of them if it is not given.
        """
        if signal.device.type == "cpu":
            return self._by_compiled_rounds(signal, volumes, keep)
        whole = (signal if volumes is None else signal[:, volumes]).to(self.dtype)
        active = torch.cat([self.active_set(tile) for tile in whole.split(TILE)] or [whole.new_zeros(0).bool()])
        tiles = zip(whole.split(TILE), active.split(TILE), strict=True)
        fod = torch.cat([self.solve(tile @ self.forward, held) for tile, held in tiles])
        return fod.to(signal.dtype), active if keep else active[:0]

    def _by_compiled_rounds(
        self, signal: Float[Tensor, "v n"], volumes: Int[Tensor, " m"] | None, keep: bool
    ) -> tuple[Float[Tensor, "v l"], Bool[Tensor, "v2 h"]]:
        """See `fitted`. All arithmetic is in compiled loops, so that no library's threads come between and no result depends on their number."""
        from tractode.models.kernels.active_set import settle  # numba takes part of a second to import
        from tractode.models.kernels.rows import multiply

        rough, kept = self.rough, min(sh.n_coefficients(_INITIAL_ORDER), len(self.start))
        n, is_exact = signal.shape[1], self.dtype == torch.float64
        start, amplitudes = _columns(rough.start[:kept], n, volumes), _columns(rough.constraint[:, :kept])
        first, last = _columns(rough.forward.mT, n, volumes), _columns(self.forward.mT, n, volumes)
        rows = signal.detach().contiguous().numpy()
        out = torch.empty(len(rows), self.constraint.shape[1], dtype=signal.dtype)
        held = torch.empty(len(rows) if keep else 0, len(self.constraint), dtype=torch.bool)
        exact_tables, rough_tables, shape = self.tables, rough.tables, self.constraint.shape

        def task(begin: int) -> None:
            part = slice(begin, begin + _TASK)
            count = len(rows[part])
            guess, negative = np.empty((count, kept), np.float32), np.empty((count, shape[0]), np.float32)
            multiply(rows[part], start, guess)
            multiply(guess, amplitudes, negative)
            active, rounds = (negative < 0).view(np.uint8), np.empty(count, np.int32)
            target = np.empty((count, shape[1]), np.float32)
            multiply(rows[part], first, target)
            fod = np.empty_like(target)
            settle(target, active, *rough_tables, fod, rounds)
            if is_exact:
                target, fod = target.astype(np.float64), fod.astype(np.float64)
                multiply(rows[part], last, target)
                settle(target, active, *exact_tables, fod, rounds)
            out[part].numpy()[:] = fod
            if keep:
                held[part].numpy()[:] = active

        begins = range(0, len(rows), _TASK)
        with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(begins)))) as pool:
            list(pool.map(task, begins))
        return out, held

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

    def __call__(self, signal: Float[Tensor, "v n"], volumes: Int[Tensor, " m"] | None = None) -> Float[Tensor, "v l"]:
        """Coefficients; dtype and device follow the signal."""
        return _Constrained.apply(signal, self, volumes)


class _Constrained(torch.autograd.Function):
    """Coefficients as a function of the signals; one byte a voxel and constraint is kept for the derivative."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, operator: Deconvolution, volumes: Tensor | None) -> Tensor:  # type: ignore[override]
        fod, active = operator.fitted(signal, volumes, keep=ctx.needs_input_grad[0])
        ctx.save_for_backward(active)
        ctx.operator, ctx.volumes, ctx.n = operator, volumes, signal.shape[1]
        return fod

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (active,) = ctx.saved_tensors
        operator: Deconvolution = ctx.operator
        slope = grad.new_zeros(len(grad), ctx.n)
        columns = slice(None) if ctx.volumes is None else ctx.volumes
        for begin in range(0, len(grad), TILE):
            part = slice(begin, begin + TILE)
            # The system is symmetric, so the same solve serves its transpose.
            solved = operator.solve(grad[part].to(operator.dtype), active[part]) @ operator.forward.mT
            slope[part, columns] = solved.to(grad)
        return slope, None, None


def _columns(matrix: Float[Tensor, "r m"], n: int | None = None, volumes: Int[Tensor, " m"] | None = None) -> Any:
    """A matrix as `models.kernels.rows.multiply` takes it: by its columns, which are those of ``volumes`` among ``n`` of zeros."""
    n_rows, m = matrix.shape
    whole = matrix.new_zeros(m if n is None else n, n_rows + (-n_rows) % 8)
    whole[slice(None) if volumes is None else volumes, :n_rows] = matrix.mT
    return whole.ravel().numpy()


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
    signal: Float[Tensor, "v n"],
    directions: Float[Tensor, "m 3"],
    response: Float[Tensor, " r"],
    order: int,
    precision: torch.dtype = torch.float64,
    volumes: Int[Tensor, " m"] | None = None,
) -> Float[Tensor, "v l"]:
    """FOD coefficients of one shell's signals, those of ``volumes`` (all by default); dtype and device follow the signal.

    In single ``precision`` they come faster and differ by about 1e-6 of the largest.
    """
    operator = Deconvolution(
        directions.to("cpu", torch.float64), response.to("cpu", torch.float64), order, precision, str(signal.device)
    )
    return operator(signal, volumes)
