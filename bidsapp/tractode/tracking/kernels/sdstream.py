"""SD_STREAM as a compiled loop: `tracking.sdstream` and `ops.peaks` for one seed at a time, Euler or RK4."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from tractode.ops.compile import inner, kernel
from tractode.ops.peaks import (
    ASCENT_TOLERANCE,
    MAX_ITERATIONS,
    MAX_TURN,
    POLE,
    POLISH_REACH,
    POLISH_TOLERANCE,
)
from tractode.tracking.kernels.polynomial import contract, spread, workspace
from tractode.tracking.kernels.run import Loop, as_arrays, no_lines, set_row, with_line
from tractode.tracking.kernels.table import contains, field_arrays, interpolate, mask_arrays
from tractode.tracking.sdstream import SDStreamMarch


class Rules(NamedTuple):
    """Step (mm), least cosine of a turn, cutoff, least and greatest number of points, halves, RK4 instead of Euler."""

    step: float
    cosine: float
    cutoff: float
    minimum: int
    maximum: int
    is_one_way: bool
    is_rk4: bool


def loop(march: SDStreamMarch, is_rk4: bool) -> Loop:
    """`follow`, with the field, the mask and the rules that the torch loop has."""
    at, limits = march.stepper, march.limits
    rules = Rules(at.step, at.cosine, at.cutoff, limits.minimum, limits.maximum, march.one_way, is_rk4)
    return Loop(partial(follow, field_arrays(at.table), mask_arrays(at.mask), rules), march)


@inner
def ascend(starts, grid, powers, x, y, z):
    """`peaks.ascend` until it is over: the peak uphill of a direction and its amplitude, NaN where there is none."""
    kind = grid.dtype.type
    above = kind(len(starts) - 2)  # L − 1
    for _ in range(MAX_ITERATIONS):
        xx, xy, xz, yy, yz, zz = contract(starts, grid, powers, x, y, z)
        bx, by, bz = xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z
        value = x * bx + y * by + z * bz
        sx, sy, sz = bx - value * x, by - value * y, bz - value * z
        steepness = math.sqrt(sx * sx + sy * sy + sz * sz)
        if steepness == 0:
            return x, y, z, value
        ux, uy, uz = sx / steepness, sy / steepness, sz / steepness
        cx, cy, cz = xx * ux + xy * uy + xz * uz, xy * ux + yy * uy + yz * uz, xz * ux + yz * uy + zz * uz
        across, radius = x * uy - y * ux, max(x * x + y * y, kind(POLE))
        bent = steepness * z * uz * across * across / (radius * radius)
        curvature = above * (ux * cx + uy * cy + uz * cz) - value - bent
        turn = min(abs(steepness / curvature), kind(MAX_TURN))
        is_over = turn < kind(ASCENT_TOLERANCE)
        mx, my, mz = turn * ux, turn * uy, turn * uz
        if is_over and grid.itemsize == 8:
            mx, my, mz, is_over = polish(xx, xy, xz, yy, yz, zz, x, y, z, value, above, sx, sy, sz, mx, my, mz)
        x, y, z = unit(x + mx, y + my, z + mz)
        if is_over:
            return x, y, z, value
    return x, y, z, kind(np.nan)


@inner
def polish(xx, xy, xz, yy, yz, zz, x, y, z, value, above, sx, sy, sz, mx, my, mz):
    """Newton's step (as `peaks.surface_solve` has it) where the surface is a hilltop, and whether it is the last."""
    xx, xy, xz = above * xx - value, above * xy, above * xz
    yy, yz, zz = above * yy - value, above * yz, above * zz - value
    mixed = x * y * (xz * yz - xy * zz) + x * z * (xy * yz - xz * yy) + y * z * (xy * xz - xx * yz)
    determinant = x * x * (yy * zz - yz * yz) + y * y * (xx * zz - xz * xz) + z * z * (xx * yy - xy * xy)
    determinant += mixed + mixed  # a literal 2 would turn float32 into float64
    trace = xx + yy + zz - above * value + value
    tx, ty, tz = xx * sx + xy * sy + xz * sz, xy * sx + yy * sy + yz * sz, xz * sx + yz * sy + zz * sz
    along = tx * x + ty * y + tz * z
    tx, ty, tz = tx - along * x - trace * sx, ty - along * y - trace * sy, tz - along * z - trace * sz
    tx, ty, tz = tx / determinant, ty / determinant, tz / determinant
    length = math.sqrt(tx * tx + ty * ty + tz * tz)
    if determinant > 0 and trace < 0 and length < POLISH_REACH:
        return tx, ty, tz, length < POLISH_TOLERANCE
    return mx, my, mz, True


@inner
def unit(x, y, z):
    """A direction made one of length 1."""
    length = math.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


@inner
def direction_at(field, work, cutoff, px, py, pz, x, y, z):
    """The peak at a point nearest to a direction, and whether there is one that is high enough."""
    columns, grid, powers = work
    if not interpolate(field, px, py, pz, columns):
        return x, y, z, False
    spread(field.starts, columns, grid)
    x, y, z, value = ascend(field.starts, grid, powers, x, y, z)
    return x, y, z, value >= cutoff


@inner
def runge_kutta(field, work, rules, px, py, pz, x, y, z):
    """The direction of one fourth-order step, and whether it may be taken."""
    kind = field.values.dtype.type
    step, half, two = kind(rules.step), kind(0.5 * rules.step), kind(2)
    cutoff = kind(rules.cutoff)
    ax, ay, az, is_good = direction_at(field, work, cutoff, px, py, pz, x, y, z)
    if not is_good:
        return x, y, z, False
    bx, by, bz, is_good = direction_at(field, work, cutoff, px + half * ax, py + half * ay, pz + half * az, x, y, z)
    if not is_good:
        return x, y, z, False
    cx, cy, cz, is_good = direction_at(field, work, cutoff, px + half * bx, py + half * by, pz + half * bz, x, y, z)
    if not is_good:
        return x, y, z, False
    sx, sy, sz = unit(bx + cx, by + cy, bz + cz)
    dx, dy, dz, is_good = direction_at(field, work, cutoff, px + step * cx, py + step * cy, pz + step * cz, sx, sy, sz)
    if not is_good:
        return x, y, z, False
    x, y, z = unit(ax + two * (bx + cx) + dx, ay + two * (by + cy) + dy, az + two * (bz + cz) + dz)
    dx, dy, dz, is_good = direction_at(field, work, cutoff, px + step * x, py + step * y, pz + step * z, x, y, z)
    return x, y, z, is_good and ax * dx + ay * dy + az * dz >= kind(rules.cosine)


@inner
def follow_half(field, mask, rules, work, number, line):
    """Steps from ``line[0]`` (position and direction) until the line ends; how many there are."""
    kind = line.dtype.type
    step, cosine, cutoff = kind(rules.step), kind(rules.cosine), kind(rules.cutoff)
    px, py, pz, x, y, z = line[0]
    taken = 0
    while taken < rules.maximum - 1:
        if rules.is_rk4:
            nx, ny, nz, is_good = runge_kutta(field, work, rules, px, py, pz, x, y, z)
        else:
            nx, ny, nz, is_good = direction_at(field, work, cutoff, px, py, pz, x, y, z)
            is_good = is_good and x * nx + y * ny + z * nz >= cosine
        if not is_good:
            break
        x, y, z = nx, ny, nz
        px, py, pz = px + step * x, py + step * y, pz + step * z
        if not contains(mask, px, py, pz):
            break
        taken += 1
        set_row(line[taken], px, py, pz, x, y, z)
    return taken


@kernel
def follow(field, mask, rules, seeds, directions, first):
    """The lines of a chunk of seeds: points, directions, steps of both halves, seeds."""
    work, halves, lines = workspace(field), np.empty((2, rules.maximum, 6), seeds.dtype), no_lines(seeds)
    for s in range(len(seeds)):
        px, py, pz = seeds[s]
        if not contains(mask, px, py, pz):
            continue
        number = 2 * (first + s)
        x, y, z = directions[s]
        x, y, z, is_good = direction_at(field, work, field.values.dtype.type(rules.cutoff), px, py, pz, x, y, z)
        if not is_good:
            continue
        set_row(halves[0, 0], px, py, pz, x, y, z)
        n_first, n_second = follow_half(field, mask, rules, work, number, halves[0]), 0
        if not rules.is_one_way:
            set_row(halves[1, 0], px, py, pz, -x, -y, -z)
            n_second = follow_half(field, mask, rules, work, number + 1, halves[1])
        lines = with_line(lines, rules, halves, n_first, n_second, s)
    return as_arrays(lines)
