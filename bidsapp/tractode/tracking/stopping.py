"""When a streamline ends, and which streamlines are kept: the rules of MRtrix3's tckgen without anatomical constraints.

Tournier et al., *MRtrix3*, NeuroImage 2019, doi:10.1016/j.neuroimage.2019.116137. A point that leaves the mask is not
kept; a point at which the number of points reaches its limit is. Lengths are limited by counting points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields import Image, ImageGrid
from tractode.tracking.sampling import nearest_index, to_voxel


def mean_voxel_size(grid: ImageGrid) -> float:
    """The cube root of the voxel volume, mm: what lengths given in voxels refer to."""
    i, j, k = grid.voxel_sizes
    return (i * j * k) ** (1 / 3)


@dataclass(frozen=True)
class PointLimits:
    """How many points a streamline must have and may have."""

    minimum: int
    maximum: int

    @classmethod
    def of(cls, min_length: float, max_length: float, step: float) -> PointLimits:
        """From lengths in mm: one point more than steps, and two to spare before a line counts as too long."""
        # A length that is a whole number of steps must not gain one by rounding.
        return cls(1 + math.ceil(min_length / step - 1e-6), 3 + math.ceil(max_length / step - 1e-6))

    def second_half(self, first: Tensor, second: Tensor) -> Tensor:
        """Steps kept of the second half, given the steps taken in each: the first counts towards the limit."""
        return torch.minimum(second, (self.maximum - 1 - first).clamp_min(1))


@dataclass(frozen=True, eq=False)
class MaskLookup:
    """Whether a point's nearest voxel lies in a mask."""

    grid: ImageGrid
    flat: Bool[Tensor, " v"]

    @classmethod
    def of(cls, mask: Image, device: torch.device) -> MaskLookup:
        return cls(mask.grid, mask.mask.reshape(-1).to(device))

    def contains(self, positions: Float[Tensor, "3 m"]) -> Bool[Tensor, " m"]:
        index, is_inside = nearest_index(self.grid.shape, to_voxel(self.grid, positions))
        return is_inside & self.flat[index]
