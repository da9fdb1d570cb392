"""The search behind `tractode.ops.inequality`: the nearest point of a cone, one voxel after the other, compiled.

Lawson & Hanson, *Solving least squares problems*, 1974, chapter 23 (doi:10.1137/1.9781611971217): the least-distance
problem is a non-negative least-squares problem in its multipliers. Departure: the multipliers' matrix is built row by
row as constraints become active, since only few of many ever do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tractode.ops.compile import inner, kernel

_LEAST_PIVOT = 1e-10
_TOLERANCE = 1e-10
_ROUNDS = 100


@kernel
def nearest(
    normal: NDArray[np.float64],
    free: NDArray[np.float64],
    bounds: NDArray[np.float64],
    solution: NDArray[np.float64],
    active: NDArray[np.bool_],
    begin: int,
    end: int,
) -> None:
    """For rows from ``begin`` to ``end`` ``argmin (x − free)ᵀ N (x − free)`` under ``x · bounds ≥ 0``, and which bounds are met exactly."""
    p, m = bounds.shape
    lower, rows, gram, work = np.zeros((p, p)), np.zeros((p, p)), np.zeros((p, p)), np.zeros((p, p))
    scale, start, x, wanted = np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(p)
    multiplier, trial, place = np.zeros(p), np.zeros(p), np.zeros(p)
    which, banned, along = np.zeros(p, np.int64), np.zeros(m, np.bool_), np.zeros(m)
    for voxel in range(begin, end):
        active[voxel] = False
        solution[voxel] = free[voxel]
        if not _factor(normal[voxel], lower, scale):
            continue
        size = 0.0
        for i in range(p):
            x[i] = free[voxel, i]
            size = max(size, abs(x[i]))
            total = 0.0
            for j in range(i, p):
                total += lower[j, i] * free[voxel, j] / scale[j]
            start[i] = total
        banned[:] = False
        k = 0
        for _ in range(_ROUNDS):
            worst = _most_violated(bounds, x, banned, along, _TOLERANCE * size)
            if worst < 0 or k == p:
                break
            _enter(bounds[:, worst], lower, scale, start, rows, gram, wanted, k)
            which[k], multiplier[k] = worst, 0.0
            k = _settle(rows, gram, work, wanted, multiplier, trial, which, k + 1)
            banned[worst] = worst not in which[:k]  # only rounding sends it away at once
            _point(lower, scale, start, rows, multiplier, k, place, x)
        for i in range(k):
            active[voxel, which[i]] = True
        solution[voxel] = x


@inner
def _factor(normal, lower, scale):  # type: ignore[no-untyped-def]
    """Cholesky's factor of the matrix scaled to a unit diagonal; False where it is not positive definite."""
    p = len(scale)
    for i in range(p):
        if not normal[i, i] > 0.0:
            return False
        scale[i] = 1.0 / np.sqrt(normal[i, i])
    for i in range(p):
        for j in range(i + 1):
            total = normal[i, j] * scale[i] * scale[j]
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            if i == j:
                if not total > 1e-14:
                    return False
                lower[i, i] = np.sqrt(total)
            else:
                lower[i, j] = total / lower[j, j]
    return True


@inner
def _most_violated(bounds, x, banned, along, tolerance):  # type: ignore[no-untyped-def]
    along[:] = 0.0
    for i in range(len(x)):
        for column in range(len(along)):
            along[column] += bounds[i, column] * x[i]
    worst, least = -1, -tolerance
    for column in range(len(along)):
        if along[column] < least and not banned[column]:
            worst, least = column, along[column]
    return worst


@inner
def _enter(bound, lower, scale, start, rows, gram, wanted, k):  # type: ignore[no-untyped-def]
    """Row k of the active constraints, in coordinates where distance is plain, and what belongs to it."""
    p = len(scale)
    for i in range(p):
        total = bound[i] * scale[i]
        for j in range(i):
            total -= lower[i, j] * rows[k, j]
        rows[k, i] = total / lower[i, i]
    total = 0.0
    for i in range(p):
        total -= rows[k, i] * start[i]
    wanted[k] = total
    for j in range(k + 1):
        total = 0.0
        for i in range(p):
            total += rows[k, i] * rows[j, i]
        gram[k, j] = total
        gram[j, k] = total


@inner
def _settle(rows, gram, work, wanted, multiplier, trial, which, k):  # type: ignore[no-untyped-def]
    """Multipliers of the active constraints, all positive; those that would turn negative leave. Returns how many stay."""
    known = k - 1  # rows of the factor that are still right
    while k > 0:
        if not _solve(gram, work, wanted, trial, known, k):
            return k - 1  # the last depends on the others
        step = 1.0
        for i in range(k):
            if trial[i] <= 0.0:
                step = min(step, multiplier[i] / (multiplier[i] - trial[i]) if multiplier[i] > trial[i] else 0.0)
        for i in range(k):
            multiplier[i] += step * (trial[i] - multiplier[i])
        if step == 1.0:
            return k
        kept, known = 0, k
        for i in range(k):
            if not (trial[i] <= 0.0 and multiplier[i] <= 1e-14):
                _move(rows, gram, wanted, multiplier, which, i, kept, k)
                kept += 1
            else:
                known = min(known, i)
        if kept == k:
            return k
        k = kept
    return 0


@inner
def _move(rows, gram, wanted, multiplier, which, source, target, k):  # type: ignore[no-untyped-def]
    if source == target:
        return
    rows[target] = rows[source]
    wanted[target], multiplier[target], which[target] = wanted[source], multiplier[source], which[source]
    for j in range(k):
        gram[target, j] = gram[source, j]
    for j in range(k):
        gram[j, target] = gram[j, source]


@inner
def _solve(gram, work, wanted, out, known, k):  # type: ignore[no-untyped-def]
    for i in range(known, k):
        for j in range(i + 1):
            total = gram[i, j]
            for n in range(j):
                total -= work[i, n] * work[j, n]
            if i == j:
                if not total > _LEAST_PIVOT * gram[i, i]:
                    return False
                work[i, i] = np.sqrt(total)
            else:
                work[i, j] = total / work[j, j]
    for i in range(k):
        total = wanted[i]
        for j in range(i):
            total -= work[i, j] * out[j]
        out[i] = total / work[i, i]
    for i in range(k - 1, -1, -1):
        total = out[i]
        for j in range(i + 1, k):
            total -= work[j, i] * out[j]
        out[i] = total / work[i, i]
    return True


@inner
def _point(lower, scale, start, rows, multiplier, k, place, x):  # type: ignore[no-untyped-def]
    """Back from plain coordinates to the parameters."""
    p = len(scale)
    for i in range(p):
        place[i] = start[i]
    for n in range(k):
        for i in range(p):
            place[i] += multiplier[n] * rows[n, i]
    for i in range(p - 1, -1, -1):
        total = place[i]
        for j in range(i + 1, p):
            total -= lower[j, i] * place[j]
        place[i] = total / lower[i, i]
    for i in range(p):
        x[i] = place[i] * scale[i]
