"""The shading of receive coils: some coils around the head, each seeing best what is near it, joined by the root of their squares.

P. B. Roemer et al., *The NMR phased array*, MRM 16:192 (1990), doi:10.1002/mrm.1910160203. Departure: a coil's sensitivity falls as a
Gaussian of the distance from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields import ImageGrid


@dataclass(frozen=True)
class BiasSettings:
    """``strength``: standard deviation of the field's logarithm in the brain; ``coils`` at ``distance`` mm from the brain's middle, each of
    which reaches ``reach`` mm (standard deviation)."""

    strength: float = 0.2
    coils: int = 8
    distance: float = 120.0
    reach: float = 90.0


def coil_shading(
    grid: ImageGrid, brain: Bool[Tensor, "i j k"], generator: torch.Generator, settings: BiasSettings
) -> Float[Tensor, "i j k"]:
    """The factor by which each voxel is brighter; its geometric mean in the brain is 1."""
    points = grid.centres(torch.float64)
    middle = points[brain].mean(0)
    direction = torch.randn(settings.coils, 3, generator=generator, dtype=torch.float64)
    places = middle + settings.distance * direction / direction.norm(dim=-1, keepdim=True)
    weight = 0.5 + torch.rand(settings.coils, generator=generator, dtype=torch.float64)
    squares = torch.zeros(grid.shape, dtype=torch.float64)
    for place, strength in zip(places, weight, strict=True):
        squares += (strength * torch.exp(-0.5 * ((points - place).norm(dim=-1) / settings.reach).square())).square()
    logs = 0.5 * squares.clamp_min(1e-12).log()
    logs = logs - logs[brain].mean()
    return (logs * (settings.strength / logs[brain].std().clamp_min(1e-9))).exp()
