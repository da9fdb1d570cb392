"""PTT as a compiled loop: `tracking.ptt` for one seed at a time, with the same random numbers."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from tractode.ops.compile import inner, kernel
from tractode.tracking.kernels.polynomial import amplitude, spread, workspace
from tractode.tracking.kernels.random import draw, stream
from tractode.tracking.kernels.run import Loop, as_arrays, no_lines, set_row, with_line
from tractode.tracking.kernels.sdstream import direction_at, unit
from tractode.tracking.kernels.table import contains, field_arrays, interpolate, mask_arrays
from tractode.tracking.march import March
from tractode.tracking.ptt import DRAWS, N_ESTIMATES, N_TRIES, ArcStepper, unit_axes


class Rules(NamedTuple):
    """Step (mm), greatest curvature (1/mm), cutoff, exponent, probe (see `ptt.Probe`), limits in points, halves, key.

    ``axes`` are the grid's unit axes, three numbers each; then draws to estimate the greatest support, tries to be
    accepted, random numbers set aside for a step.
    """

    step: float
    curvature: float
    cutoff: float
    exponent: float
    spacing: float
    quality: int
    n_around: int
    radius: float
    minimum: int
    maximum: int
    is_one_way: bool
    key: int
    axes: tuple[float, ...]
    n_estimates: int
    n_tries: int
    n_draws: int


def loop(march: March, stepper: ArcStepper) -> Loop:
    """`follow`, with the field, the mask and the rules that the torch loop and its stepper have."""
    probe, limits = stepper.probe, march.limits
    axes = tuple(unit_axes(stepper.table.grid).ravel().tolist())
    rules = Rules(
        stepper.step, stepper.curvature, stepper.cutoff, stepper.exponent, probe.spacing, probe.quality, probe.count,
        probe.radius, limits.minimum, limits.maximum, march.one_way, stepper.key, axes, N_ESTIMATES, N_TRIES, DRAWS,
    )  # fmt: skip
    return Loop(partial(follow, field_arrays(stepper.table), mask_arrays(stepper.mask), rules), march)


@inner
def cross(ax, ay, az, bx, by, bz):
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@inner
def transport(frame, k1, k2, length, out):
    """The frame (position, tangent, normal, binormal: 12 numbers) further along a curve of constant k₁, k₂."""
    kind = out.dtype.type
    half = kind(0.5) * length * length
    bend, turn = kind(1) - half * (k1 * k1 + k2 * k2), kind(1) - half * k2 * k2
    for a in range(3):
        across = k1 * frame[6 + a] + k2 * frame[9 + a]
        out[a] = frame[a] + length * frame[3 + a] + half * across
        tangent = bend * frame[3 + a] + length * across
        binormal = turn * frame[9 + a] - length * k2 * frame[3 + a] - half * k1 * k2 * frame[6 + a]
        out[3 + a], out[9 + a] = tangent, binormal
    tx, ty, tz = unit(out[3], out[4], out[5])
    nx, ny, nz = cross(out[9], out[10], out[11], tx, ty, tz)
    nx, ny, nz = unit(nx, ny, nz)
    bx, by, bz = cross(tx, ty, tz, nx, ny, nz)
    out[3], out[4], out[5], out[6], out[7], out[8], out[9], out[10], out[11] = tx, ty, tz, nx, ny, nz, bx, by, bz


@inner
def amplitude_at(field, work, rules, frame):
    """The amplitude along the tangent, below the cutoff and outside the data 0; the mean of the points around."""
    columns, grid, powers = work
    kind = grid.dtype.type
    total = kind(0)
    for point in range(rules.n_around):
        turn = 2 * math.pi * point / rules.n_around
        across, along = kind(rules.radius * math.cos(turn)), kind(rules.radius * math.sin(turn))
        px = frame[0] + across * frame[6] + along * frame[9]
        py = frame[1] + across * frame[7] + along * frame[10]
        pz = frame[2] + across * frame[8] + along * frame[11]
        if interpolate(field, px, py, pz, columns):
            spread(field.starts, columns, grid)
            value = amplitude(field.starts, grid, powers, frame[3], frame[4], frame[5])
            if value > kind(rules.cutoff):
                total += value
    return total / kind(rules.n_around)


@inner
def support(field, work, rules, frame, probe, here, k1, k2):
    """The mean amplitude along the probe; ``probe`` is scratch."""
    kind = probe.dtype.type
    total = here
    probe[:] = frame
    for _ in range(rules.quality - 1):
        transport(probe, k1, k2, kind(rules.spacing), probe)
        total += amplitude_at(field, work, rules, probe)
    return total / kind(rules.quality)


@inner
def curvatures(rules, random, counter, kind):
    radius, angle = rules.curvature * math.sqrt(draw(random, counter)), 2 * math.pi * draw(random, counter + 1)
    return kind(radius * math.cos(angle)), kind(radius * math.sin(angle))


@inner
def drawn(field, work, rules, frame, probe, random, counter):
    """Curvatures by rejection sampling, and whether there were any."""
    kind = probe.dtype.type
    here = amplitude_at(field, work, rules, frame)
    greatest = kind(0)
    for _ in range(rules.n_estimates):
        k1, k2 = curvatures(rules, random, counter, kind)
        greatest = max(greatest, support(field, work, rules, frame, probe, here, k1, k2))
        counter += 2
    if greatest <= 0:
        return kind(0), kind(0), False
    exponent = kind(rules.exponent)
    bound = (kind(2) * greatest) ** exponent
    for _ in range(rules.n_tries):
        k1, k2 = curvatures(rules, random, counter, kind)
        found = support(field, work, rules, frame, probe, here, k1, k2) ** exponent
        if kind(draw(random, counter + 2)) * bound < found:
            return k1, k2, True
        counter += 3
    return kind(0), kind(0), False


@inner
def set_frame(axes, frame, px, py, pz, x, y, z):
    """The first normal is the grid's axis most across the tangent, made perpendicular."""
    kind = frame.dtype.type
    least, best = kind(2), 0
    for a in range(3):
        along = abs(kind(axes[3 * a]) * x + kind(axes[3 * a + 1]) * y + kind(axes[3 * a + 2]) * z)
        if along < least:
            least, best = along, a
    ax, ay, az = kind(axes[3 * best]), kind(axes[3 * best + 1]), kind(axes[3 * best + 2])
    along = ax * x + ay * y + az * z
    nx, ny, nz = unit(ax - along * x, ay - along * y, az - along * z)
    bx, by, bz = cross(x, y, z, nx, ny, nz)
    frame[0], frame[1], frame[2], frame[3], frame[4], frame[5] = px, py, pz, x, y, z
    frame[6], frame[7], frame[8], frame[9], frame[10], frame[11] = nx, ny, nz, bx, by, bz


@inner
def follow_half(field, mask, rules, work, number, line):
    """Steps from ``line[0]`` (position and direction) until the line ends; how many there are."""
    amplitudes, frames = work
    frame, probe, random = frames[0], frames[1], stream(rules.key, number)
    px, py, pz, x, y, z = line[0]
    set_frame(rules.axes, frame, px, py, pz, x, y, z)
    taken = 0
    while taken < rules.maximum - 1:
        k1, k2, is_drawn = drawn(field, amplitudes, rules, frame, probe, random, rules.n_draws * taken)
        if not is_drawn:
            break
        transport(frame, k1, k2, frame.dtype.type(rules.step), frame)
        if not contains(mask, frame[0], frame[1], frame[2]):
            break
        taken += 1
        line[taken, :] = frame[:6]
    return taken


@kernel
def follow(field, mask, rules, seeds, directions, first):
    """The lines of a chunk of seeds: points, directions, steps of both halves, seeds."""
    work, halves, lines = (
        (workspace(field), np.empty((2, 12), seeds.dtype)),
        np.empty((2, rules.maximum, 6), seeds.dtype),
        no_lines(seeds),
    )
    for s in range(len(seeds)):
        px, py, pz = seeds[s]
        if not contains(mask, px, py, pz):
            continue
        number = 2 * (first + s)
        x, y, z = directions[s]
        x, y, z, is_good = direction_at(field, work[0], seeds.dtype.type(rules.cutoff), px, py, pz, x, y, z)
        if not is_good:
            continue
        set_row(halves[0, 0], px, py, pz, x, y, z)
        n_first, n_second = follow_half(field, mask, rules, work, number, halves[0]), 0
        if not rules.is_one_way:
            set_row(halves[1, 0], px, py, pz, -x, -y, -z)
            n_second = follow_half(field, mask, rules, work, number + 1, halves[1])
        lines = with_line(lines, rules, halves, n_first, n_second, s)
    return as_arrays(lines)
