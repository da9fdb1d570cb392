"""EuDX as a compiled loop: `tracking.eudx` for one seed at a time."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tractode.ops.compile import inner, kernel
from tractode.tracking.eudx import VoteMarch
from tractode.tracking.kernels.run import Loop, as_arrays, no_lines, set_row, with_line
from tractode.tracking.kernels.table import affine_array, contains, lower_corner, mask_arrays, to_voxel
from tractode.tracking.sampling import ComponentTable


class Peaks(NamedTuple):
    """The table of `eudx.table_of` as arrays: ``values[row, k]`` is direction and amplitude of the k-th peak."""

    values: Float[np.ndarray, "r k 4"]
    rows: Int[np.ndarray, "i1 j1 k1"]
    inverse: Float[np.ndarray, "3 4"]


class Rules(NamedTuple):
    """Step (mm), least cosine of a vote, cutoff, least weight of the votes, least and greatest number of points, halves."""

    step: float
    cosine: float
    cutoff: float
    min_weight: float
    minimum: int
    maximum: int
    is_one_way: bool


def peak_arrays(table: ComponentTable) -> Peaks:
    """Copies the values so that each peak's four numbers lie together."""
    values = table.values.detach().unflatten(1, (4, -1)).mT.contiguous().numpy()
    return Peaks(values, table.rows.contiguous().numpy(), affine_array(table.grid.inverse_affine))


def loop(march: VoteMarch) -> Loop:
    """`follow`, with the peaks, the mask and the rules that the torch loop has."""
    at, limits = march.stepper, march.limits
    rules = Rules(at.step, at.cosine, at.cutoff, at.min_weight, limits.minimum, limits.maximum, march.one_way)
    return Loop(partial(follow, peak_arrays(at.table), mask_arrays(at.mask), rules), march)


@inner
def nearest_peak(peaks, cutoff, x, y, z):
    """Of one voxel's peaks above the cutoff, the nearest to a direction, and the cosine between them (−1: none)."""
    kind = peaks.dtype.type
    nearness, best, side = kind(-1), 0, kind(1)
    for n in range(len(peaks)):
        if peaks[n, 3] > cutoff:
            cosine = x * peaks[n, 0] + y * peaks[n, 1] + z * peaks[n, 2]
            if abs(cosine) > nearness:
                nearness, best = abs(cosine), n
                side = kind(-1) if cosine < 0 else kind(1)
    return side * peaks[best, 0], side * peaks[best, 1], side * peaks[best, 2], nearness


@inner
def vote(field, rules, px, py, pz, x, y, z):
    """The direction that the eight voxels around a point agree on, and whether enough of them do."""
    i, j, k = to_voxel(field.inverse, px, py, pz)
    rows, values = field.rows, field.values
    ni, nj, nk = rows.shape[0] - 1, rows.shape[1] - 1, rows.shape[2] - 1
    if not (i >= -0.5 and i < ni - 0.5 and j >= -0.5 and j < nj - 0.5 and k >= -0.5 and k < nk - 0.5):
        return x, y, z, False
    i0, u = lower_corner(i, ni)
    j0, v = lower_corner(j, nj)
    k0, w = lower_corner(k, nk)
    kind = values.dtype.type
    cosine, cutoff = kind(rules.cosine), kind(rules.cutoff)
    dx, dy, dz, total = kind(0), kind(0), kind(0), kind(0)
    for corner in range(8):
        a, b, c = corner >> 2, (corner >> 1) & 1, corner & 1
        row = rows[i0 + a, j0 + b, k0 + c]
        if row == 0:
            continue
        weight = kind((u if a else 1 - u) * (v if b else 1 - v) * (w if c else 1 - w))
        qx, qy, qz, nearness = nearest_peak(values[row], cutoff, x, y, z)
        if nearness >= cosine:
            total += weight
            dx, dy, dz = dx + weight * qx, dy + weight * qy, dz + weight * qz
    if total < kind(rules.min_weight):
        return x, y, z, False
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    return dx / length, dy / length, dz / length, True


@inner
def start(field, rules, px, py, pz, x, y, z):
    """The peak of a seed's nearest voxel nearest to a direction, and whether the voxels around agree on a way along it."""
    i, j, k = to_voxel(field.inverse, px, py, pz)
    i, j, k = math.floor(i + 0.5), math.floor(j + 0.5), math.floor(k + 0.5)
    rows = field.rows
    if not (0 <= i < rows.shape[0] - 1 and 0 <= j < rows.shape[1] - 1 and 0 <= k < rows.shape[2] - 1):
        return x, y, z, False
    kind = field.values.dtype.type
    peaks = field.values[rows[int(i), int(j), int(k)]]
    x, y, z, nearness = nearest_peak(peaks, kind(rules.cutoff), x, y, z)
    if nearness < 0:
        return x, y, z, False
    return x, y, z, vote(field, rules, px, py, pz, x, y, z)[3]


@inner
def follow_half(field, mask, rules, line):
    """Steps from ``line[0]`` (position and direction) until the line ends; how many there are."""
    step = line.dtype.type(rules.step)
    px, py, pz, x, y, z = line[0]
    taken = 0
    while taken < rules.maximum - 1:
        x, y, z, is_good = vote(field, rules, px, py, pz, x, y, z)
        if not is_good:
            break
        px, py, pz = px + step * x, py + step * y, pz + step * z
        if not contains(mask, px, py, pz):
            break
        taken += 1
        set_row(line[taken], px, py, pz, x, y, z)
    return taken


@kernel
def follow(field, mask, rules, seeds, directions, first):
    """The lines of a chunk of seeds: points, directions, steps of both halves, seeds."""
    halves, lines = np.empty((2, rules.maximum, 6), seeds.dtype), no_lines(seeds)
    for s in range(len(seeds)):
        px, py, pz = seeds[s]
        x, y, z = directions[s]
        if not contains(mask, px, py, pz):
            continue
        x, y, z, is_good = start(field, rules, px, py, pz, x, y, z)
        if not is_good:
            continue
        set_row(halves[0, 0], px, py, pz, x, y, z)
        n_first, n_second = follow_half(field, mask, rules, halves[0]), 0
        if not rules.is_one_way:
            # The second half is compared with the first half's first step, where there is one.
            if n_first > 0:
                _, _, _, x, y, z = halves[0, 1]
            set_row(halves[1, 0], px, py, pz, -x, -y, -z)
            n_second = follow_half(field, mask, rules, halves[1])
        used = lines[4]
        lines = with_line(lines, rules, halves, n_first, n_second, s)
        if lines[4] > used:  # the derivative needs the peak at the seed
            for axis in range(3):
                lines[1][used + n_first, axis] = halves[0, 0, 3 + axis]
    return as_arrays(lines)
