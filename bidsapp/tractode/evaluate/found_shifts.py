"""How often a descriptor knows the place: the share of places whose least difference lies at no shift.

The profile of a similarity along lines through the truth, as D. Škerlj et al., IEEE TMI 25:779 (2006),
doi:10.1109/TMI.2006.874963, judge similarity measures without registering anything. Departure: lines through single places, not through
poses of the whole image, since that is where a deformation gets its direction from.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.ops import interpolate
from tractode.registration.metrics.descriptor import DescriptorMetric


def found_shifts(
    metric: DescriptorMetric,
    fixed: Float[Tensor, "1 i j k"],
    moving: Float[Tensor, "1 i j k"],
    inside: Bool[Tensor, "i j k"],
    voxel: float,
    n: int = 2000,
    reach: float = 6.0,
    radius: int = 1,
    seed: int = 0,
) -> Float[Tensor, " n"]:
    """Shift (mm) along a random direction at which each of ``n`` random places looks most like itself; 0 is right.

    Parameters
    ----------
    fixed, moving
        Images of one anatomy in place, cubic voxels of ``voxel`` mm.
    inside
        Where places are drawn.
    reach
        Shifts are tried every millimetre up to this many either way.
    radius
        Differences are summed over cubes of ``2 radius + 1`` voxels.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = metric.describe(fixed), metric.describe(moving)
    found = inside.nonzero().to(fixed)
    at = found[torch.randint(len(found), (n,), generator=generator)]
    # Off the lattice: on it, unshifted descriptors would be the only ones that no interpolation has blurred.
    at = at + (torch.rand(n, 3, generator=generator) - 0.5).to(fixed)
    direction = torch.randn(n, 3, generator=generator).to(fixed)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    cube = torch.tensor(list(itertools.product(range(-radius, radius + 1), repeat=3))).to(fixed)
    patch = at[:, None] + cube
    reference = interpolate.sample(first, patch, outside="nearest")
    shifts = torch.arange(-round(reach), round(reach) + 1).to(fixed)
    costs = [
        (interpolate.sample(second, patch + shift / voxel * direction[:, None], outside="nearest") - reference)
        .square()
        .mean((1, 2))
        for shift in shifts
    ]
    return shifts[torch.stack(costs).argmin(0)]


def score(shifts: Float[Tensor, " n"]) -> dict[str, float]:
    """Share within a millimetre of the truth, and mean distance from it (mm)."""
    return {
        "within_1mm": round(float((shifts.abs() <= 1).float().mean()), 4),
        "mean_mm": round(float(shifts.abs().mean()), 4),
        "n": len(shifts),
    }
