"""The amplitude of an orientation distribution at one point in one direction: interpolation and polynomial in one sum.

With divided powers ``X_a = x^a / a!`` the value is ``L(L − 1) Σ component · X_a Y_b Z_c`` (see `ops.sh_polynomial`): one
product a column of the table, so that the eight corners need not be combined first.
"""

from __future__ import annotations

import math

import numpy as np

from tractode.ops.compile import inner
from tractode.tracking.kernels.random import ONE
from tractode.tracking.kernels.table import ROW, lower_corner, to_voxel


@inner
def density_work(field):
    """Scratch of one thread: a monomial for each column, and the divided powers of x (falling), y and z."""
    kind = field.values.dtype
    width = (len(field.starts) + 7) // 8 * 8
    return np.zeros(field.values.shape[1] + 2 * ROW, kind), np.zeros((3, 2 * width), kind)


@inner
def density(field, work, px, py, pz, x, y, z):
    """The amplitude at a point (mm) in a unit direction; NaN where there are no data."""
    i, j, k = to_voxel(field.inverse, px, py, pz)
    rows = field.rows
    ni, nj, nk = rows.shape[0] - 1, rows.shape[1] - 1, rows.shape[2] - 1
    if not (i > -0.5 and i < ni - 0.5 and j > -0.5 and j < nj - 0.5 and k > -0.5 and k < nk - 0.5):
        return math.nan
    i0, u = lower_corner(i, ni)
    j0, v = lower_corner(j, nj)
    k0, w = lower_corner(k, nk)
    # Unsigned, because a negative index would count from the end, which costs a test at each look-up.
    i0, j0, k0 = np.uint64(i0), np.uint64(j0), np.uint64(k0)
    i1, j1, k1 = i0 + ONE, j0 + ONE, k0 + ONE
    if rows[i1 if u >= 0.5 else i0, j1 if v >= 0.5 else j0, k1 if w >= 0.5 else k0] == 0:
        return math.nan
    values = field.values
    kind = values.dtype.type
    products, powers = work
    fill(field.starts, products, powers, kind(x), kind(y), kind(z))
    v0, w0 = values[np.uint64(rows[i0, j0, k0])], kind((1 - u) * (1 - v) * (1 - w))
    v1, w1 = values[np.uint64(rows[i0, j0, k1])], kind((1 - u) * (1 - v) * w)
    v2, w2 = values[np.uint64(rows[i0, j1, k0])], kind((1 - u) * v * (1 - w))
    v3, w3 = values[np.uint64(rows[i0, j1, k1])], kind((1 - u) * v * w)
    v4, w4 = values[np.uint64(rows[i1, j0, k0])], kind(u * (1 - v) * (1 - w))
    v5, w5 = values[np.uint64(rows[i1, j0, k1])], kind(u * (1 - v) * w)
    v6, w6 = values[np.uint64(rows[i1, j1, k0])], kind(u * v * (1 - w))
    v7, w7 = values[np.uint64(rows[i1, j1, k1])], kind(u * v * w)
    total = kind(0)
    order = len(field.starts) - 1
    for n in range(
        ((order + 1) * (order + 2) // 2 + ROW - 1) // ROW * ROW
    ):  # the padded columns, known to the compiler
        near = w0 * v0[n] + w1 * v1[n] + w2 * v2[n] + w3 * v3[n]
        far = w4 * v4[n] + w5 * v5[n] + w6 * v6[n] + w7 * v7[n]
        total += products[n] * (near + far)
    return float(total)


@inner
def fill(starts, products, powers, x, y, z):
    """The monomials of all columns times L(L − 1). Rows are written whole, in order; the next overwrites what is too much."""
    order = len(starts) - 1
    one = products.dtype.type(1)
    p, q, r = one, products.dtype.type(order * (order - 1)), one
    for e in range(order + 1):
        powers[0, order - e], powers[1, e], powers[2, e] = p, q, r
        inverse = one / products.dtype.type(e + 1)
        p, q, r = p * x * inverse, q * y * inverse, r * z * inverse
    for c in range(order + 1):
        products[c] = powers[1, 0] * powers[0, c] * powers[2, c]
    for b in range(1, order + 1):
        start, factor = starts[b], powers[1, b]
        for c in range((order + 7) // 8 * 8):
            products[start + c] = factor * powers[0, b + c] * powers[2, c]
