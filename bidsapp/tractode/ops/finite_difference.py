"""Finite differences of grids: derivatives along the grid's own axes, and Jacobians of maps of the world."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def gradient(
    values: Float[Tensor, "c i j k"], voxel_sizes: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Float[Tensor, "c 3 i j k"]:
    """First derivatives per mm along the three grid axes: central inside, one-sided on the border, 0 on flat axes."""
    parts = []
    for axis, size in enumerate(voxel_sizes):
        if values.shape[axis + 1] < 2:
            parts.append(torch.zeros_like(values))
        else:
            parts.append(torch.gradient(values, spacing=float(size), dim=axis + 1)[0])
    return torch.stack(parts, dim=1)


def second_derivatives(
    values: Float[Tensor, "c i j k"], voxel_sizes: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Float[Tensor, "c 6 r s t"]:
    """``xx yy zz xy xz yz`` per mm² on the inner voxels (two fewer along each axis), each by its compact stencil."""
    inner = (slice(1, -1),) * 3

    def shifted(offset: tuple[int, int, int]) -> Tensor:
        window = [slice(1 + o, n - 1 + o) for o, n in zip(offset, values.shape[1:], strict=True)]
        return values[:, window[0], window[1], window[2]]

    centre = values[(slice(None), *inner)]
    parts = []
    for axis, size in enumerate(voxel_sizes):
        step = [0, 0, 0]
        step[axis] = 1
        plus, minus = shifted((step[0], step[1], step[2])), shifted((-step[0], -step[1], -step[2]))
        parts.append((plus - 2 * centre + minus) / size**2)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        total = torch.zeros_like(centre)
        for sa in (1, -1):
            for sb in (1, -1):
                step = [0, 0, 0]
                step[a], step[b] = sa, sb
                total = total + sa * sb * shifted((step[0], step[1], step[2]))
        parts.append(total / (4 * voxel_sizes[a] * voxel_sizes[b]))
    return torch.stack(parts, dim=1)


def jacobian(
    displacement: Float[Tensor, "3 i j k"], voxel_sizes: tuple[float, float, float]
) -> Float[Tensor, "i j k 3 3"]:
    """``∂(x + u)/∂x`` where the components of ``u`` are along the grid's own axes (turn them there first)."""
    slopes = gradient(displacement, voxel_sizes).permute(2, 3, 4, 0, 1)
    return slopes + torch.eye(3, dtype=displacement.dtype, device=displacement.device)


def map_jacobian(positions: Float[Tensor, "i j k 3"], affine: Float[Tensor, "4 4"]) -> Float[Tensor, "r s t 3 3"]:
    """``∂T/∂x`` of a map of the world given at a grid's voxel centres, at the inner ones (two fewer along each axis).

    By central differences over two voxels, exact for a linear map; rows are the target's coordinates, columns the source's.
    """
    inner = slice(1, -1)
    slopes = torch.stack(
        [
            positions[2:, inner, inner] - positions[:-2, inner, inner],
            positions[inner, 2:, inner] - positions[inner, :-2, inner],
            positions[inner, inner, 2:] - positions[inner, inner, :-2],
        ],
        dim=-1,
    )
    return slopes @ (torch.linalg.inv(affine[:3, :3]) / 2).to(positions)


def determinant(matrices: Float[Tensor, "*v 3 3"]) -> Float[Tensor, "*v"]:
    """Determinants by the rule of Sarrus: several times faster than an LU decomposition of millions of 3×3 matrices."""
    a, b, c = matrices.unbind(-2)
    return (a * torch.linalg.cross(b, c)).sum(-1)


# Corners of the unit cube, index = 4 i + 2 j + k; the two inner tetrahedra join corners of even and of odd sum.
_CORNERS = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
_INNER = ((0, 3, 5, 6), (1, 2, 4, 7))


def ten_jacobians(positions_vox: Float[Tensor, "i j k 3"]) -> Float[Tensor, "10 r s t"]:
    """Determinants of the ten tetrahedra that two cuttings make of every cell of mapped samples; 1 for the identity.

    The first eight are the one-sided finite-difference Jacobians at the cell's corners, the last two the inner tetrahedra:
    Y. Liu et al., IJCV 132:3678 (2024), doi:10.1007/s11263-024-02047-1. Positions are in units of the sampling grid.
    """
    n = [size - 1 for size in positions_vox.shape[:3]]
    corner = [positions_vox[i : i + n[0], j : j + n[1], k : k + n[2]] for i, j, k in _CORNERS]
    dets = []
    for index, (i, j, k) in enumerate(_CORNERS):
        edges = [corner[index ^ bit] - corner[index] for bit in (4, 2, 1)]
        # From a far corner the edges run backwards along the axes where it lies at 1.
        dets.append((-1) ** (i + j + k) * determinant(torch.stack(edges, dim=-2)))
    unit = torch.tensor(_CORNERS, dtype=torch.float64)
    for a, b, c, d in _INNER:
        volume = float(torch.det(torch.stack([unit[b] - unit[a], unit[c] - unit[a], unit[d] - unit[a]])))
        edges = [corner[x] - corner[a] for x in (b, c, d)]
        dets.append(determinant(torch.stack(edges, dim=-2)) / volume)
    return torch.stack(dets)
