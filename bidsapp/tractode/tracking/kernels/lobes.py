"""The compiled loop behind `tractode.tracking.fixels`: amplitudes on a set of axes divided into lobes by steepest ascent."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tractode.tracking.kernels.compile import kernel

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


@kernel
def divide(
    amplitudes: Floats,
    axes: Floats,
    neighbours: Integers,
    least_peak: float,
    count: Integers,
    mean: Floats,
    integral: Floats,
) -> None:
    """For each row of amplitudes: the number of lobes, their mean axes and the sums of their amplitudes, largest first.

    Every axis belongs to the peak that steps to its largest neighbour lead to; equal neighbours: the first. ``mean`` and
    ``integral`` have room for as many lobes as are kept.
    """
    n, most = len(axes), integral.shape[1]
    top = np.empty(n, np.int64)
    sums = np.empty((n, 4))
    for row in range(len(amplitudes)):
        values = amplitudes[row]
        for a in range(n):
            top[a] = a
            best = values[a]
            for b in neighbours[a]:
                if values[b] > best:
                    best = values[b]
                    top[a] = b
            sums[a] = 0
        for a in range(n):
            if values[a] <= 0:
                continue
            peak = a
            while top[peak] != peak:
                peak = top[peak]
            # Axes have no sign: each is turned to its peak's side before they are averaged.
            cosine = axes[a, 0] * axes[peak, 0] + axes[a, 1] * axes[peak, 1] + axes[a, 2] * axes[peak, 2]
            share = values[a] if cosine >= 0 else -values[a]
            for c in range(3):
                sums[peak, c] += share * axes[a, c]
            sums[peak, 3] += values[a]
        found = 0
        for a in range(n):
            if top[a] != a or values[a] < least_peak or sums[a, 3] <= 0:
                continue
            if found == most and sums[a, 3] <= integral[row, most - 1]:
                continue
            place = min(found, most - 1)
            while place > 0 and integral[row, place - 1] < sums[a, 3]:
                integral[row, place] = integral[row, place - 1]
                mean[row, place] = mean[row, place - 1]
                place -= 1
            norm = sqrt(sums[a, 0] ** 2 + sums[a, 1] ** 2 + sums[a, 2] ** 2)
            for c in range(3):
                mean[row, place, c] = sums[a, c] / norm if norm > 0 else axes[a, c]
            integral[row, place] = sums[a, 3]
            found = min(found + 1, most)
        count[row] = found
