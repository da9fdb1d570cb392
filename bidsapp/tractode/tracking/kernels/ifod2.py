"""iFOD2 as a compiled loop: `tracking.ifod2` for one seed at a time, with the same random numbers.

An arc is looked at from its end, and given up at the first amplitude below the cutoff.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tractode.ops.compile import inner, kernel
from tractode.tracking.cones import SMALLEST_TURN
from tractode.tracking.ifod2 import ArcStepper
from tractode.tracking.kernels.density import density, density_work
from tractode.tracking.kernels.random import draw, stream
from tractode.tracking.kernels.run import Loop, as_arrays, no_lines, set_row, with_line
from tractode.tracking.kernels.table import contains, field_arrays, mask_arrays
from tractode.tracking.march import March

TWO_PI = 2 * math.pi


class Rules(NamedTuple):
    """What `tracking.ifod2.Arcs` says, as plain numbers and arrays, and the points of a line."""

    step: float
    cutoff: float
    cap: float  # 1 − cos of the largest turn
    samples: int
    sharpness: float
    ratio: float
    max_trials: int
    minimum: int
    maximum: int
    is_one_way: bool
    key: int
    axes: Float[np.ndarray, "3 3"]
    probes: Float[np.ndarray, "k 3"]  # turn, cosine and sine of the azimuth


def loop(march: March, stepper: ArcStepper) -> Loop:
    """`follow`, with the field, the mask and the rules that the torch loop and its stepper have."""
    arcs, limits = stepper.arcs, march.limits
    rules = Rules(
        arcs.step, float(stepper.cutoff), arcs.cap, arcs.n, arcs.sharpness, arcs.probes.ratio, stepper.max_trials,
        limits.minimum, limits.maximum, march.one_way, stepper.key, stepper.axes.contiguous().numpy(),
        arcs.probes.turns.numpy(),
    )  # fmt: skip
    return Loop(partial(follow, field_arrays(stepper.table), mask_arrays(stepper.mask), rules), march)


@inner
def side_axes(axes, x, y, z):
    """Two unit vectors across a direction, turning with the axes of the grid (see `ifod2.side_axes`)."""
    a = axes[0, 0] * x + axes[1, 0] * y + axes[2, 0] * z
    b = axes[0, 1] * x + axes[1, 1] * y + axes[2, 1] * z
    c = axes[0, 2] * x + axes[1, 2] * y + axes[2, 2] * z
    sign = 1.0 if c >= 0 else -1.0
    scale = -1.0 / (sign + c)
    mixed = a * b * scale
    fa, fb, fc = 1.0 + sign * a * a * scale, sign * mixed, -sign * a
    ga, gb, gc = mixed, sign + b * b * scale, -b
    return (
        axes[0, 0] * fa + axes[0, 1] * fb + axes[0, 2] * fc,
        axes[1, 0] * fa + axes[1, 1] * fb + axes[1, 2] * fc,
        axes[2, 0] * fa + axes[2, 1] * fb + axes[2, 2] * fc,
        axes[0, 0] * ga + axes[0, 1] * gb + axes[0, 2] * gc,
        axes[1, 0] * ga + axes[1, 1] * gb + axes[1, 2] * gc,
        axes[2, 0] * ga + axes[2, 1] * gb + axes[2, 2] * gc,
    )


@inner
def bend(arc, step, turn):
    """``arc[n]``: how far along and aside (mm) the points of an arc lie, and cosine and sine of the turn there.

    Sines of the multiples of half a point's turn come by the addition theorem, so that one pair is computed.
    """
    half = turn / (2 * len(arc))
    sine, cosine, radius = math.sin(half), math.cos(half), step / turn
    s, c = 0.0, 1.0
    for n in range(len(arc)):
        s, c = s * cosine + c * sine, c * cosine - s * sine
        across, whole = 2 * s * s, 2 * s * c
        arc[n, 0], arc[n, 1], arc[n, 2], arc[n, 3] = radius * whole, radius * across, 1 - across, whole


@inner
def workspace(field, rules):
    """Scratch of one thread: of `density`, the probes' arcs, and one arc."""
    probes = np.empty((len(rules.probes), rules.samples, 4))
    for probe in range(len(probes)):
        bend(probes[probe], rules.step, rules.probes[probe, 0])
    return density_work(field), probes, np.empty((rules.samples, 4))


@inner
def on_arc(place, px, py, pz, x, y, z, sx, sy, sz):
    """Point and direction at a place of an arc that turns from (x, y, z) towards (sx, sy, sz)."""
    along, aside, cosine, sine = place
    return (
        px + along * x + aside * sx,
        py + along * y + aside * sy,
        pz + along * z + aside * sz,
        cosine * x + sine * sx,
        cosine * y + sine * sy,
        cosine * z + sine * sz,
    )


@inner
def score(field, work, cutoff, arc, px, py, pz, x, y, z, sx, sy, sz):
    """The product of the arc's amplitudes, squared except the last; 0 below the cutoff, else NaN out of the data.

    From the end of the arc: that is where most of them fail.
    """
    product, last = 1.0, len(arc) - 1
    for n in range(last, -1, -1):
        ax, ay, az, bx, by, bz = on_arc(arc[n], px, py, pz, x, y, z, sx, sy, sz)
        amplitude = density(field, work, ax, ay, az, bx, by, bz)
        if amplitude < cutoff:
            return 0.0
        product *= amplitude if n == last else amplitude * amplitude
    return product


@inner
def next_arc(field, work, rules, start, taken, px, py, pz, x, y, z):
    """The side that the next arc, the last of the workspace, turns to, and whether there is one."""
    amplitudes, probes, arc = work
    fx, fy, fz, gx, gy, gz = side_axes(rules.axes, x, y, z)
    best = 0.0
    for probe in range(len(rules.probes)):
        _, c, s = rules.probes[probe]
        sx, sy, sz = c * fx + s * gx, c * fy + s * gy, c * fz + s * gz
        found = score(field, amplitudes, rules.cutoff, probes[probe], px, py, pz, x, y, z, sx, sy, sz)
        if math.isnan(found):
            return 0.0, 0.0, 0.0, False
        best = max(best, found)
    if best > 0:
        for trial in range(rules.max_trials):
            counter = 3 * (taken * rules.max_trials + trial)
            bend(arc, rules.step, max(2 * math.asin(math.sqrt(0.5 * rules.cap * draw(start, counter))), SMALLEST_TURN))
            azimuth = TWO_PI * draw(start, counter + 1)
            c, s = math.cos(azimuth), math.sin(azimuth)
            sx, sy, sz = c * fx + s * gx, c * fy + s * gy, c * fz + s * gz
            found = score(field, amplitudes, rules.cutoff, arc, px, py, pz, x, y, z, sx, sy, sz)
            # A score of 0 needs no look at what was needed.
            if found > 0 and found > best * (rules.ratio * draw(start, counter + 2)) ** rules.sharpness:
                return sx, sy, sz, True
    return 0.0, 0.0, 0.0, False


@inner
def follow_half(field, mask, rules, work, number, line):
    """Arcs from ``line[0]`` (position and direction) until the line ends; how many points there are after the first."""
    start, arc = stream(rules.key, number), work[2]
    px, py, pz, x, y, z = line[0]
    taken = 0
    while taken < rules.maximum - 1:
        sx, sy, sz, is_found = next_arc(field, work, rules, start, taken, px, py, pz, x, y, z)
        if not is_found:
            break
        reached = 0
        for n in range(len(arc)):
            ax, ay, az, bx, by, bz = on_arc(arc[n], px, py, pz, x, y, z, sx, sy, sz)
            if not contains(mask, ax, ay, az):
                break
            reached = n + 1
            set_row(line[taken + 1], ax, ay, az, bx, by, bz)
        if reached:
            taken += 1
        if reached < len(arc):
            break
        px, py, pz, x, y, z = line[taken]
        norm = 1 / math.sqrt(x * x + y * y + z * z)
        x, y, z = x * norm, y * norm, z * norm
    return taken


@inner
def first_direction(field, rules, work, number, px, py, pz, x, y, z):
    """The given direction where the amplitude reaches the cutoff; else the first random one where it does."""
    start = stream(rules.key, number)
    for attempt in range(rules.max_trials + 1):
        amplitude = density(field, work[0], px, py, pz, x, y, z)
        if math.isnan(amplitude):
            break
        if amplitude >= rules.cutoff:
            return x, y, z, True
        c = 1 - 2 * draw(start, -1 - 2 * attempt)
        azimuth = TWO_PI * draw(start, -2 - 2 * attempt)
        s = math.sqrt(1 - c * c)
        u, v = s * math.cos(azimuth), s * math.sin(azimuth)
        axes = rules.axes
        x = u * axes[0, 0] + v * axes[0, 1] + c * axes[0, 2]
        y = u * axes[1, 0] + v * axes[1, 1] + c * axes[1, 2]
        z = u * axes[2, 0] + v * axes[2, 1] + c * axes[2, 2]
    return x, y, z, False


@kernel
def follow(field, mask, rules, seeds, directions, first):
    """The lines of a chunk of seeds: points, directions, steps of both halves, seeds."""
    work, halves, lines = workspace(field, rules), np.empty((2, rules.maximum, 6), seeds.dtype), no_lines(seeds)
    for s in range(len(seeds)):
        px, py, pz = seeds[s]
        if not contains(mask, px, py, pz):
            continue
        number = 2 * (first + s)
        x, y, z = directions[s]
        x, y, z, is_good = first_direction(field, rules, work, number, px, py, pz, x, y, z)
        if not is_good:
            continue
        set_row(halves[0, 0], px, py, pz, x, y, z)
        n_first, n_second = follow_half(field, mask, rules, work, number, halves[0]), 0
        if not rules.is_one_way:
            set_row(halves[1, 0], px, py, pz, -x, -y, -z)
            n_second = follow_half(field, mask, rules, work, number + 1, halves[1])
        lines = with_line(lines, rules, halves, n_first, n_second, s)
    return as_arrays(lines)
