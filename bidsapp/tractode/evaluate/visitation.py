"""How many streamlines visit each voxel, and how much of them: counts and lengths by exact cutting at the voxels' walls.

Calamante et al., *Track-density imaging (TDI): super-resolution white matter imaging using whole-brain track-density
mapping*, NeuroImage 2010, doi:10.1016/j.neuroimage.2010.07.024. Departure: a segment counts in every voxel it touches.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.fields import ImageGrid, Streamlines
from tractode.tracking.segments import stays_in_chunks


def visits(lines: Streamlines, grid: ImageGrid) -> Int[Tensor, "i j k"]:
    """Streamlines in each voxel, each counted once however often it comes back. Those of one point or none visit nothing."""
    total = np.zeros(grid.n_voxels, dtype=np.int64)
    for part in stays_in_chunks(lines, grid):
        once = np.unique(part.line.astype(np.int64) * grid.n_voxels + part.voxel)
        total += np.bincount(once % grid.n_voxels, minlength=grid.n_voxels)
    return torch.from_numpy(total).reshape(grid.shape)


def length_density(lines: Streamlines, grid: ImageGrid) -> Float[Tensor, "i j k"]:
    """Length of streamlines in each voxel, mm."""
    total = np.zeros(grid.n_voxels)
    for part in stays_in_chunks(lines, grid):
        total += np.bincount(part.voxel, part.length.astype(np.float64), minlength=grid.n_voxels)
    return torch.from_numpy(total).reshape(grid.shape)
