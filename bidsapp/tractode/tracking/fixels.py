"""Fixels: the lobes of each voxel's fibre orientation distribution, their axes and their integrals.

Smith, Tournier, Calamante & Connelly, *SIFT: spherical-deconvolution informed filtering of tractograms*, NeuroImage
2013, doi:10.1016/j.neuroimage.2012.11.049 (appendix 2: segmentation of lobes). Departures: see `tractode.ops.lobes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField
from tractode.ops.lobes import TILE, lobes_of
from tractode.tracking.kernels.segments import nearest_fixel
from tractode.tracking.segments import Stays


@dataclass(frozen=True)
class FixelSettings:
    """``least_peak`` is the smallest amplitude a lobe's peak may have (fibre response = 1), ``largest_angle`` in radians
    how far a streamline may turn from a fixel's axis and still belong to it."""

    least_peak: float = 0.1
    largest_angle: float = math.pi / 4
    most: int = 8


@dataclass(frozen=True, eq=False)
class Fixels:
    """Fixels of a grid, those of a voxel one after another, the largest first.

    ``first`` and ``count`` are given for every voxel (ravelled), ``axes`` are unit (RAS+, mean direction of the lobe),
    ``integrals`` the lobes' integrals over the sphere: apparent fibre density.
    """

    grid: ImageGrid
    first: Int[Tensor, " v"]
    count: Int[Tensor, " v"]
    axes: Float[Tensor, "f 3"]
    integrals: Float[Tensor, " f"]
    settings: FixelSettings

    def __len__(self) -> int:
        return len(self.integrals)

    @property
    def voxel(self) -> Int[Tensor, " f"]:
        """The voxel each fixel lies in."""
        return torch.repeat_interleave(torch.arange(len(self.count)), self.count.long())

    def of_stays(self, stays: Stays) -> Int[np.ndarray, " e"]:
        """The fixel each stay of a streamline follows; −1 where none lies within the largest angle."""
        found = np.empty(len(stays.voxel), np.int32)
        nearest_fixel(
            stays.voxel, stays.direction, self.first.numpy(), self.count.numpy(), self.axes.numpy(),
            math.cos(self.settings.largest_angle), found,
        )  # fmt: skip
        return found

    def per_voxel(self, values: Float[Tensor, " f"]) -> Image:
        """Sums of the fixels' values in each voxel, float32."""
        total = torch.zeros(self.grid.n_voxels, dtype=torch.float64).index_add_(0, self.voxel, values.double())
        return Image(self.grid, total.reshape(1, *self.grid.shape).float())


def fixels_of(field: ShField, mask: Image | None = None, settings: FixelSettings | None = None) -> Fixels:
    """The fixels of an FOD field, in the voxels of a mask or wherever the FOD is not zero. Computed on the CPU."""
    settings = settings or FixelSettings()
    coefficients = field.coeffs.detach().cpu().flatten(1)
    inside = coefficients[0] > 0
    if mask is not None:
        inside &= mask.mask.cpu().ravel()
    voxels = inside.nonzero().ravel()
    parts = [_lobes(coefficients[:, tile].mT.float(), field.order, settings) for tile in voxels.split(TILE)]
    count = torch.zeros(field.grid.n_voxels, dtype=torch.int32)
    if not parts:
        empty = torch.zeros(0)
        return Fixels(field.grid, count.clone(), count, empty.reshape(0, 3), empty, settings)
    count[voxels] = torch.cat([part[0] for part in parts]).int()
    first = (count.cumsum(0) - count).int()
    axes, integrals = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    return Fixels(field.grid, first, count, axes, integrals, settings)


def _lobes(
    coefficients: Float[Tensor, "t l"], order: int, settings: FixelSettings
) -> tuple[Int[Tensor, " t"], Float[Tensor, "f 3"], Float[Tensor, " f"]]:
    """Number of lobes of each voxel of a tile, and their axes and integrals, voxel by voxel."""
    found = lobes_of(coefficients, order, settings.least_peak, settings.most)
    return found.count, found.means[found.kept], found.integrals[found.kept]
