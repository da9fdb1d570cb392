"""What is true of one simulated bundle on a grid: its streamlines, where it is, and the two regions it ends in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields import ImageGrid, Streamlines
from tractode.simulate.fibres import FibreField, splat


@dataclass(frozen=True, eq=False)
class BundleTruth:
    """A bundle on the dwi grid. Every streamline runs from the ``start`` region (head) to the ``end`` region (tail)."""

    streamlines: Streamlines
    mask: Bool[Tensor, "i j k"]
    start: Bool[Tensor, "i j k"]
    end: Bool[Tensor, "i j k"]


def bundle_truth(lines: Streamlines, fibres: FibreField, name: str, end_radius_mm: float) -> BundleTruth:
    """The truth of one bundle of a fibre field; its ends reach ``end_radius_mm`` around the ends of its fibres."""
    grid, brain = fibres.fod.grid, fibres.tissues.sum(0) > 0
    mask = (fibres.occupancy[name] > 0.5) & brain
    first, last = lines.points[lines.offsets[:-1]], lines.points[lines.offsets[1:] - 1]
    start, end = (near(grid, points, end_radius_mm) & brain for points in (first, last))
    return BundleTruth(lines, mask, start, end)


def near(grid: ImageGrid, points: Float[Tensor, "p 3"], radius_mm: float) -> Bool[Tensor, "i j k"]:
    """Voxels whose centre is within a radius of any of the points."""
    hit = splat(grid, points, torch.ones(len(points), 1, dtype=torch.float64))[0] > 0
    reach = [math.ceil(radius_mm / edge) + 1 for edge in grid.voxel_sizes]
    index = hit.nonzero()
    out = torch.zeros(grid.shape, dtype=torch.bool)
    if not len(index):
        return out
    low = [max(0, int(index[:, a].min()) - reach[a]) for a in range(3)]
    high = [min(grid.shape[a], int(index[:, a].max()) + reach[a] + 1) for a in range(3)]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    centres = grid.centres(torch.float64)[box].reshape(-1, 3)
    distance = torch.cat([torch.cdist(part, points.double()).amin(1) for part in centres.split(8192)])
    out[box] = (distance <= radius_mm).reshape(out[box].shape)
    return out
