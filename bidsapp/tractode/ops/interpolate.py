"""Sampling of grids at continuous voxel coordinates: the only file that knows ``grid_sample``."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Interpolation = Literal["linear", "nearest"]


def sample(
    values: Float[Tensor, "c i j k"],
    points_vox: Float[Tensor, "*p 3"],
    mode: Interpolation = "linear",
    outside: Literal["zero", "nearest"] = "zero",
) -> Float[Tensor, "*p c"]:
    """Values of a grid at voxel coordinates, differentiable in both (in the points for ``linear`` only).

    Parameters
    ----------
    values
        Channels first, spatial axes in storage order.
    points_vox
        Voxel indices, centres at integers.
    outside
        ``zero`` fades to 0 within one voxel beyond the outermost centres; ``nearest`` repeats the border.
    """
    shape = values.shape[1:]
    extent = torch.tensor([max(n - 1, 1) for n in shape], dtype=points_vox.dtype, device=points_vox.device)
    unit = 2 * points_vox / extent - 1
    # An axis of one voxel has its only centre at index 0, which grid_sample places at the coordinate −1.
    grid = unit.flip(-1).reshape(1, -1, 1, 1, 3).to(values.dtype)
    out = functional.grid_sample(
        values[None],
        grid,
        mode="bilinear" if mode == "linear" else "nearest",
        padding_mode="zeros" if outside == "zero" else "border",
        align_corners=True,
    )
    return out[0, :, :, 0, 0].mT.reshape(*points_vox.shape[:-1], values.shape[0])


def inside(shape: tuple[int, int, int], points_vox: Float[Tensor, "*p 3"], margin: float = 0.0) -> Tensor:
    """Whether each point lies within the outermost voxel centres, widened by ``margin`` voxels."""
    upper = torch.tensor(shape, dtype=points_vox.dtype, device=points_vox.device) - 1
    return ((points_vox >= -margin) & (points_vox <= upper + margin)).all(-1)


def sample_rows(
    table: Float[Tensor, "v c"], shape: tuple[int, int, int], points_vox: Float[Tensor, "p 3"]
) -> Float[Tensor, "p c"]:
    """Linear interpolation in a grid whose channels lie together, the border repeated: many channels at scattered points.

    Equals `sample` with ``outside="nearest"`` of the same grid; faster where there are many channels, because each corner
    is one row in memory. Differentiable in the table and in the points.
    """
    upper = torch.tensor([n - 1 for n in shape], device=points_vox.device)
    position = points_vox.clamp(torch.zeros_like(upper).to(points_vox), upper.to(points_vox))
    base = position.detach().floor().long().minimum((upper - 1).clamp_min(0))
    share = position - base
    corners, weights = [], []
    for corner in range(8):
        offset = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=points_vox.device)
        i, j, k = (base + offset).minimum(upper).unbind(-1)
        corners.append((i * shape[1] + j) * shape[2] + k)
        weights.append(torch.where(offset.bool(), share, 1 - share).prod(-1))
    return functional.embedding_bag(
        torch.stack(corners, -1), table, per_sample_weights=torch.stack(weights, -1).to(table), mode="sum"
    )
