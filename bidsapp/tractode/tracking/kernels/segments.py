"""Compiled loops behind `tractode.tracking.segments`: streamlines cut at the walls of voxels, pieces given to fixels."""

from __future__ import annotations

from math import floor, sqrt

import numpy as np
from numpy.typing import NDArray

from tractode.tracking.kernels.compile import kernel

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


@kernel
def cut_at_walls(
    points: Floats,
    offsets: Integers,
    inverse: Floats,
    shape: Integers,
    starts: Integers,
    voxel: Integers,
    length: Floats,
    direction: Floats,
    fills: bool,
) -> None:
    """Pieces of every streamline between the walls of voxels, joined while they stay in one voxel.

    ``inverse`` takes RAS+ mm to voxel indices. Without ``fills`` only the number of stays of line ``s`` is written, to
    ``starts[s]``; with it, ``starts`` says where each line's entries begin and the three arrays are filled. Outside the
    grid nothing is recorded.
    """
    for line in range(len(offsets) - 1):
        entry = starts[line] if fills else 0
        current, total, vx, vy, vz = -1, 0.0, 0.0, 0.0, 0.0
        for p in range(offsets[line], offsets[line + 1] - 1):
            dx = float(points[p + 1, 0]) - float(points[p, 0])
            dy = float(points[p + 1, 1]) - float(points[p, 1])
            dz = float(points[p + 1, 2]) - float(points[p, 2])
            size = sqrt(dx * dx + dy * dy + dz * dz)
            if size == 0.0:
                continue
            # Half a voxel further, so that walls are at whole numbers.
            ax = inverse[0, 0] * points[p, 0] + inverse[0, 1] * points[p, 1] + inverse[0, 2] * points[p, 2]
            ay = inverse[1, 0] * points[p, 0] + inverse[1, 1] * points[p, 1] + inverse[1, 2] * points[p, 2]
            az = inverse[2, 0] * points[p, 0] + inverse[2, 1] * points[p, 1] + inverse[2, 2] * points[p, 2]
            ax, ay, az = ax + inverse[0, 3] + 0.5, ay + inverse[1, 3] + 0.5, az + inverse[2, 3] + 0.5
            sx = inverse[0, 0] * dx + inverse[0, 1] * dy + inverse[0, 2] * dz
            sy = inverse[1, 0] * dx + inverse[1, 1] * dy + inverse[1, 2] * dz
            sz = inverse[2, 0] * dx + inverse[2, 1] * dy + inverse[2, 2] * dz
            # Share of the segment at which it meets the next wall of each axis, and from wall to wall.
            tx = (floor(ax) + 1 - ax) / sx if sx > 0 else ((floor(ax) - ax) / sx if sx < 0 else 2.0)
            ty = (floor(ay) + 1 - ay) / sy if sy > 0 else ((floor(ay) - ay) / sy if sy < 0 else 2.0)
            tz = (floor(az) + 1 - az) / sz if sz > 0 else ((floor(az) - az) / sz if sz < 0 else 2.0)
            gx = 1 / abs(sx) if sx != 0 else 0.0
            gy = 1 / abs(sy) if sy != 0 else 0.0
            gz = 1 / abs(sz) if sz != 0 else 0.0
            t = 0.0
            while t < 1.0:
                end = min(min(tx, ty), min(tz, 1.0))
                if end > t:
                    # The voxel of the piece's middle: a wall belongs to neither side, so rounding cannot misplace it.
                    middle = 0.5 * (t + end)
                    i, j, k = floor(ax + middle * sx), floor(ay + middle * sy), floor(az + middle * sz)
                    inside = 0 <= i < shape[0] and 0 <= j < shape[1] and 0 <= k < shape[2]
                    here = (int(i) * shape[1] + int(j)) * shape[2] + int(k) if inside else -1
                    if here != current:
                        if current >= 0 and total > 0:
                            if fills:
                                norm = sqrt(vx * vx + vy * vy + vz * vz)
                                scale = 1 / norm if norm > 0 else 0.0
                                voxel[entry], length[entry] = current, total
                                direction[entry, 0] = vx * scale
                                direction[entry, 1] = vy * scale
                                direction[entry, 2] = vz * scale
                            entry += 1
                        current, total, vx, vy, vz = here, 0.0, 0.0, 0.0, 0.0
                    part = end - t
                    total += part * size
                    vx, vy, vz = vx + part * dx, vy + part * dy, vz + part * dz
                    t = end
                if tx <= end:
                    tx += gx
                if ty <= end:
                    ty += gy
                if tz <= end:
                    tz += gz
        if current >= 0 and total > 0:
            if fills:
                norm = sqrt(vx * vx + vy * vy + vz * vz)
                scale = 1 / norm if norm > 0 else 0.0
                voxel[entry], length[entry] = current, total
                direction[entry, 0], direction[entry, 1], direction[entry, 2] = vx * scale, vy * scale, vz * scale
            entry += 1
        if not fills:
            starts[line] = entry


@kernel
def nearest_fixel(
    voxel: Integers,
    direction: Floats,
    first: Integers,
    count: Integers,
    axes: Floats,
    least_cosine: float,
    found: Integers,
) -> None:
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
