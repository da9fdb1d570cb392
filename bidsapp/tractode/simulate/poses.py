"""Where the head lay in each scan: small rigid motions between the scans of a session, larger ones between sessions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Affine


@dataclass(frozen=True)
class MovementSettings:
    """Standard deviations of each component; draws beyond two of them are cut."""

    translation_mm: float = 0.0
    rotation_deg: float = 0.0


def rigid(
    source: str,
    target: str,
    centre: Float[Tensor, " 3"],
    generator: torch.Generator,
    settings: MovementSettings,
) -> Affine:
    """A random rigid map of points of one scan to those of another, turning about ``centre`` (mm, RAS+)."""
    draw = torch.randn(6, generator=generator, dtype=torch.float64).clamp(-2, 2)
    x, y, z = torch.deg2rad(draw[:3] * settings.rotation_deg).tolist()
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.linalg.matrix_exp(skew)
    middle = centre.double()
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + draw[3:] * settings.translation_mm
    return Affine(matrix, source, target)
