"""Look-ups in images, one point at a time: the rules of `tracking.sampling` and `tracking.stopping`.

Voxel coordinates and weights are computed in double precision, whatever the precision of the field.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch.nn import functional

from tractode.ops import sh_polynomial
from tractode.ops.compile import inner
from tractode.tracking.sampling import ComponentTable
from tractode.tracking.stopping import MaskLookup

ROW = 16  # values in a cache line of float32: rows of the table and of the work array are multiples of it


class Field(NamedTuple):
    """A `ComponentTable` as arrays. ``starts[b]`` is the column of the component (order − b, b, 0).

    Columns run over c for one exponent b of y after another, with c that of z, and are padded with zeros. That ``starts``
    is a tuple tells the compiler the order: it has order + 1 entries.
    """

    values: Float[np.ndarray, "r columns"]
    rows: Int[np.ndarray, "i1 j1 k1"]
    inverse: Float[np.ndarray, "3 4"]
    starts: tuple[int, ...]


class Mask(NamedTuple):
    """A `MaskLookup` as arrays."""

    inside: Bool[np.ndarray, "i j k"]
    inverse: Float[np.ndarray, "3 4"]


def field_arrays(table: ComponentTable) -> Field:
    """Copies the values into the columns' order."""
    order = sh_polynomial.order_of(table.values.shape[1])
    columns = [(b + c) * (b + c + 1) // 2 + c for b in range(order + 1) for c in range(order + 1 - b)]
    values = table.values.detach()[:, columns]
    padded = functional.pad(values, (0, -len(columns) % ROW)).contiguous()
    starts = tuple(b * (order + 1) - b * (b - 1) // 2 for b in range(order + 1))
    return Field(padded.numpy(), table.rows.contiguous().numpy(), affine_array(table.grid.inverse_affine), starts)


def mask_arrays(mask: MaskLookup) -> Mask:
    return Mask(mask.flat.reshape(mask.grid.shape).numpy(), affine_array(mask.grid.inverse_affine))


def affine_array(matrix: torch.Tensor) -> Float[np.ndarray, "3 4"]:
    """The three rows of an affine that are not always 0 0 0 1."""
    return np.ascontiguousarray(matrix[:3].double().numpy())


@inner
def to_voxel(inverse, x, y, z):
    """Voxel coordinates of a point in mm."""
    a = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2] * z + inverse[0, 3]
    b = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2] * z + inverse[1, 3]
    c = inverse[2, 0] * x + inverse[2, 1] * y + inverse[2, 2] * z + inverse[2, 3]
    return a, b, c


@inner
def contains(mask, x, y, z):
    """Whether the voxel nearest to a point in mm lies in the mask; False outside the image and for NaN."""
    i, j, k = to_voxel(mask.inverse, x, y, z)
    ni, nj, nk = mask.inside.shape
    i, j, k = math.floor(i + 0.5), math.floor(j + 0.5), math.floor(k + 0.5)
    if not (i >= 0 and i < ni and j >= 0 and j < nj and k >= 0 and k < nk):
        return False
    return mask.inside[int(i), int(j), int(k)]


@inner
def lower_corner(v, n):
    """The lower of two neighbouring voxel centres along one axis, and how far beyond it; clamped to the outermost."""
    v = min(max(v, 0.0), n - 1.0)
    base = math.floor(v)
    return int(base), v - base


@inner
def interpolate(field, x, y, z, out):
    """Components at a point in mm, trilinear, into ``out`` (as many as columns); False where there are no data.

    There are none outside the image and where the nearest voxel is one that is not stored.
    """
    i, j, k = to_voxel(field.inverse, x, y, z)
    rows = field.rows
    ni, nj, nk = rows.shape[0] - 1, rows.shape[1] - 1, rows.shape[2] - 1
    if not (i > -0.5 and i < ni - 0.5 and j > -0.5 and j < nj - 0.5 and k > -0.5 and k < nk - 0.5):
        return False
    i0, u = lower_corner(i, ni)
    j0, v = lower_corner(j, nj)
    k0, w = lower_corner(k, nk)
    if rows[i0 + (u >= 0.5), j0 + (v >= 0.5), k0 + (w >= 0.5)] == 0:
        return False
    values = field.values
    kind = values.dtype.type
    r0, w0 = rows[i0, j0, k0], kind((1 - u) * (1 - v) * (1 - w))
    r1, w1 = rows[i0, j0, k0 + 1], kind((1 - u) * (1 - v) * w)
    r2, w2 = rows[i0, j0 + 1, k0], kind((1 - u) * v * (1 - w))
    r3, w3 = rows[i0, j0 + 1, k0 + 1], kind((1 - u) * v * w)
    r4, w4 = rows[i0 + 1, j0, k0], kind(u * (1 - v) * (1 - w))
    r5, w5 = rows[i0 + 1, j0, k0 + 1], kind(u * (1 - v) * w)
    r6, w6 = rows[i0 + 1, j0 + 1, k0], kind(u * v * (1 - w))
    r7, w7 = rows[i0 + 1, j0 + 1, k0 + 1], kind(u * v * w)
    for n in range(values.shape[1]):
        near = w0 * values[r0, n] + w1 * values[r1, n] + w2 * values[r2, n] + w3 * values[r3, n]
        far = w4 * values[r4, n] + w5 * values[r5, n] + w6 * values[r6, n] + w7 * values[r7, n]
        out[n] = near + far
    return True
