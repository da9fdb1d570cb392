"""The compiled loop behind `tractode.ops.lobes`: amplitudes on a set of axes divided into lobes by steepest ascent."""

from __future__ import annotations

from math import sqrt

import numpy as np

from tractode.ops.compile import inner, kernel


@inner
def climb(values, neighbours, top):
    """For each axis, the neighbour with the largest amplitude, or itself at a peak."""
    for a in range(len(values)):
        top[a] = a
        best = values[a]
        for b in neighbours[a]:
            if values[b] > best:
                best = values[b]
                top[a] = b


@inner
def insert(lobe, peak, found, mean, integral, tip):
    """Put a lobe (summed axis, summed amplitude; its peak) into its place among those found, the largest first; how many there are."""
    most = len(integral)
    if found == most and lobe[3] <= integral[most - 1]:
        return found
    place = min(found, most - 1)
    while place > 0 and integral[place - 1] < lobe[3]:
        integral[place] = integral[place - 1]
        mean[place] = mean[place - 1]
        tip[place] = tip[place - 1]
        place -= 1
    norm = sqrt(lobe[0] ** 2 + lobe[1] ** 2 + lobe[2] ** 2)
    for c in range(3):
        mean[place, c] = lobe[c] / norm if norm > 0 else 0.0
    integral[place] = lobe[3]
    tip[place] = peak
    return min(found + 1, most)


@kernel
def divide(amplitudes, axes, neighbours, least_peak, count, mean, integral, tip):
    """For each row of amplitudes: the number of lobes, their mean axes, sums of amplitudes and peaks' numbers, largest first.

    Every axis belongs to the peak that steps to its largest neighbour lead to; equal neighbours: the first. ``mean``,
    ``integral`` and ``tip`` have room for as many lobes as are kept.
    """
    n = len(axes)
    top = np.empty(n, np.int64)
    sums = np.empty((n, 4))
    for row in range(len(amplitudes)):
        values = amplitudes[row]
        climb(values, neighbours, top)
        sums[:] = 0
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
            if top[a] == a and values[a] >= least_peak and sums[a, 3] > 0:
                found = insert(sums[a], a, found, mean[row], integral[row], tip[row])
        count[row] = found
