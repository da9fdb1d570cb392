"""Head motion during a series: drifts, jumps, and the signal of a head that lies elsewhere in every volume.

A head that turned by R sees a gradient g of the scanner as Rᵀ g: the signal is computed for those directions, and then moved. It is
interpolated once, by cubic B-splines; noise is added afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from tractode.fields import GradientTable, ImageGrid
from tractode.ops import affine as aff
from tractode.ops import volume_pose as pose


@dataclass(frozen=True)
class HeadMotionSettings:
    """Farthest shift (mm) and turn (degrees) from the first volume; ``jumps``: share of the volumes before which the head jumps."""

    translation_mm: float = 5.0
    rotation_deg: float = 5.0
    jumps: float = 0.05


def head_motion(n: int, generator: torch.Generator, settings: HeadMotionSettings) -> Float[Tensor, "n 6"]:
    """Shift (mm) and rotation vector (rad) of each volume: a random walk with jumps; the first volume is where the head lies by itself."""
    small = 0.15 * torch.randn(n, 6, generator=generator, dtype=torch.float64)
    does_jump = torch.rand(n, 1, generator=generator, dtype=torch.float64) < settings.jumps
    jump = torch.randn(n, 6, generator=generator, dtype=torch.float64) * does_jump
    walk = (small + jump).cumsum(0)
    walk = walk - walk[:1]
    limits = (settings.translation_mm, float(np.deg2rad(settings.rotation_deg)))
    parts = []
    for part, limit in zip(walk.split(3, dim=-1), limits, strict=True):
        parts.append(part * (limit / part.norm(dim=-1).max().clamp_min(1e-12)))
    return torch.cat(parts, dim=-1)


def seen_by_head(gtab: GradientTable, rigid: Float[Tensor, "n 6"]) -> GradientTable:
    """The scanner's gradients as they lie to the head in each volume."""
    turn = pose.rotations(rigid[:, 3:])
    return replace(gtab, bvecs=(turn.mT @ gtab.bvecs.double()[..., None])[..., 0].to(gtab.bvecs))


def moved(
    signal: Float[Tensor, "n i j k"], grid: ImageGrid, rigid: Float[Tensor, "n 6"], centre: Float[Tensor, " 3"]
) -> Float[Tensor, "n i j k"]:
    """Every volume of a head that turns about ``centre`` (mm); never negative, 0 where nothing was known."""
    points = grid.centres(torch.float64).reshape(-1, 3)
    out = torch.empty_like(signal)
    for volume, values in enumerate(signal):
        if not bool(rigid[volume].any()):
            out[volume] = values
            continue
        still = pose.still(points, rigid[volume : volume + 1], centre)[0]
        at = aff.apply_affine(grid.inverse_affine, still).numpy().T
        read = ndimage.map_coordinates(values.numpy(), at, order=3, mode="constant")
        out[volume] = torch.from_numpy(read).reshape(grid.shape).to(signal)
    return out.clamp_min(0)
