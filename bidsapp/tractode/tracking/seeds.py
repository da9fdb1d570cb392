"""Where streamlines start: points drawn uniformly in a mask, and random directions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import Image


def voxels_of(mask: Image) -> Int[Tensor, "v 3"]:
    """The voxels of a seed mask, in storage order.

    Raises
    ------
    InputDataError
        There are none.
    """
    voxels = mask.mask.cpu().nonzero()
    if len(voxels) == 0:
        raise InputDataError(
            "The seed mask is empty",
            id="E-TRACK-SEEDS",
            needed="at least one voxel to start streamlines from",
            fix="look at the brain mask and the model's maps in the report; give another mask",
        )
    return voxels


def seeds_in_mask(mask: Image, n: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """``n`` points (RAS+ mm, float32) uniform over the volume of a mask: a voxel, then a place within it."""
    voxels = voxels_of(mask)
    chosen = voxels[torch.randint(len(voxels), (n,), generator=generator)]
    within = torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.5
    return mask.grid.to_world(chosen + within).to(torch.float32)


def random_directions(n: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """``n`` unit vectors uniform on the sphere (float64)."""
    directions = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return directions / directions.norm(dim=-1, keepdim=True)
