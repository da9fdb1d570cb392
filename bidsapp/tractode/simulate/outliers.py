"""Slices that lose signal because the head moved while the diffusion gradients were on.

As J. L. R. Andersson et al., NeuroImage 141:556 (2016), doi:10.1016/j.neuroimage.2016.06.058, describe them: single slices of weighted
volumes, darker by a factor of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import GradientTable


@dataclass(frozen=True)
class DroppedSlicesSettings:
    """``share`` of the slices of weighted volumes that lose signal; what is left of it is uniform between the two bounds."""

    share: float = 0.02
    least_left: float = 0.1
    most_left: float = 0.6


def signal_left(
    gtab: GradientTable, n_slices: int, generator: torch.Generator, settings: DroppedSlicesSettings
) -> Float[Tensor, "n s"]:
    """The share of its signal that each slice of each volume keeps: 1 for nearly all."""
    drawn = torch.rand(2, len(gtab), n_slices, generator=generator, dtype=torch.float64)
    left = settings.least_left + (settings.most_left - settings.least_left) * drawn[1]
    lost = (drawn[0] < settings.share) & ~gtab.is_b0[:, None]
    return torch.where(lost, left, 1.0)
