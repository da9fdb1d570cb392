"""Where each volume of a series was taken: rigid motion about a centre, and a shift along the phase encoding.

Rotations are given as vectors (their axis times their angle in rad; Rodrigues's formula). What eddy currents shift is a polynomial of
second order in the position in the scanner, as J. L. R. Andersson, S. N. Sotiropoulos, *An integrated approach to correction for
off-resonance effects and subject movement in diffusion MR imaging*, NeuroImage 125:1063 (2016), doi:10.1016/j.neuroimage.2015.10.019.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

UNIT_MM = 100.0  # where the terms of the polynomial are 1
N_TERMS = 9


def rotations(vectors: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """The rotation matrices of rotation vectors (rad)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).reshape(*vectors.shape[:-1], 3, 3)
    return torch.linalg.matrix_exp(skew)


def rotation_vectors(matrices: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3"]:
    """The inverse of `rotations`, for turns by less than half a revolution."""
    odd = matrices - matrices.mT
    vector = torch.stack((odd[..., 2, 1], odd[..., 0, 2], odd[..., 1, 0]), dim=-1) / 2
    sine = vector.norm(dim=-1)
    cosine = (matrices.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angle = torch.atan2(sine, cosine)
    return vector * torch.where(sine > 1e-12, angle / sine.clamp_min(1e-12), 1.0)[..., None]


def moved(
    points: Float[Tensor, "p 3"], motion: Float[Tensor, "n 6"], centre: Float[Tensor, " 3"]
) -> Float[Tensor, "n p 3"]:
    """Where points (mm) lie in each volume: turned about ``centre`` by the last three of ``motion``, then shifted by the first three (mm)."""
    turn = rotations(motion[:, 3:]).to(points)
    return (points - centre.to(points)) @ turn.mT + (centre + motion[:, :3]).to(points)[:, None]


def still(
    points: Float[Tensor, "p 3"], motion: Float[Tensor, "n 6"], centre: Float[Tensor, " 3"]
) -> Float[Tensor, "n p 3"]:
    """The inverse of `moved`."""
    turn = rotations(motion[:, 3:]).to(points)
    return (points - (centre + motion[:, :3]).to(points)[:, None]) @ turn + centre.to(points)


def then(first: Float[Tensor, "n 6"], second: Float[Tensor, "n 6"]) -> Float[Tensor, "n 6"]:
    """The motions that do ``first`` and then ``second``, about the same centre."""
    turn = rotations(second[:, 3:])
    shift = (turn @ first[:, :3, None])[..., 0] + second[:, :3]
    return torch.cat((shift, rotation_vectors(turn @ rotations(first[:, 3:]))), dim=-1)


def inverse(motion: Float[Tensor, "n 6"]) -> Float[Tensor, "n 6"]:
    """The motions back."""
    turn = rotations(-motion[:, 3:])
    return torch.cat((-(turn @ motion[:, :3, None])[..., 0], -motion[:, 3:]), dim=-1)


def matrices(motion: Float[Tensor, "n 6"], centre: Float[Tensor, " 3"]) -> Float[Tensor, "n 4 4"]:
    """The same as homogeneous matrices on points."""
    turn = rotations(motion[:, 3:])
    out = torch.eye(4).to(motion).repeat(len(motion), 1, 1)
    out[:, :3, :3] = turn
    out[:, :3, 3] = centre.to(motion) + motion[:, :3] - turn @ centre.to(motion)
    return out


def terms(
    index: Float[Tensor, "*p 3"], shape: tuple[int, int, int], sizes: tuple[float, float, float]
) -> Float[Tensor, "*p 9"]:
    """u, v, w, u², v², w², uv, uw, vw of voxel indices: mm along the stored axes from the image's middle, over 100."""
    middle = torch.tensor([(n - 1) / 2 for n in shape]).to(index)
    scale = torch.tensor(sizes).to(index) / UNIT_MM
    u, v, w = ((index - middle) * scale).unbind(-1)
    return torch.stack((u, v, w, u * u, v * v, w * w, u * v, u * w, v * w), dim=-1)


def polynomial(
    index: Float[Tensor, "n p 3"],
    coefficients: Float[Tensor, "n 9"],
    shape: tuple[int, int, int],
    sizes: tuple[float, float, float],
    axis: int,
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n p"]]:
    """The sum of the `terms` with these coefficients, and its derivative along a stored axis per mm."""
    coordinates = []
    for which, (n, size) in enumerate(zip(shape, sizes, strict=True)):
        coordinates.append((index[..., which] - (n - 1) / 2) * (size / UNIT_MM))
    u, v, w = coordinates
    x, y, z, xx, yy, zz, xy, xz, yz = coefficients[:, :, None].unbind(1)
    values = u * (x + xx * u + xy * v + xz * w) + v * (y + yy * v + yz * w) + w * (z + zz * w)
    if axis == 0:
        slope = x + 2 * xx * u + xy * v + xz * w
    elif axis == 1:
        slope = y + 2 * yy * v + xy * u + yz * w
    else:
        slope = z + 2 * zz * w + xz * u + yz * v
    return values, slope / UNIT_MM
