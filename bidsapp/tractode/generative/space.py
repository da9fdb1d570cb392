"""The space in which streamlines are generated: the built-in template's, on one grid of 3 mm around its brain.

A subject's orientation field is brought here by registration, and what is generated is carried back. The grid is symmetric
about the midline, so that a mirrored subject needs no interpolation.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import ImageGrid, ShField

SPACE = "MNI152NLin2009aSym"
ORDER = 6
SPACING_MM = 3.0
_SHAPE = (52, 64, 52)
_FIRST = (-76.5, -111.0, -69.0)


def training_grid() -> ImageGrid:
    """The grid on which models see a subject: voxel centres at ±1.5, ±4.5, … ±76.5 mm from the midline."""
    affine = torch.eye(4, dtype=torch.float64) * SPACING_MM
    affine[:3, 3], affine[3, 3] = torch.tensor(_FIRST, dtype=torch.float64), 1
    return ImageGrid(_SHAPE, affine, SPACE)


def normalised(field: ShField) -> ShField:
    """The field divided by what is typical of its white matter, so that responses and units of scans do not matter.

    Typical is the 90th percentile of the degree-0 coefficient over the voxels where it is positive; an empty field stays.
    """
    amount = field.coeffs[0]
    inside = amount[amount > 0]
    if not len(inside):
        return field
    typical: Float[Tensor, ""] = inside.float().quantile(0.9).clamp_min(1e-12)
    return ShField(field.grid, field.coeffs / typical.to(field.coeffs), field.order)
