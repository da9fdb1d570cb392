"""Linear least squares for many voxels that share a design: ordinary and weighted, differentiable in the data.

The weighted normal equations are solved in float64 and in tiles of fixed size, so that memory is bounded and a voxel's
answer does not depend on its neighbours. Entries of ``XᵀWX`` whose products of columns are multiples of one another (as
they are where columns are monomials of the direction) are summed once: 95 sums instead of 253 for a kurtosis tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from threading import Barrier
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILE = 4096
_SMALL = 8  # systems up to this size are quicker by LAPACK than the compiled loop is to load
_RIDGE = 1e-9
_LEAST_PART = 64  # items that are worth a thread


def in_tiles(
    function: Callable[[Float[Tensor, "t n"]], Float[Tensor, "t p"]],
    rows: Float[Tensor, "v n"],
    size: int = TILE,
    *,
    threaded: bool = False,
) -> Float[Tensor, "v p"]:
    """``function`` applied to tiles of exactly ``size`` rows; the last tile is filled up by repeating its last row.

    A matrix product rounds differently for different numbers of rows; a fixed number makes each row's result its own.
    ``threaded`` tiles are worked on side by side, each by one thread, unless a derivative is asked for; not for functions
    that use forward differentiation themselves, of which torch does one at a time.
    """
    if not len(rows):
        return function(rows.new_zeros(size, rows.shape[1]))[:0]

    def of_tile(tile: Tensor) -> Tensor:
        missing = size - len(tile)
        whole = tile if not missing else torch.cat([tile, tile[-1:].expand(missing, -1)])
        return function(whole)[: len(tile)]

    first, *others = rows.split(size)
    n_threads = torch.get_num_threads()
    differentiable = torch.is_grad_enabled() and rows.requires_grad
    if not threaded or differentiable or n_threads < 2 or not others or rows.device.type != "cpu":
        return torch.cat([of_tile(tile) for tile in (first, *others)])
    start = of_tile(first)  # whatever is prepared once is prepared here
    return torch.cat([start, *_tile_threads(n_threads).map(torch.no_grad()(of_tile), others)])


@cache
def _tile_threads(n: int) -> ThreadPoolExecutor:
    """Threads whose operations stay on one core each."""
    pool = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))
    barrier = Barrier(n)
    list(pool.map(lambda _: barrier.wait(), range(n)))  # all have begun
    torch.set_num_threads(n)  # also for threads that torch starts later
    return pool


def in_threads(work: Callable[[int, int], None], n: int, multiple: int = 1) -> None:
    """``work(begin, end)`` for parts of ``range(n)`` that begin at multiples of ``multiple``, on as many threads as torch uses here.

    For compiled loops that let go of the interpreter's lock and whose items do not depend on one another.
    """
    n_threads = torch.get_num_threads()
    size = max(_LEAST_PART, -(-n // n_threads // multiple) * multiple)
    parts = [(begin, min(begin + size, n)) for begin in range(0, n, size)]
    if len(parts) < 2:
        work(0, n)
        return
    for done in [_threads(n_threads).submit(work, *part) for part in parts]:
        done.result()


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n)


def ordinary(design: Float[Tensor, "n p"], data: Float[Tensor, "v n"]) -> Float[Tensor, "v p"]:
    """``argmin |X β − y|²`` by the pseudo-inverse, float64 inside, the data's dtype outside."""
    return Design(design.to(torch.float64)).ordinary(data.to(torch.float64).mT).mT.to(data.dtype)


def weighted(
    design: Float[Tensor, "n p"], data: Float[Tensor, "v n"], weights: Float[Tensor, "v n"]
) -> Float[Tensor, "v p"]:
    """``argmin Σ w (X β − y)²`` for each row of data with its own weights, which are scaled to a mean of 1 first.

    A row whose weights leave the design without full rank gets the least ridge that makes it solvable.
    """
    y, w = data.to(torch.float64).mT, weights.to(torch.float64).mT
    w = w / w.mean(0).clamp_min(torch.finfo(torch.float64).tiny)
    return Design(design.to(torch.float64)).weighted(y, w).mT.to(data.dtype)


@dataclass(frozen=True, eq=False)
class Design:
    """``y = X β`` for many voxels, prepared once in float64. Here measurements come first and voxels are columns.

    Solutions are float64, whatever the data.
    """

    matrix: Float[Tensor, "n p"]

    def cast(self, dtype: torch.dtype) -> Design:
        """This design for data of another type: long sums are formed in that, systems solved in float64."""
        return self if dtype == self.matrix.dtype else self._single

    @cached_property
    def _single(self) -> Design:
        single = Design(self.matrix.to(torch.float32))
        chosen, place, factor = self.products
        single.__dict__["inverse"] = self.inverse.to(torch.float32)  # prepared in float64
        single.__dict__["products"] = chosen.to(torch.float32), place, factor
        return single

    @cached_property
    def inverse(self) -> Float[Tensor, "p n"]:
        return torch.linalg.pinv(self.matrix)

    @cached_property
    def products(self) -> tuple[Float[Tensor, "m n"], Int[Tensor, "p p"], Float[Tensor, "p p"]]:
        """Products of two columns without multiples of one another; which of them, times what, stands for each pair."""
        x = self.matrix
        n, p = x.shape
        pairs = (x[:, :, None] * x[:, None, :]).reshape(n, p * p).mT
        size = pairs.norm(dim=-1, keepdim=True)
        unit = pairs / torch.where(size > 0, size, torch.ones_like(size))
        alike = (unit @ unit.mT).abs() > 1 - 1e-13
        first = alike.to(torch.uint8).argmax(-1)  # every pair is alike to itself
        kept, place = first.unique(return_inverse=True)
        chosen = pairs[kept]
        factor = (pairs * chosen[place]).sum(-1) / chosen.square().sum(-1).clamp_min(torch.finfo(x.dtype).tiny)[place]
        return chosen, place.reshape(p, p), factor.reshape(p, p)

    def predict(self, params: Float[Tensor, "p t"]) -> Float[Tensor, "n t"]:
        return self.matrix @ params

    def ordinary(self, data: Float[Tensor, "n t"]) -> Float[Tensor, "p t"]:
        """``argmin |X β − y|²``."""
        return self.inverse @ data

    def weighted(self, data: Float[Tensor, "n t"], weights: Float[Tensor, "n t"]) -> Float[Tensor, "p t"]:
        """``argmin Σ w (X β − y)²``; with the least ridge where the weights leave X without full rank."""
        right = (self.matrix.mT @ (weights * data)).to(torch.float64)
        return _Solution.apply((self.products[0] @ weights).to(torch.float64), right, self)

    def normal(self, sums: Float[Tensor, "m t"]) -> Float[Tensor, "t p p"]:
        """``XᵀWX`` from the sums of the products."""
        _, place, factor = self.products
        return (sums[place] * factor[:, :, None]).permute(2, 0, 1)

    def solve(self, sums: Float[Tensor, "m t"], right: Float[Tensor, "p t"]) -> Float[Tensor, "p t"]:
        """``(XᵀWX)⁻¹ r``."""
        p, t = right.shape
        if p <= _SMALL or right.device.type != "cpu" or t % 8:
            solution = torch.linalg.solve_ex(self.normal(sums), right.mT).result.mT
        else:
            from tractode.ops.normal_kernel import solve_normal  # compiled

            solution = torch.empty_like(right, memory_format=torch.contiguous_format)
            arrays = [a.contiguous().numpy() for a in (sums, *self.products[1:], right)]
            in_threads(lambda begin, end: solve_normal(*arrays, solution.numpy(), begin, end), t, 8)
        singular = ~torch.isfinite(solution).all(0)
        if bool(singular.any()):
            normal = self.normal(sums[:, singular])
            ridge = _RIDGE * normal.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-300)
            normal = normal + ridge[:, None, None] * torch.eye(p).to(normal)
            solution[:, singular] = torch.linalg.solve(normal, right[:, singular].mT).mT
        return solution


class _Solution(torch.autograd.Function):
    """``x = N⁻¹ r`` with ``dx = N⁻¹ (dr − dN x)``: N is symmetric, so the same solver serves backwards."""

    @staticmethod
    def forward(ctx: Any, sums: Float[Tensor, "m t"], right: Float[Tensor, "p t"], design: Design) -> Tensor:  # type: ignore[override]
        solution = design.solve(sums, right)
        ctx.save_for_backward(sums, solution)
        ctx.design = design
        return solution

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "p t"]) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        sums, solution = ctx.saved_tensors
        slope = _Solution.apply(sums, grad.contiguous(), ctx.design)
        _, place, factor = ctx.design.products
        outer = (slope[:, None] * solution[None] * factor[:, :, None]).flatten(0, 1)
        return -torch.zeros_like(sums).index_add(0, place.ravel(), outer), slope, None
