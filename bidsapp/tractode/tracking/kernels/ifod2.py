"""iFOD2 as a compiled loop: `tracking.ifod2` for one seed at a time, with the same random numbers.

A trial ends as soon as it cannot succeed: its random number is drawn first, and what an arc must reach follows from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tractode.tracking.cones import SMALLEST_TURN
from tractode.tracking.kernels.compile import inner, kernel
from tractode.tracking.kernels.density import density, density_work
from tractode.tracking.kernels.random import draw, stream
from tractode.tracking.kernels.run import Lines, append_line, follow_in_chunks, grown
from tractode.tracking.kernels.table import Field, Mask, contains, field_arrays, mask_arrays
from tractode.tracking.march import Engine, Paths
from tractode.tracking.sampling import ComponentTable
from tractode.tracking.stopping import MaskLookup, PointLimits

if TYPE_CHECKING:
    from tractode.tracking.ifod2 import Arcs

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


@dataclass(frozen=True, eq=False)
class Loop(Engine):
    """`follow` with the field, the mask and the rules it is to be called with."""

    field: Field
    mask: Mask
    rules: Rules

    @classmethod
    def of(
        cls,
        table: ComponentTable,
        mask: MaskLookup,
        arcs: Arcs,
        axes: Float[Tensor, "3 3"],
        cutoff: float,
        max_trials: int,
        limits: PointLimits,
        is_one_way: bool,
        key: int,
    ) -> Loop:
        """The same description as `tracking.ifod2.ArcStepper` has, and the points of a line."""
        rules = Rules(
            arcs.step, float(cutoff), arcs.cap, arcs.n, arcs.sharpness, arcs.probes.ratio, max_trials,
            limits.minimum, limits.maximum, is_one_way, key, axes.contiguous().numpy(), arcs.probes.turns.numpy(),
        )  # fmt: skip
        return cls(field_arrays(table), mask_arrays(mask), rules)

    def follow(self, seeds: Float[Tensor, "s 3"], directions: Float[Tensor, "s 3"], first: int) -> Paths:
        """See `march.Engine.follow`."""

        def chunk(at: np.ndarray, towards: np.ndarray, number: int) -> Lines:
            return follow(self.field, self.mask, self.rules, at, towards, number)

        return follow_in_chunks(chunk, seeds, directions, first)


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
def on_arc(step, turn, share, px, py, pz, x, y, z, sx, sy, sz):
    """Point and direction after a share of an arc that turns from (x, y, z) towards (sx, sy, sz)."""
    bent = turn * share
    sine, halved = math.sin(bent), math.sin(0.5 * bent)
    across = 2 * halved * halved
    along, aside, cosine = step * sine / turn, step * across / turn, 1 - across
    return (
        px + along * x + aside * sx,
        py + along * y + aside * sy,
        pz + along * z + aside * sz,
        cosine * x + sine * sx,
        cosine * y + sine * sy,
        cosine * z + sine * sz,
    )


@inner
def score(field, work, rules, turn, px, py, pz, x, y, z, sx, sy, sz):
    """The product of the arc's amplitudes, squared except the last; 0 below the cutoff, else NaN out of the data.

    From the end of the arc: that is where most of them fail.
    """
    product = 1.0
    for n in range(rules.samples, 0, -1):
        ax, ay, az, bx, by, bz = on_arc(rules.step, turn, n / rules.samples, px, py, pz, x, y, z, sx, sy, sz)
        amplitude = density(field, work, ax, ay, az, bx, by, bz)
        if amplitude < rules.cutoff:
            return 0.0
        product *= amplitude if n == rules.samples else amplitude * amplitude
    return product


@inner
def next_arc(field, work, rules, start, taken, px, py, pz, x, y, z):
    """Turn and side of the next arc; the turn is −1 where the line ends. Probes first, which have negative numbers."""
    fx, fy, fz, gx, gy, gz = side_axes(rules.axes, x, y, z)
    best, needed, n_probes = 0.0, 0.0, len(rules.probes)
    for trial in range(-n_probes, rules.max_trials):
        if trial < 0:
            turn, c, s = rules.probes[trial + n_probes]
        else:
            if not best > 0:
                break
            counter = 3 * (taken * rules.max_trials + trial)
            needed = best * (rules.ratio * draw(start, counter + 2)) ** rules.sharpness
            turn = max(2 * math.asin(math.sqrt(0.5 * rules.cap * draw(start, counter))), SMALLEST_TURN)
            azimuth = TWO_PI * draw(start, counter + 1)
            c, s = math.cos(azimuth), math.sin(azimuth)
        sx, sy, sz = c * fx + s * gx, c * fy + s * gy, c * fz + s * gz
        found = score(field, work, rules, turn, px, py, pz, x, y, z, sx, sy, sz)
        if trial >= 0:
            if found > needed:
                return turn, sx, sy, sz
        elif math.isnan(found):
            break
        else:
            best = max(best, found)
    return -1.0, 0.0, 0.0, 0.0


@inner
def follow_half(field, mask, rules, work, start, line):
    """Arcs from ``line[0]`` (position and direction) until the line ends; how many points there are after the first."""
    px, py, pz, x, y, z = line[0]
    taken = 0
    while taken < rules.maximum - 1:
        turn, sx, sy, sz = next_arc(field, work, rules, start, taken, px, py, pz, x, y, z)
        if turn < 0:
            break
        reached = 0
        for n in range(1, rules.samples + 1):
            ax, ay, az, bx, by, bz = on_arc(rules.step, turn, n / rules.samples, px, py, pz, x, y, z, sx, sy, sz)
            if not contains(mask, ax, ay, az):
                break
            reached = n
            row = line[taken + 1]
            row[0], row[1], row[2], row[3], row[4], row[5] = ax, ay, az, bx, by, bz
        if reached:
            taken += 1
        if reached < rules.samples:
            break
        px, py, pz, x, y, z = line[taken]
        norm = 1 / math.sqrt(x * x + y * y + z * z)
        x, y, z = x * norm, y * norm, z * norm
    return taken


@inner
def first_direction(field, work, rules, start, px, py, pz, x, y, z):
    """The given direction where the amplitude reaches the cutoff; else the first random one where it does."""
    for attempt in range(rules.max_trials + 1):
        amplitude = density(field, work, px, py, pz, x, y, z)
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
    """The lines of a chunk of seeds: points, directions, points of both halves, seeds."""
    work = density_work(field)
    halves = np.empty((2, rules.maximum, 6), seeds.dtype)
    points, towards = np.empty((4096, 3), seeds.dtype), np.empty((4096, 3), seeds.dtype)
    steps, found, used = np.empty((3, len(seeds)), np.int64), 0, 0
    reached = np.zeros(2, np.int64)
    for s in range(len(seeds)):
        px, py, pz = seeds[s]
        if not contains(mask, px, py, pz):
            continue
        start = stream(rules.key, 2 * (first + s))
        x, y, z = directions[s]
        x, y, z, is_good = first_direction(field, work, rules, start, px, py, pz, x, y, z)
        if not is_good:
            continue
        for half in range(1 if rules.is_one_way else 2):
            origin, sign = halves[half, 0], 1 - 2 * half
            origin[0], origin[1], origin[2], origin[3], origin[4], origin[5] = px, py, pz, sign * x, sign * y, sign * z
            reached[half] = follow_half(
                field, mask, rules, work, stream(rules.key, 2 * (first + s) + half), halves[half]
            )
        n_first, n_second = reached[0], 0
        if not rules.is_one_way:
            n_second = min(reached[1], max(rules.maximum - 1 - n_first, 1))
        n = 1 + n_first + n_second
        if n < max(rules.minimum, 2):
            continue
        points, towards = grown(points, used, used + n), grown(towards, used, used + n)
        used = append_line(points, towards, used, halves, n_first, n_second)
        steps[0, found], steps[1, found], steps[2, found] = n_first, n_second, s
        found += 1
    return points[:used], towards[:used], steps[0, :found], steps[1, :found], steps[2, :found]
