"""The rounds of constrained deconvolution (see `tractode.models.deconvolution`), a register full of voxels at a time.

A voxel whose active set stands still leaves its place to the next one. The matrix ``Σ_active hᵀh`` of a round is known
from the sums ``Σ_active Y_c`` of harmonics of twice the order (`tractode.ops.sh_products`), and those change only by the
few directions that enter or leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tractode.models.kernels.rows import workspace
from tractode.ops.compile import inner, kernel
from tractode.ops.lane_algebra import factorise, gather, solve, times
from tractode.ops.lanes import load, lowest, negative, spread, store


@inner
def move_into_lanes(rows: Any, out: Any, n: int, w: int) -> None:
    """Rows of ``n`` numbers, one a voxel, to ``n`` registers."""
    for place in range(w):
        at = place * n
        for k in range(n):
            out[k * w + place] = rows[at + k]


@inner
def _shift(sums: Any, at: int, harmonics: Any, row: int, n: int, w: int, sign: Any) -> None:
    """Adds or subtracts one direction's harmonics."""
    for k in range(0, n, w):
        store(sums, at + k, load(sums, at + k) + sign * load(harmonics, row + k))


@inner
def _sum(sums: Any, at: int, harmonics: Any, rows: Any, n_rows: int, n: int, w: int) -> None:
    """The sum of some directions' harmonics; ``rows`` says where each begins."""
    whole = n - n % (4 * w)
    for k in range(0, whole, 4 * w):
        s0 = s1 = s2 = s3 = spread(sums, 0.0)
        for r in range(n_rows):
            row = rows[r] + k
            s0, s1 = s0 + load(harmonics, row), s1 + load(harmonics, row + w)
            s2, s3 = s2 + load(harmonics, row + 2 * w), s3 + load(harmonics, row + 3 * w)
        store(sums, at + k, s0)
        store(sums, at + k + w, s1)
        store(sums, at + k + 2 * w, s2)
        store(sums, at + k + 3 * w, s3)
    for k in range(whole, n, w):
        s0 = spread(sums, 0.0)
        for r in range(n_rows):
            s0 = s0 + load(harmonics, rows[r] + k)
        store(sums, at + k, s0)


@kernel
def settle(  # noqa: PLR0912, PLR0915
    targets: Any,
    active: Any,
    normal: Any,
    first: Any,
    which: Any,
    weights: Any,
    harmonics: Any,
    n_harmonics: int,
    columns: Any,
    most: int,
    out: Any,
    rounds: Any,
) -> None:
    """Active sets (voxels × directions, 1 or 0) in their place, the solutions in ``out``, and after how many ``rounds`` (at most ``most``).

    ``normal``, ``first``, ``which``, ``weights`` make a packed system of the sums (`lane_algebra.gather`), whose size is a
    multiple of 4; ``harmonics`` has a row of ``n_harmonics`` numbers for every direction; ``columns`` makes amplitudes.
    """
    one = targets.dtype.type(1)
    w, n_voxels, n_directions = 64 // targets.itemsize, targets.shape[0], active.shape[1]
    n, n_used = out.shape[1], targets.shape[1]
    size = n + (-n) % 4
    n_rows = n_directions + (-n_directions) % 8
    target, x = workspace(size * w, targets), workspace(size * w, targets)
    sums, in_lanes = workspace(w * n_harmonics, targets), workspace(n_harmonics * w, targets)
    system, amplitudes = workspace(len(normal) * w, targets), workspace(n_rows * w, targets)
    bits, rows = np.zeros(n_directions, np.int64), np.zeros(n_directions, np.int64)
    voxel, age = np.full(w, -1), np.zeros(w, np.int64)
    following, busy = 0, 0
    while True:
        for place in range(w):
            if busy >> place & 1 or following == n_voxels:
                continue
            voxel[place], age[place], busy = following, 0, busy | 1 << place
            for k in range(n_used):
                target[k * w + place] = targets[following, k]
            held = 0
            for d in range(n_directions):
                bits[d] &= ~(1 << place)
                if active[following, d]:
                    bits[d] |= 1 << place
                    rows[held] = d * n_harmonics
                    held += 1
            _sum(sums, place * n_harmonics, harmonics, rows, held, n_harmonics, w)
            following += 1
        if not busy:
            return
        move_into_lanes(sums, in_lanes, n_harmonics, w)
        gather(normal, first, which, weights, in_lanes, system, w)
        factorise(system, size, w)
        x[:] = target
        solve(system, x, size, w)
        times(columns, x, amplitudes, n_rows, n, w)
        free = 0
        for place in range(w):
            age[place] += 1
            if age[place] < most:
                free |= 1 << place
        free &= busy
        moved = 0
        for d in range(n_directions):
            now = negative(load(amplitudes, d * w))
            change = (now ^ bits[d]) & free
            if change:
                moved |= change
                bits[d] ^= change
                while change:
                    place = lowest(change)
                    sign = one if now >> place & 1 else -one
                    _shift(sums, place * n_harmonics, harmonics, d * n_harmonics, n_harmonics, w, sign)
                    change &= change - 1
        done = busy & ~moved
        busy &= moved
        while done:
            place = lowest(done)
            rounds[voxel[place]] = age[place]
            for k in range(n):
                out[voxel[place], k] = x[k * w + place]
            for d in range(n_directions):
                active[voxel[place], d] = bits[d] >> place & 1
            done &= done - 1
