"""Least squares under the constraint that some amplitudes are not negative: the problem behind multi-tissue deconvolution.

``min |Mx − s|² + λ|x|²`` under ``Hx ≥ 0``, with M and H shared by all voxels: Mehrotra's primal–dual interior point method
(SIAM J Optim 1992, doi:10.1137/0802028), compiled for CPUs (`tractode.models.kernels.interior_point`), in float64.
Departures: see there. Elsewhere than on a CPU the voxels are brought there.

Derivative: near the end the point met is that of the problem with a barrier of a tiny, fixed height, for which
``∂x/∂s = (P + Hᵀ diag(z/s) H)⁻¹ Mᵀ`` is exact (implicit differentiation; of each voxel only ``z/s`` is kept, in single
precision). Where the set of constraints that hold x is about to change the derivative has a kink, rounded by the barrier.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import sh_products, sphere
from tractode.ops import spherical_harmonics as sh

N_CONSTRAINTS = 300
_TOLERANCE = 1e-14  # of the duality gap of each constraint, for targets scaled to 1
_MOST = 60
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
        inside = torch.zeros(p, dtype=torch.float64)
        inside[0], inside[sh.n_coefficients(self.order) :] = 1.0, 0.3
        numbers = (
            harmonics.ravel(),
            harmonics.shape[1],
            _wide(self.constraint.mT, 8).ravel(),
            _wide(self.constraint, 8).ravel(),
            inside,
            self.constraint @ inside,
        )
        quadratic = _wide(self.quadratic, 8).ravel()
        every = (system, quadratic, first, which, weights, *numbers)
        arrays = (value.contiguous().numpy() if isinstance(value, Tensor) else value for value in every)
        return (*arrays, _TOLERANCE, _MOST)

    @cached_property
    def projection(self) -> tuple[Any, int]:
        """Mᵀ over the size, by its columns."""
        return _wide(self.forward / self.size, 8).ravel().numpy(), self.forward.shape[1]

    def solved(self, signal: Float[Tensor, "v m"], keep: bool = False) -> tuple[Tensor, Float[Tensor, "v h"] | None]:
        """The least points in float64, and the ``z/s`` (float32) that the derivative needs if they shall be kept."""
        from tractode.models.kernels.interior_point import descend  # numba takes part of a second to import
        from tractode.models.kernels.rows import multiply

        rows = signal.detach().cpu().contiguous().numpy()
        out = torch.empty(len(rows), self.forward.shape[1], dtype=torch.float64)
        ratios = torch.empty(len(rows) if keep else 0, len(self.constraint), dtype=torch.float32)
        tables, (columns, p) = self.tables, self.projection

        def task(begin: int) -> None:
            part = slice(begin, begin + _TASK)
            target = torch.empty(len(rows[part]), p, dtype=torch.float64).numpy()
            multiply(rows[part], columns, target)
            descend(target, *tables, out[part].numpy(), ratios[part].numpy())

        begins = range(0, len(rows), _TASK)
        with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(begins)))) as pool:
            list(pool.map(task, begins))
        return out, ratios if keep else None

    def __call__(self, signal: Float[Tensor, "v m"]) -> Float[Tensor, "v p"]:
        """The least points; dtype and device follow the signal."""
        return _Held.apply(signal, self)


class _Held(torch.autograd.Function):
    """The least points as a function of the signals."""

    @staticmethod
    def forward(ctx: Any, signal: Float[Tensor, "v m"], problem: NonNegative) -> Float[Tensor, "v p"]:  # type: ignore[override]
        point, ratios = problem.solved(signal, keep=ctx.needs_input_grad[0])
        if ratios is not None:
            ctx.save_for_backward(ratios)
        ctx.problem = problem
        return point.to(signal)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "v p"]) -> tuple[Float[Tensor, "v m"], None]:  # type: ignore[override]
        (ratios,) = ctx.saved_tensors
        problem: NonNegative = ctx.problem
        lower = torch.tril_indices(*problem.quadratic.shape)
        products = problem.constraint[:, lower[0]] * problem.constraint[:, lower[1]]
        back = problem.forward.mT / problem.size
        parts = []
        for ratio, slope in zip(ratios.split(_TILE), grad.cpu().double().split(_TILE), strict=True):
            system = slope.new_zeros(len(slope), *problem.quadratic.shape)
            system[:, lower[0], lower[1]] = problem.quadratic[lower[0], lower[1]] + ratio.double() @ products
            factor = torch.linalg.cholesky(system)
            parts.append(torch.cholesky_solve(slope[..., None], factor)[..., 0] @ back)
        return torch.cat(parts).to(grad), None


def _wide(matrix: Float[Tensor, "r c"], multiple: int) -> Float[Tensor, "r c2"]:
    """Filled up by columns of zeros."""
    return torch.nn.functional.pad(matrix, (0, (-matrix.shape[1]) % multiple)).contiguous()
