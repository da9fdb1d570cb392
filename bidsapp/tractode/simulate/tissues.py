"""Tissue fractions: the template's maps made consistent, and their averages over the voxels of any grid of a participant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Image, ImageGrid, Transform
from tractode.ops import interpolate

GREY, WHITE, CSF = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Anatomy:
    """T1w (1 channel) and tissues (grey, white, CSF; they sum to 1 inside the brain) on one template grid."""

    t1w: Image
    tissues: Image

    @property
    def white_matter(self) -> Image:
        return Image(self.tissues.grid, self.tissues.values[WHITE : WHITE + 1])


def anatomy(t1w: Image, grey: Image, white: Image, mask: Image) -> Anatomy:
    """Grey and white matter as mapped, scaled down where they sum to more than 1; CSF is the rest of the brain mask."""
    inside = mask.mask.to(t1w.values.dtype)
    tissue = torch.stack([grey.values[0], white.values[0]]) * inside
    tissue = tissue / tissue.sum(0, keepdim=True).clamp(min=1)
    rest = (inside - tissue.sum(0)).clamp(min=0)
    return Anatomy(t1w, Image(t1w.grid, torch.cat([tissue, rest[None]])))


def averaged(image: Image, grid: ImageGrid, warp: Transform, per_axis: int) -> Float[Tensor, "c i j k"]:
    """Mean of a template image over each voxel of a participant's grid, from ``per_axis``³ points in it."""
    positions = (torch.arange(per_axis, dtype=torch.float64) + 0.5) / per_axis - 0.5
    offsets = torch.cartesian_prod(positions, positions, positions).reshape(-1, 3)
    columns = grid.affine[:3, :3]
    centres = grid.centres()
    total = torch.zeros(image.values.shape[0], *grid.shape, dtype=image.values.dtype)
    for offset in offsets:
        points = warp.map(centres + (columns @ offset).to(centres))
        total += interpolate.sample(image.values, image.grid.to_voxel(points)).movedim(-1, 0)
    return total / len(offsets)
