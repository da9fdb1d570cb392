"""The contraction of a symmetric tensor with a direction until a 3×3 matrix is left: `ops.sh_polynomial` for one point.

The components lie on a grid ``[b, c]`` of the exponents of y and z, so that the six sums of the contraction differ by
constant shifts: entry (b, c) of weight x^a y^b z^c / (a! b! c!) meets the components at (b, c), (b + 1, c), (b, c + 1), …
"""

from __future__ import annotations

import numpy as np

from tractode.ops.compile import inner
from tractode.tracking.kernels.table import ROW


@inner
def workspace(field):
    """Scratch of one thread: interpolated columns, the grid of components, and divided powers of x, y and z."""
    kind = field.values.dtype
    n = len(field.starts)
    columns = np.zeros(field.values.shape[1], kind)
    grid = np.zeros((n, (n + ROW) // ROW * ROW), kind)
    powers = np.zeros((3, 2 * ((n + 7) // 8 * 8)), kind)
    return columns, grid, powers


@inner
def spread(starts, columns, grid):
    """Put interpolated columns on the grid."""
    n = len(starts)
    for b in range(n):
        for c in range(n - b):
            grid[b, c] = columns[starts[b] + c]


@inner
def contract(starts, grid, powers, x, y, z):
    """``B`` (xx, xy, xz, yy, yz, zz) at the direction (x, y, z): value dᵀBd, gradient L·Bd, Hessian L(L−1)·B."""
    n = len(starts) - 2  # exponents 0 … L − 2
    one = grid.dtype.type(1)
    p, q, r = one, one, one
    for e in range(n):
        # Falling powers of x, so that entry b + c is the power L − 2 − b − c; zeros follow.
        powers[0, n - 1 - e], powers[1, e], powers[2, e] = p, q, r
        inverse = one / grid.dtype.type(e + 1)
        p, q, r = p * x * inverse, q * y * inverse, r * z * inverse
    xx = xy = xz = yy = yz = zz = grid.dtype.type(0)
    for c in range((n + 7) // 8 * 8):  # whole vectors: beyond n the powers of x are zero
        for b in range(n):
            weight = powers[0, b + c] * powers[1, b] * powers[2, c]
            xx += weight * grid[b, c]
            xy += weight * grid[b + 1, c]
            xz += weight * grid[b, c + 1]
            yy += weight * grid[b + 2, c]
            yz += weight * grid[b + 1, c + 1]
            zz += weight * grid[b, c + 2]
    return xx, xy, xz, yy, yz, zz


@inner
def amplitude(starts, grid, powers, x, y, z):
    """The value at the direction (x, y, z)."""
    xx, xy, xz, yy, yz, zz = contract(starts, grid, powers, x, y, z)
    return x * (xx * x + xy * y + xz * z) + y * (xy * x + yy * y + yz * z) + z * (xz * x + yz * y + zz * z)
