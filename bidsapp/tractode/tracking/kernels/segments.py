"""Compiled loops behind `tractode.tracking.segments`: streamlines cut at the walls of voxels, pieces given to fixels."""

from __future__ import annotations

from math import floor, sqrt

import numpy as np

from tractode.ops.compile import inner, kernel


@inner
def to_wall(position, move):
    """Share of a move at which a coordinate meets its next whole number; beyond 1 where it does not."""
    if move > 0:
        return (floor(position) + 1 - position) / move
    return (floor(position) - position) / move if move < 0 else 2.0


@inner
def ended(stay, entry, voxel, length, direction, fills):
    """Write a finished stay (length, chord, voxel) unless it lies outside the grid; the next entry's number."""
    if stay[4] < 0:
        return entry
    if fills:
        norm = sqrt(stay[1] * stay[1] + stay[2] * stay[2] + stay[3] * stay[3])
        voxel[entry], length[entry] = int(stay[4]), stay[0]
        for c in range(3):
            direction[entry, c] = stay[1 + c] / norm if norm > 0 else 0.0
    return entry + 1


@inner
def voxel_at(start, move, share, shape):
    """The ravelled voxel a share along a move, −1 outside; half voxels were added, so that walls are at whole numbers."""
    i, j, k = floor(start[0] + share * move[0]), floor(start[1] + share * move[1]), floor(start[2] + share * move[2])
    if 0 <= i < shape[0] and 0 <= j < shape[1] and 0 <= k < shape[2]:
        return (int(i) * shape[1] + int(j)) * shape[2] + int(k)
    return -1


@inner
def cut_segment(start, move, world, wall, shape, stay, entry, voxel, length, direction, fills):
    """Lengthen the stay by the pieces of one segment, and end it wherever the voxel changes; the next entry's number."""
    size = sqrt(world[0] * world[0] + world[1] * world[1] + world[2] * world[2])
    t = 0.0
    while t < 1.0:
        end = min(wall[0], wall[1], wall[2], 1.0)
        if end > t:
            # The voxel of the piece's middle: a wall belongs to neither side, so rounding cannot misplace it.
            here = voxel_at(start, move, 0.5 * (t + end), shape)
            if here != stay[4]:
                entry = ended(stay, entry, voxel, length, direction, fills)
                stay[:4], stay[4] = 0, here
            stay[0] += (end - t) * size
            for c in range(3):
                stay[1 + c] += (end - t) * world[c]
            t = end
        for c in range(3):
            if wall[c] <= end:
                wall[c] += 1 / abs(move[c])
    return entry


@kernel
def cut_at_walls(points, offsets, inverse, shape, starts, voxel, length, direction, fills):
    """Pieces of every streamline between the walls of voxels, joined while they stay in one voxel.

    ``inverse`` takes RAS+ mm to voxel indices. Without ``fills`` only the number of stays of line ``s`` is written, to
    ``starts[s]``; with it, ``starts`` says where each line's entries begin and the three arrays are filled. Outside the
    grid nothing is recorded.
    """
    start, move, world, wall = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    stay = np.empty(5)  # length, chord, voxel
    for line in range(len(offsets) - 1):
        entry = starts[line] if fills else 0
        stay[:4], stay[4] = 0, -1
        for p in range(offsets[line], offsets[line + 1] - 1):
            for c in range(3):
                world[c] = float(points[p + 1, c]) - float(points[p, c])
            if world[0] == 0 and world[1] == 0 and world[2] == 0:
                continue
            for c in range(3):
                row = inverse[c]
                start[c] = row[0] * points[p, 0] + row[1] * points[p, 1] + row[2] * points[p, 2] + row[3] + 0.5
                move[c] = row[0] * world[0] + row[1] * world[1] + row[2] * world[2]
                wall[c] = to_wall(start[c], move[c])
            entry = cut_segment(start, move, world, wall, shape, stay, entry, voxel, length, direction, fills)
        entry = ended(stay, entry, voxel, length, direction, fills)
        if not fills:
            starts[line] = entry


@kernel
def nearest_fixel(voxel, direction, first, count, axes, least_cosine, found):
    """For each stay, the fixel of its voxel whose axis is nearest to its direction; −1 where none is near enough."""
    for entry in range(len(voxel)):
        best, which = least_cosine, -1
        start = first[voxel[entry]]
        for fixel in range(start, start + count[voxel[entry]]):
            cosine = abs(
                axes[fixel, 0] * direction[entry, 0]
                + axes[fixel, 1] * direction[entry, 1]
                + axes[fixel, 2] * direction[entry, 2]
            )
            if cosine > best:
                best, which = cosine, fixel
        found[entry] = which


@kernel
def nearest_axis(direction, axes, reach, found):
    """The index of the axis nearest to each direction, among axes on a spiral with ``z = 1 − (i + ½) / n``.

    Only those within ``reach`` in z are looked at: at least the largest distance of any direction from its axis, radians.
    """
    n = len(axes)
    for entry in range(len(direction)):
        x, y, z = direction[entry, 0], direction[entry, 1], direction[entry, 2]
        first = max(0, int(n * (1 - abs(z) - reach)) - 1)
        last = min(n, int(n * (1 - abs(z) + reach)) + 2)
        best, which = -1.0, first
        for axis in range(first, last):
            cosine = abs(axes[axis, 0] * x + axes[axis, 1] * y + axes[axis, 2] * z)
            if cosine > best:
                best, which = cosine, axis
        found[entry] = which
