"""Many small symmetric positive systems at once, whose entries are sums that several of them share.

The sums are those of `tractode.ops.least_squares.Design`; factor and solution are `tractode.ops.lane_algebra`'s. Every
system is scaled to a unit diagonal first. A system that is not positive definite gives NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tractode.ops.compile import inner, kernel
from tractode.ops.lane_algebra import factorise, solve
from tractode.ops.lanes import load, spread, sqrt, store

LANES = 8  # float64 numbers in 64 bytes


@kernel
def solve_normal(
    sums: NDArray[np.float64],
    place: NDArray[np.int64],
    factor: NDArray[np.float64],
    right: NDArray[np.float64],
    solution: NDArray[np.float64],
    begin: int,
    end: int,
) -> None:
    """``N x = r`` with ``N[i, j] = factor[i, j] · sums[place[i, j]]``, one system a column from ``begin`` to ``end``, multiples of `LANES`."""
    p, t = right.shape
    size = (p + 3) // 4 * 4
    lower = _workspace(size * (size + 1) // 2 * LANES)
    scale, x = _workspace(p * LANES), _workspace(size * LANES)
    flat, wanted, found = sums.ravel(), right.ravel(), solution.ravel()
    for start in range(begin, end, LANES):
        _fill(flat, place, factor, wanted, start, t, lower, scale, x)
        factorise(lower, size, LANES)
        solve(lower, x, size, LANES)
        for i in range(p):
            store(found, i * t + start, load(x, i * LANES) * load(scale, i * LANES))


@inner
def _workspace(size):  # type: ignore[no-untyped-def]
    """Zeros that begin on a 64-byte line."""
    whole = np.zeros(size + LANES)
    skip = ((64 - whole.ctypes.data % 64) % 64) // 8
    return whole[skip : skip + size]


@inner
def _fill(sums, place, factor, right, start, t, lower, scale, x):  # type: ignore[no-untyped-def]
    """A block of systems of unit diagonal, filled up with rows of the identity, and their right sides."""
    p = len(place)
    one = spread(x, 1.0)
    for i in range(p):
        s = one / sqrt(factor[i, i] * load(sums, place[i, i] * t + start))
        store(scale, i * LANES, s)
        store(x, i * LANES, s * load(right, i * t + start))
        row = i * (i + 1) // 2
        for j in range(i):
            value = (factor[i, j] * load(sums, place[i, j] * t + start)) * s
            store(lower, (row + j) * LANES, value * load(scale, j * LANES))
        store(lower, (row + i) * LANES, one)
    for i in range(p, len(x) // LANES):
        row = i * (i + 1) // 2
        store(x, i * LANES, spread(x, 0.0))
        for j in range(i):
            store(lower, (row + j) * LANES, spread(x, 0.0))
        store(lower, (row + i) * LANES, one)
