"""The magnetic field (Hz) that air in and under the skull makes in the brain: spheres in a uniform field, shimmed.

A sphere of radius a whose susceptibility differs by Δχ changes the field around it by ``f₀ Δχ/3 · a³ (3 cos²θ − 1) / r³`` (J. D.
Jackson, *Classical Electrodynamics*, 1999, section 5.11), θ from the axis of the magnet; inside it by nothing (with the Lorentz
correction). Departure: paranasal sinuses and the air of the temporal bones are a few spheres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.simulate.courses import Vector

GAMMA = 42.577e6  # Hz/T of the proton
AIR_TO_TISSUE = 9.4e-6  # difference of susceptibilities, SI
_AIR = (
    ((0.0, 42.0, -42.0), 15.0),
    ((0.0, 66.0, -14.0), 9.0),
    ((46.0, -24.0, -48.0), 11.0),
    ((-46.0, -24.0, -48.0), 11.0),
)


@dataclass(frozen=True)
class SusceptibilitySettings:
    """Field strength (T) and the spheres of air: centre in template space (mm, RAS+) and radius (mm)."""

    tesla: float = 3.0
    air: tuple[tuple[Vector, float], ...] = _AIR


def field_of_air(
    points: Float[Tensor, "*p 3"], axis: Float[Tensor, " 3"], settings: SusceptibilitySettings | None = None
) -> Float[Tensor, "*p"]:
    """Hz at points of template space; ``axis`` is the magnet's direction there (unit)."""
    settings = settings or SusceptibilitySettings()
    strength = GAMMA * settings.tesla * AIR_TO_TISSUE / 3
    total = torch.zeros_like(points[..., 0])
    for centre, radius in settings.air:
        apart = points - torch.tensor(centre).to(points)
        r = apart.norm(dim=-1).clamp_min(1e-6)
        cosine = (apart @ axis.to(points)) / r
        # Air is less magnetic than tissue, so the field beside it (across the axis) is weaker and above it stronger.
        total = total + torch.where(r < radius, 0.0, strength * (radius / r) ** 3 * (3 * cosine.square() - 1))
    return total


def shim(field: Float[Tensor, "*p"], points: Float[Tensor, "*p 3"], weight: Float[Tensor, "*p"]) -> Float[Tensor, " 4"]:
    """What a first-order shim takes away: a constant (Hz) and slopes (Hz per 100 mm), most of the field where there is weight."""
    root = weight.reshape(-1, 1).double().sqrt()
    return torch.linalg.lstsq(root * _design(points), root * field.reshape(-1, 1).double()).solution[:, 0]


def shimmed(
    field: Float[Tensor, "*p"], points: Float[Tensor, "*p 3"], weight: Float[Tensor, "*p"]
) -> Float[Tensor, "*p"]:
    """The field less the constant and the slopes that are most of it where there is weight: what a scanner's shim leaves."""
    return without_shim(field, points, shim(field, points, weight))


def without_shim(
    field: Float[Tensor, "*p"], points: Float[Tensor, "*p 3"], coefficients: Float[Tensor, " 4"]
) -> Float[Tensor, "*p"]:
    """The field less a known shim."""
    return field - (_design(points) @ coefficients).reshape(field.shape).to(field)


def _design(points: Float[Tensor, "*p 3"]) -> Float[Tensor, "v 4"]:
    flat = points.reshape(-1, 3).double()
    return torch.cat((torch.ones_like(flat[:, :1]), flat / 100), dim=1)
