"""Affine maps on points and directions, in homogeneous 4×4 form with column vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def apply_affine(matrix: Float[Tensor, "4 4"], points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
    """Map points: ``A x + t``. The matrix is cast to the points' dtype and device."""
    matrix = matrix.to(points)
    return points @ matrix[:3, :3].mT + matrix[:3, 3]


def rotate(matrix: Float[Tensor, "4 4"], directions: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
    """Map directions by the linear part only, without normalising."""
    return directions @ matrix.to(directions)[:3, :3].mT


def voxel_sizes(affine: Float[Tensor, "4 4"]) -> Float[Tensor, " 3"]:
    """Length of each voxel edge in mm: the norms of the affine's columns."""
    return affine[:3, :3].norm(dim=0)


def axis_directions(affine: Float[Tensor, "4 4"]) -> Float[Tensor, "3 3"]:
    """Unit columns of the affine's 3×3: the direction of each voxel axis in RAS+ (``R`` in the gradient rule)."""
    return affine[:3, :3] / voxel_sizes(affine)


def rotation_part(matrix: Float[Tensor, "4 4"]) -> Float[Tensor, "3 3"]:
    """The orthogonal factor of the linear part's polar decomposition, det +1 or −1 as the matrix's own."""
    u, _, vh = torch.linalg.svd(matrix[:3, :3])
    return u @ vh


def compose(*matrices: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """The map that applies the first matrix first: ``compose(a, b) = b @ a``."""
    total = torch.eye(4, dtype=matrices[0].dtype, device=matrices[0].device)
    for matrix in matrices:
        total = matrix.to(total) @ total
    return total
