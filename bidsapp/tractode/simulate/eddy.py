"""Eddy currents: fields that follow the diffusion gradients and shift each volume along the phase encoding.

P. Jezzard, A. S. Barnett, C. Pierpaoli, *Characterization of and correction for eddy current artifacts in echo planar diffusion
imaging*, MRM 39:801 (1998), doi:10.1002/mrm.1910390518: what a gradient of each axis leaves is proportional to it. Here a polynomial of
second order in the position, most of it linear, with some deviation from proportionality (`ops.volume_pose.terms`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import GradientTable, ImageGrid
from tractode.ops import volume_pose as pose


@dataclass(frozen=True)
class EddySettings:
    """``linear_mm``: standard deviation of the shift (mm) that a linear term makes at 100 mm at the largest b; ``quadratic``: that of the
    quadratic ones, and ``deviation`` of what does not follow the gradients, as shares of it."""

    linear_mm: float = 2.0
    quadratic: float = 0.3
    deviation: float = 0.1


def eddy_terms(gtab: GradientTable, generator: torch.Generator, settings: EddySettings) -> Float[Tensor, "n 9"]:
    """mm at 100 mm of u, v, w, u², v², w², uv, uw, vw in each volume; 0 in b=0 volumes."""
    size = torch.tensor([settings.linear_mm] * 3 + [settings.linear_mm * settings.quadratic] * 6, dtype=torch.float64)
    response = torch.randn(3, 9, generator=generator, dtype=torch.float64) * size
    rest = settings.deviation * torch.randn(len(gtab), 9, generator=generator, dtype=torch.float64) * size
    strength = (gtab.bvals.double() / gtab.bvals.double().max().clamp_min(1.0)).sqrt()[:, None]
    return torch.where(gtab.is_b0[:, None], 0.0, strength * (gtab.bvecs.double() @ response + rest))


def shifts_vox(eddy: Float[Tensor, "n 9"], grid: ImageGrid, axis: int) -> Float[Tensor, "n i j k"]:
    """How far (voxels along a stored axis) each volume moves what is in its voxels."""
    ranges = [torch.arange(n, dtype=torch.float64) for n in grid.shape]
    index = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1)
    terms = pose.terms(index, grid.shape, grid.voxel_sizes)
    return torch.einsum("ijkc,nc->nijk", terms, eddy / grid.voxel_sizes[axis])
