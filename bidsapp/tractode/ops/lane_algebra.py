"""Small dense matrices of many voxels at once: Cholesky's factor, triangular solves, products with a shared matrix.

Golub & Van Loan, *Matrix Computations*, 4th ed., sections 3.1 and 4.2. Departures: the places of `tractode.ops.lanes`
hold voxels, entries are taken four by four so that they stay in registers, and the factor's diagonal is kept inverted.
Sizes are multiples of 4: fill up with rows of the identity. Lower triangles are packed by rows: entry ``(i, j)`` is number
``i (i + 1) / 2 + j``; entry ``e`` of all voxels stands from ``e · width`` on.
"""

from __future__ import annotations

from typing import Any

from tractode.ops.compile import inner
from tractode.ops.lanes import load, spread, sqrt, store


@inner
def factorise(a: Any, n: int, w: int) -> None:  # noqa: PLR0915
    """``A = L Lᵀ`` in place of A; the diagonal of L is stored inverted. A must be positive definite."""
    one = spread(a, 1.0)
    for i in range(0, n, 4):
        r0, r1, r2, r3 = _rows(i, w)
        for j in range(0, i, 4):
            c0, c1, c2, c3 = _rows(j, w)
            p = j * w
            x00, x01, x02, x03 = load(a, r0 + p), load(a, r0 + p + w), load(a, r0 + p + 2 * w), load(a, r0 + p + 3 * w)
            x10, x11, x12, x13 = load(a, r1 + p), load(a, r1 + p + w), load(a, r1 + p + 2 * w), load(a, r1 + p + 3 * w)
            x20, x21, x22, x23 = load(a, r2 + p), load(a, r2 + p + w), load(a, r2 + p + 2 * w), load(a, r2 + p + 3 * w)
            x30, x31, x32, x33 = load(a, r3 + p), load(a, r3 + p + w), load(a, r3 + p + 2 * w), load(a, r3 + p + 3 * w)
            for k in range(0, p, w):
                u0, u1, u2, u3 = load(a, r0 + k), load(a, r1 + k), load(a, r2 + k), load(a, r3 + k)
                v = load(a, c0 + k)
                x00, x10, x20, x30 = x00 - u0 * v, x10 - u1 * v, x20 - u2 * v, x30 - u3 * v
                v = load(a, c1 + k)
                x01, x11, x21, x31 = x01 - u0 * v, x11 - u1 * v, x21 - u2 * v, x31 - u3 * v
                v = load(a, c2 + k)
                x02, x12, x22, x32 = x02 - u0 * v, x12 - u1 * v, x22 - u2 * v, x32 - u3 * v
                v = load(a, c3 + k)
                x03, x13, x23, x33 = x03 - u0 * v, x13 - u1 * v, x23 - u2 * v, x33 - u3 * v
            d = load(a, c0 + p)
            x00, x10, x20, x30 = x00 * d, x10 * d, x20 * d, x30 * d
            v, d = load(a, c1 + p), load(a, c1 + p + w)
            x01, x11, x21, x31 = (x01 - x00 * v) * d, (x11 - x10 * v) * d, (x21 - x20 * v) * d, (x31 - x30 * v) * d
            v, t, d = load(a, c2 + p), load(a, c2 + p + w), load(a, c2 + p + 2 * w)
            x02, x12 = (x02 - x00 * v - x01 * t) * d, (x12 - x10 * v - x11 * t) * d
            x22, x32 = (x22 - x20 * v - x21 * t) * d, (x32 - x30 * v - x31 * t) * d
            v, t, s, d = load(a, c3 + p), load(a, c3 + p + w), load(a, c3 + p + 2 * w), load(a, c3 + p + 3 * w)
            x03, x13 = (x03 - x00 * v - x01 * t - x02 * s) * d, (x13 - x10 * v - x11 * t - x12 * s) * d
            x23, x33 = (x23 - x20 * v - x21 * t - x22 * s) * d, (x33 - x30 * v - x31 * t - x32 * s) * d
            _put(a, r0 + p, w, x00, x01, x02, x03)
            _put(a, r1 + p, w, x10, x11, x12, x13)
            _put(a, r2 + p, w, x20, x21, x22, x23)
            _put(a, r3 + p, w, x30, x31, x32, x33)
        p = i * w
        y00, y10, y11 = load(a, r0 + p), load(a, r1 + p), load(a, r1 + p + w)
        y20, y21, y22 = load(a, r2 + p), load(a, r2 + p + w), load(a, r2 + p + 2 * w)
        y30, y31, y32, y33 = load(a, r3 + p), load(a, r3 + p + w), load(a, r3 + p + 2 * w), load(a, r3 + p + 3 * w)
        for k in range(0, p, w):
            u0, u1, u2, u3 = load(a, r0 + k), load(a, r1 + k), load(a, r2 + k), load(a, r3 + k)
            y00, y10, y20, y30 = y00 - u0 * u0, y10 - u1 * u0, y20 - u2 * u0, y30 - u3 * u0
            y11, y21, y31 = y11 - u1 * u1, y21 - u2 * u1, y31 - u3 * u1
            y22, y32, y33 = y22 - u2 * u2, y32 - u3 * u2, y33 - u3 * u3
        d0 = one / sqrt(y00)
        y10, y20, y30 = y10 * d0, y20 * d0, y30 * d0
        d1 = one / sqrt(y11 - y10 * y10)
        y21, y31 = (y21 - y20 * y10) * d1, (y31 - y30 * y10) * d1
        d2 = one / sqrt(y22 - y20 * y20 - y21 * y21)
        y32 = (y32 - y30 * y20 - y31 * y21) * d2
        d3 = one / sqrt(y33 - y30 * y30 - y31 * y31 - y32 * y32)
        store(a, r0 + p, d0)
        store(a, r1 + p, y10)
        store(a, r1 + p + w, d1)
        store(a, r2 + p, y20)
        store(a, r2 + p + w, y21)
        store(a, r2 + p + 2 * w, d2)
        _put(a, r3 + p, w, y30, y31, y32, d3)


@inner
def _rows(i: int, w: int) -> tuple[int, int, int, int]:
    """Where four rows of a packed triangle begin."""
    first = i * (i + 1) // 2 * w
    second = first + (i + 1) * w
    third = second + (i + 2) * w
    return first, second, third, third + (i + 3) * w


@inner
def _put(a: Any, at: int, w: int, x: Any, y: Any, z: Any, t: Any) -> None:
    store(a, at, x)
    store(a, at + w, y)
    store(a, at + 2 * w, z)
    store(a, at + 3 * w, t)


@inner
def solve(factor: Any, x: Any, n: int, w: int) -> None:
    """``L Lᵀ x = b`` in place of b, by the factor that `factorise` leaves."""
    for i in range(n):
        row = i * (i + 1) // 2 * w
        even, odd = load(x, i * w), spread(x, 0.0)
        for k in range(0, i - 1, 2):
            even = even - load(factor, row + k * w) * load(x, k * w)
            odd = odd - load(factor, row + k * w + w) * load(x, k * w + w)
        if i % 2:
            even = even - load(factor, row + (i - 1) * w) * load(x, (i - 1) * w)
        store(x, i * w, (even + odd) * load(factor, row + i * w))
    for i in range(n - 1, -1, -1):
        row = i * (i + 1) // 2 * w
        value = load(x, i * w) * load(factor, row + i * w)
        store(x, i * w, value)
        for k in range(0, i * w, w):
            store(x, k, load(x, k) - load(factor, row + k) * value)


@inner
def times(columns: Any, x: Any, out: Any, n_rows: int, n: int, w: int) -> None:
    """``M x`` for a matrix M shared by all, given by its columns (``columns[k · n_rows + row]``); ``n_rows`` a multiple of 8."""
    zero = spread(x, 0.0)
    for row in range(0, n_rows, 8):
        s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
        for k in range(n):
            v, at = load(x, k * w), k * n_rows + row
            s0, s1 = s0 + columns[at] * v, s1 + columns[at + 1] * v
            s2, s3 = s2 + columns[at + 2] * v, s3 + columns[at + 3] * v
            s4, s5 = s4 + columns[at + 4] * v, s5 + columns[at + 5] * v
            s6, s7 = s6 + columns[at + 6] * v, s7 + columns[at + 7] * v
        _put(out, row * w, w, s0, s1, s2, s3)
        _put(out, (row + 4) * w, w, s4, s5, s6, s7)


@inner
def gather(base: Any, first: Any, which: Any, weights: Any, x: Any, out: Any, w: int) -> None:
    """``base + G x`` for a sparse shared G by rows: those of ``which`` and ``weights`` from ``first[row]`` to ``first[row + 1]``."""
    for row in range(len(base)):
        total = spread(x, base[row])
        for k in range(first[row], first[row + 1]):
            total = total + weights[k] * load(x, which[k] * w)
        store(out, row * w, total)
