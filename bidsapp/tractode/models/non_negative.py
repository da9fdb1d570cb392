"""Least squares under the constraint that some amplitudes are not negative: the problem behind multi-tissue deconvolution.

``min |Mx − s|² + λ|x|²`` under ``Hx ≥ 0``, with M and H shared by all voxels: Mehrotra's primal–dual interior point method
(SIAM J Optim 1992, doi:10.1137/0802028), compiled for CPUs (`tractode.models.kernels.interior_point`): half its steps in
float32, which takes half as long, the others in float64. It comes so near that the set A of constraints that hold x can be told; the rounds of `tractode.models.deconvolution`
with a stiff penalty settle A and give x without the method's barrier. Where they do not settle, the method's own point
is given. Departures: see there. Voxels that are not on a CPU are brought there.

Derivative: with A held, ``∂x/∂s = (P + ρ Σ_A hᵀh)⁻¹ Mᵀ``, ρ large, is that of the constrained problem (implicit differentiation: no
iteration is unrolled, one byte a voxel and constraint is kept). Where A is about to change it has a kink; one side's is given.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tractode.ops import sh_products, sphere
from tractode.ops import spherical_harmonics as sh

N_CONSTRAINTS = 300
_TOLERANCE = 1e-13  # of the duality gap of each constraint, for targets scaled to 1
_NEAR = 1e-7  # that which float32 reaches
_FIRST_DUAL = 0.003
_MOST = 40
_STIFFNESS = 1e5  # ρ, P being scaled to 1
_MOST_ROUNDS = 10
_TASK = 512  # voxels that one thread takes at a time
_TILE = 512  # of the derivative: 1128 numbers of a system, and 302 × 1128 products


@dataclass(frozen=True, eq=False)
class NonNegative:
    """Unknowns: harmonics up to ``order``, whose amplitudes on 300 axes are held at or above 0, then others held so themselves.

    ``forward`` is M in float64, ``norm`` is λ over the largest diagonal of MᵀM.
    """

    forward: Float[Tensor, "m p"]
    order: int
    norm: float = 1e-10

    @cached_property
    def constraint(self) -> Float[Tensor, "h p"]:
        """H."""
        n, p = sh.n_coefficients(self.order), self.forward.shape[1]
        amplitudes = sh.basis(sphere.directions(N_CONSTRAINTS, hemisphere=True), self.order)
        return torch.block_diag(amplitudes, torch.eye(p - n, dtype=torch.float64))

    @cached_property
    def size(self) -> float:
        """The largest diagonal of MᵀM, by which the problem is divided."""
        return float((self.forward.mT @ self.forward).diagonal().max())

    @cached_property
    def quadratic(self) -> Float[Tensor, "p p"]:
        """P."""
        product = self.forward.mT @ self.forward / self.size
        return product + self.norm * torch.eye(len(product), dtype=torch.float64)

    @cached_property
    def tables(self) -> tuple[Any, ...]:
        """What the compiled loops need."""
        p = self.forward.shape[1]
        system, first, which, weights = sh_products.packed_system(self.quadratic, self.order)
        axes = sphere.directions(N_CONSTRAINTS, hemisphere=True)
        alone = torch.eye(p - sh.n_coefficients(self.order), dtype=torch.float64)
        harmonics = _wide(torch.block_diag(sh.basis(axes, 2 * self.order), alone), 16)
        tables = (
            system,
            _wide(self.quadratic, 8).ravel(),
            first,
            which,
            weights,
            harmonics.ravel(),
            harmonics.shape[1],
            _wide(self.constraint.mT, 8).ravel(),
            _wide(self.constraint, 8).ravel(),
        )
        return tuple(value.contiguous().numpy() if isinstance(value, Tensor) else value for value in tables)

    @cached_property
    def single(self) -> tuple[Any, ...]:
        """`tables` in float32."""
        return tuple(
            value.astype(np.float32) if getattr(value, "dtype", None) == np.float64 else value for value in self.tables
        )

    @cached_property
    def inside(self) -> tuple[Any, Any]:
        """A point that meets every constraint with something to spare, and by how much it does."""
        point = torch.zeros(self.forward.shape[1], dtype=torch.float64)
        point[0], point[sh.n_coefficients(self.order) :] = 1.0, 0.3
        return point.numpy(), (self.constraint @ point).numpy()

    @cached_property
    def penalty(self) -> tuple[Any, ...]:
        """What the rounds that find A need."""
        system, _, first, which, weights, harmonics, n_harmonics, columns, _ = self.tables
        return system, first, which, weights, _STIFFNESS * harmonics, n_harmonics, columns, _MOST_ROUNDS

    @cached_property
    def projection(self) -> tuple[Any, int]:
        """Mᵀ over the size, by its columns."""
        return _wide(self.forward / self.size, 8).ravel().numpy(), self.forward.shape[1]

    def solved(
        self, signal: Float[Tensor, "v m"], keep: bool = False
    ) -> tuple[Float[Tensor, "v p"], UInt8[Tensor, "v h"] | None]:
        """The least points in the signal's dtype, and 1 for every constraint that holds one if the derivative will need them."""
        from tractode.models.kernels.active_set import settle  # numba takes part of a second to import
        from tractode.models.kernels.interior_point import descend
        from tractode.models.kernels.rows import multiply

        rows = signal.detach().cpu().contiguous().numpy()
        out = torch.empty(len(rows), self.forward.shape[1], dtype=signal.dtype)
        held = torch.empty(len(rows) if keep else 0, len(self.constraint), dtype=torch.uint8)
        (columns, p), penalty = self.projection, self.penalty
        tables = self.tables

        def task(begin: int) -> None:
            part = slice(begin, begin + _TASK)
            count = len(rows[part])
            target = np.empty((count, p))
            multiply(rows[part], columns, target)
            scale = np.abs(target).max(-1, keepdims=True)
            target /= np.where(scale > 0, scale, 1)
            points, slacks, duals, residuals = self._nearby(target)
            descend(target, *tables, _TOLERANCE, _MOST, points, slacks, duals, residuals)
            those, rounds = (duals > slacks).view(np.uint8), np.empty(count, np.int32)
            exact = np.empty_like(points)
            settle(target, those, *penalty, exact, rounds)
            unsettled = (rounds == _MOST_ROUNDS) & np.isfinite(points).all(-1)
            exact[unsettled] = points[unsettled]
            out[part].numpy()[:] = exact * scale
            if keep:
                held[part].numpy()[:] = those

        begins = range(0, len(rows), _TASK)
        with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(begins)))) as pool:
            list(pool.map(task, begins))
        return out, held if keep else None

    def _nearby(self, target: Any) -> tuple[Any, Any, Any, Any]:
        """Points that float32 finds, with their slacks, duals and residuals; from `inside` where it finds none."""
        from tractode.models.kernels.interior_point import descend
        from tractode.models.kernels.rows import multiply

        inside, spare = self.inside
        count = len(target)
        start = (np.tile(inside, (count, 1)), np.tile(spare, (count, 1)), np.full((count, len(spare)), _FIRST_DUAL))
        single = [value.astype(np.float32) for value in start]
        descend(target.astype(np.float32), *self.single, _NEAR, _MOST, *single, np.ones(count, np.float32))
        points, slacks, duals = (value.astype(np.float64) for value in single)
        _, quadratic, *_, columns, rows = self.tables
        multiply(points, columns, slacks)
        short = np.maximum(0, (_NEAR - slacks) / spare).max(-1, keepdims=True)
        points += short * inside
        slacks += short * spare
        curved, pushed = np.empty_like(target), np.empty_like(target)
        multiply(points, quadratic, curved)
        multiply(duals, rows, pushed)
        residuals = np.abs(curved - target - pushed).max(-1)
        lost = ~(np.isfinite(residuals) & (duals > 0).all(-1))
        for value, first in zip((points, slacks, duals), start, strict=True):
            value[lost] = first[lost]
        residuals[lost] = 1
        return points, slacks, duals, residuals

    def __call__(self, signal: Float[Tensor, "v m"]) -> Float[Tensor, "v p"]:
        """The least points; dtype and device follow the signal."""
        return _Held.apply(signal, self)


class _Held(torch.autograd.Function):
    """The least points as a function of the signals."""

    @staticmethod
    def forward(ctx: Any, signal: Float[Tensor, "v m"], problem: NonNegative) -> Float[Tensor, "v p"]:  # type: ignore[override]
        point, held = problem.solved(signal, keep=ctx.needs_input_grad[0])
        if held is not None:
            ctx.save_for_backward(held)
        ctx.problem = problem
        return point.to(signal)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "v p"]) -> tuple[Float[Tensor, "v m"], None]:  # type: ignore[override]
        (held,) = ctx.saved_tensors
        problem: NonNegative = ctx.problem
        lower = torch.tril_indices(*problem.quadratic.shape)
        products = _STIFFNESS * problem.constraint[:, lower[0]] * problem.constraint[:, lower[1]]
        back = problem.forward.mT / problem.size
        parts = []
        for those, slope in zip(held.split(_TILE), grad.cpu().double().split(_TILE), strict=True):
            system = slope.new_zeros(len(slope), *problem.quadratic.shape)
            system[:, lower[0], lower[1]] = problem.quadratic[lower[0], lower[1]] + those.double() @ products
            factor = torch.linalg.cholesky(system)
            parts.append(torch.cholesky_solve(slope[..., None], factor)[..., 0] @ back)
        return torch.cat(parts).to(grad), None


def _wide(matrix: Float[Tensor, "r c"], multiple: int) -> Float[Tensor, "r c2"]:
    """Filled up by columns of zeros."""
    return torch.nn.functional.pad(matrix, (0, (-matrix.shape[1]) % multiple)).contiguous()
