"""Agreement of two tractograms as maps: correlation of their track densities and the weighted Dice coefficient.

Cousineau et al., *A test-retest study on Parkinson's PPMI dataset yields statistically significant white matter
fascicles*, NeuroImage Clin 2017, doi:10.1016/j.nicl.2017.07.020. Departure: each map is divided by its sum before the
weighted Dice, so that tractograms of different sizes weigh alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Real
from torch import Tensor

from tractode.errors import SpaceMismatchError
from tractode.evaluate.overlap import dice
from tractode.evaluate.visitation import visits
from tractode.fields import ImageGrid, Streamlines


@dataclass(frozen=True)
class DensityAgreement:
    """Over the ``n`` voxels that either tractogram visits; NaN where there are none or a map is constant there."""

    n: int
    correlation: float
    weighted_dice: float
    dice: float


def density_agreement(first: Streamlines, second: Streamlines, grid: ImageGrid) -> DensityAgreement:
    """Compare the numbers of streamlines in each voxel of a grid; raises `SpaceMismatchError` for other spaces."""
    return map_agreement(visits(first, grid), visits(second, grid))


def map_agreement(first: Real[Tensor, "i j k"], second: Real[Tensor, "i j k"]) -> DensityAgreement:
    """The same for two maps, none of whose values is negative."""
    seen = (first > 0) | (second > 0)
    one, two = first[seen].double(), second[seen].double()
    overlap = dice(first > 0, second > 0) if len(one) else math.nan
    if len(one) == 0:
        return DensityAgreement(0, math.nan, math.nan, overlap)
    a, b = one - one.mean(), two - two.mean()
    scale = float((a.square().sum() * b.square().sum()).sqrt())
    both = (one > 0) & (two > 0)
    shares = [float(values[both].sum() / values.sum()) if float(values.sum()) else 0.0 for values in (one, two)]
    return DensityAgreement(len(one), float((a * b).sum()) / scale if scale else math.nan, sum(shares) / 2, overlap)


def covering_grid(tractograms: Sequence[Streamlines], voxel_mm: float) -> ImageGrid:
    """Cubic voxels along the world's axes, walls at multiples of ``voxel_mm``, that hold every point."""
    space = tractograms[0].space
    if any(lines.space != space for lines in tractograms):
        raise SpaceMismatchError(f"Tractograms of one grid must share a space; got {[t.space for t in tractograms]}.")
    points = torch.cat([lines.points.detach().cpu().double() for lines in tractograms])
    if not len(points):
        points = torch.zeros(1, 3, dtype=torch.float64)
    low = (points.amin(0) / voxel_mm).floor()
    shape = ((points.amax(0) / voxel_mm).floor() - low + 1).long().tolist()
    affine = torch.eye(4, dtype=torch.float64) * voxel_mm
    affine[:3, 3], affine[3, 3] = (low + 0.5) * voxel_mm, 1
    return ImageGrid((shape[0], shape[1], shape[2]), affine, space)
