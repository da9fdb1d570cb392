"""Quadratic programs that share their matrices (see `tractode.models.non_negative`), a register full of voxels at a time.

Mehrotra, *On the implementation of a primal–dual interior point method*, SIAM J Optim 1992, doi:10.1137/0802028, for
``min ½ xᵀPx − qᵀx`` under ``Hx ≥ 0``. Departures: the start is inside the constraints, so ``s = Hx`` holds throughout; primal
and dual variables take the same step. ``HᵀDH`` is made of sums of harmonics (`tractode.ops.sh_products`). A voxel
that has converged leaves its place to the next one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tractode.models.kernels.rows import workspace
from tractode.ops.compile import inner, kernel
from tractode.ops.lane_algebra import factorise, gather, solve, times
from tractode.ops.lanes import larger, load, spread, store

_SHORT_OF_WALL = 0.999


@inner
def _fill(place: int, row: Any, point: Any, slack: Any, dual: Any, target: Any, x: Any, s: Any, z: Any, w: int) -> None:
    """The next voxel at a place."""
    for k in range(len(row)):
        target[k * w + place] = row[k]
        x[k * w + place] = point[k]
    for d in range(len(slack)):
        s[d * w + place] = slack[d]
        z[d * w + place] = dual[d]


@inner
def _predict(s: Any, z: Any, inverse: Any, ds: Any, dz: Any, m: int, w: int) -> tuple[Any, Any]:
    """The duals' step towards zero complementarity, in ``dz``; how far the walls are, as the inverse of the step that meets one."""
    wall = spread(s, 1.0)
    for d in range(0, m * w, w):
        dual, ratio = load(z, d), load(ds, d) * load(inverse, d)
        step = 0.0 - dual - dual * ratio
        store(dz, d, step)
        # −Δz / z is 1 + Δs / s here
        wall = larger(wall, larger(0.0 - ratio, 1.0 + ratio))
    step = 1.0 / wall
    after, before = spread(s, 0.0), spread(s, 0.0)
    for d in range(0, m * w, w):
        slack, dual = load(s, d), load(z, d)
        before = before + slack * dual
        after = after + (slack + step * load(ds, d)) * (dual + step * load(dz, d))
    return before, after


@inner
def _centre(inverse: Any, ds: Any, dz: Any, push: Any, aim: Any, m: int, w: int) -> None:
    """What the corrector adds to the right-hand side: ``(σμ − Δs Δz) / s``."""
    for d in range(0, m * w, w):
        store(push, d, (aim - load(ds, d) * load(dz, d)) * load(inverse, d))


@inner
def _advance(s: Any, z: Any, inverse: Any, ds: Any, dz: Any, push: Any, m: int, w: int) -> tuple[Any, Any]:
    """Takes the step for slacks and duals; its length and the complementarity ``sᵀz`` after it."""
    wall = spread(s, _SHORT_OF_WALL)
    for d in range(0, m * w, w):
        dual, ratio = load(z, d), load(ds, d) * load(inverse, d)
        step = load(push, d) - dual - dual * ratio
        store(dz, d, step)
        wall = larger(wall, larger(0.0 - ratio, 0.0 - step / dual))
    step = _SHORT_OF_WALL / wall
    left = spread(s, 0.0)
    for d in range(0, m * w, w):
        slack, dual = load(s, d) + step * load(ds, d), load(z, d) + step * load(dz, d)
        store(s, d, slack)
        store(z, d, dual)
        left = left + slack * dual
    return step, left


@kernel
def descend(  # noqa: PLR0912
    targets: Any,
    system_of: Any,
    quadratic: Any,
    first: Any,
    which: Any,
    weights: Any,
    harmonics: Any,
    n_harmonics: int,
    columns: Any,
    rows: Any,
    tolerance: float,
    most: int,
    points: Any,
    slacks: Any,
    duals: Any,
    residuals: Any,
) -> None:
    """Brings ``points``, their ``slacks`` H x > 0 and ``duals`` > 0 from where they are to the least points, in place.

    ``system_of`` (packed), ``first``, ``which`` and ``weights`` make the system (`lane_algebra.gather`) of the sums that
    ``harmonics`` makes; ``quadratic`` is P, ``columns`` H and ``rows`` Hᵀ by their columns. P and ``targets`` are scaled to 1;
    the duality gap per constraint and ``residuals``, the largest of ``|Px − q − Hᵀz|``, end below ``tolerance``.
    """
    w, n_voxels, n = 64 // targets.itemsize, targets.shape[0], targets.shape[1]
    m, size = slacks.shape[1], n + (-n) % 4
    n_rows, wide = m + (-m) % 8, n + (-n) % 8
    target, x, dx, px = (
        workspace(wide * w, targets),
        workspace(wide * w, targets),
        workspace(wide * w, targets),
        workspace(wide * w, targets),
    )
    s, z, inverse = workspace(n_rows * w, targets), workspace(n_rows * w, targets), workspace(n_rows * w, targets)
    s[:], z[:] = 1, 1
    ds, dz, push = workspace(n_rows * w, targets), workspace(n_rows * w, targets), workspace(n_rows * w, targets)
    sums, system = workspace(n_harmonics * w, targets), workspace(len(system_of) * w, targets)
    residual, gap, length = workspace(w, targets), workspace(w, targets), workspace(w, targets)
    voxel, age = np.full(w, -1), np.zeros(w, np.int64)
    following, n_busy = 0, 0
    while True:
        for place in range(w):
            if voxel[place] < 0 and following < n_voxels:
                v = following
                _fill(place, targets[v], points[v], slacks[v], duals[v], target, x, s, z, w)
                voxel[place], age[place], residual[place] = following, 0, residuals[v]
                following, n_busy = following + 1, n_busy + 1
        if not n_busy:
            return
        for d in range(0, m * w, w):
            one_over = 1.0 / load(s, d)
            store(inverse, d, one_over)
            store(push, d, load(z, d) * one_over)
        times(harmonics, push, sums, n_harmonics, m, w)
        gather(system_of, first, which, weights, sums, system, w)
        factorise(system, size, w)
        times(quadratic, x, px, wide, n, w)
        for k in range(0, n * w, w):
            store(px, k, load(target, k) - load(px, k))
        dx[:] = px
        solve(system, dx, size, w)
        times(columns, dx, ds, n_rows, n, w)
        before, after = _predict(s, z, inverse, ds, dz, m, w)
        share = after / before
        _centre(inverse, ds, dz, push, share * share * after * (1.0 / m), m, w)
        times(rows, push, dx, wide, m, w)
        for k in range(0, n * w, w):
            store(dx, k, load(dx, k) + load(px, k))
        for k in range(n * w, wide * w, w):
            store(dx, k, spread(dx, 0.0))
        solve(system, dx, size, w)
        times(columns, dx, ds, n_rows, n, w)
        step, left = _advance(s, z, inverse, ds, dz, push, m, w)
        for k in range(0, n * w, w):
            store(x, k, load(x, k) + step * load(dx, k))
        store(length, 0, step)
        store(gap, 0, left)
        for place in range(w):
            residual[place] *= 1 - length[place]
            age[place] += 1
            ended = gap[place] < tolerance * m and residual[place] < tolerance
            if voxel[place] < 0 or not (ended or age[place] == most):
                continue
            for k in range(n):
                points[voxel[place], k] = x[k * w + place]
            for d in range(m):
                slacks[voxel[place], d], duals[voxel[place], d] = s[d * w + place], z[d * w + place]
            voxel[place], n_busy = -1, n_busy - 1
