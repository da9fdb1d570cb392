"""The space in which streamlines are generated: the built-in template's, on one grid of 3 mm around its brain.

A subject's orientation field is brought here by registration, and what is generated is carried back. The grid is symmetric
about the midline, so that a mirrored subject needs no interpolation.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import ImageGrid, ShField
from tractode.ops import spherical_harmonics as sh

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


def mirrored(coeffs: Float[Tensor, "l i j k"]) -> Float[Tensor, "l i j k"]:
    """The field of the mirrored subject (x → −x), on this grid, which is symmetric about the midline."""
    order = round(((8 * len(coeffs) + 1) ** 0.5 - 3) / 2)
    return coeffs.flip(1) * _signs(order).to(coeffs)[:, None, None, None]


@cache
def _signs(order: int) -> Float[Tensor, " l"]:
    """Every harmonic of the basis is even or odd in x; found by asking at one direction that is no zero of any."""
    direction = torch.nn.functional.normalize(torch.tensor([0.37, 0.59, 0.71], dtype=torch.float64), dim=0)
    other = direction * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    return (sh.basis(direction, order) * sh.basis(other, order)).sign()
