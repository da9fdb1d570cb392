"""Linear least squares for many voxels that share a design: ordinary and weighted, differentiable in the data.

The weighted normal equations are solved in float64 and in tiles of fixed size, so that memory is bounded and a voxel's
answer does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

TILE = 4096


def in_tiles(
    function: Callable[[Float[Tensor, "t n"]], Float[Tensor, "t p"]],
    rows: Float[Tensor, "v n"],
    size: int = TILE,
) -> Float[Tensor, "v p"]:
    """``function`` applied to tiles of exactly ``size`` rows; the last tile is filled up by repeating its last row.

    A matrix product rounds differently for different numbers of rows; a fixed number makes each row's result its own.
    """
    if not len(rows):
        return function(rows.new_zeros(size, rows.shape[1]))[:0]
    parts = []
    for tile in rows.split(size):
        missing = size - len(tile)
        whole = tile if not missing else torch.cat([tile, tile[-1:].expand(missing, -1)])
        parts.append(function(whole)[: len(tile)])
    return torch.cat(parts)


def ordinary(design: Float[Tensor, "n p"], data: Float[Tensor, "v n"]) -> Float[Tensor, "v p"]:
    """``argmin |X β − y|²`` by the pseudo-inverse, float64 inside, the data's dtype outside."""
    inverse = torch.linalg.pinv(design.to(torch.float64))
    return (data.to(torch.float64) @ inverse.mT).to(data.dtype)


def weighted(
    design: Float[Tensor, "n p"], data: Float[Tensor, "v n"], weights: Float[Tensor, "v n"]
) -> Float[Tensor, "v p"]:
    """``argmin Σ w (X β − y)²`` for each row of data with its own weights, which are scaled to a mean of 1 first.

    A row whose weights leave the design without full rank gets the least ridge that makes it solvable.
    """
    x, y, w = design.to(torch.float64), data.to(torch.float64), weights.to(torch.float64)
    w = w / w.mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    n, p = x.shape
    products = (x[:, :, None] * x[:, None, :]).reshape(n, p * p)
    normal = (w @ products).reshape(-1, p, p)
    right = (w * y) @ x
    solved, failed = torch.linalg.solve_ex(normal, right)
    singular = (failed != 0) | ~torch.isfinite(solved).all(-1)
    if bool(singular.any()):
        ridge = 1e-9 * normal[singular].diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-300)
        solved = solved.index_put(
            (singular,),
            torch.linalg.solve(normal[singular] + ridge[:, None, None] * torch.eye(p).to(x), right[singular]),
        )
    return solved.to(data.dtype)
