"""Guidance of a flow by the subject's field itself: knots climb the amplitude of the field along the line.

After classifier guidance (Dhariwal & Nichol 2021, doi:10.48550/arXiv.2105.05233), with the alignment of streamline and
orientation field in place of a classifier. GenTract has none.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tractode.fields import ImageGrid
from tractode.generative import knots as knotted
from tractode.generative.field_encoder import Context
from tractode.ops import affine
from tractode.ops import spherical_harmonics as sh
from tractode.ops.interpolate import sample_rows

_N_POINTS = 31
_N_WAVES = 6


def alignment(context: Context, grid: ImageGrid, knots: Float[Tensor, "s k 3"], order: int) -> Float[Tensor, "s p"]:
    """Amplitude of the field along the line at points between the knots; differentiable in the knots."""
    points = knotted.points_of(knots, _N_POINTS + 1)
    middle = (points[:, 1:] + points[:, :-1]) / 2
    directions = functional.normalize(points[:, 1:] - points[:, :-1], dim=-1, eps=1e-6)
    voxel = affine.apply_affine(grid.inverse_affine, middle.reshape(-1, 3))
    basis = sh.basis(directions, order)
    own = context.field[:, : basis.shape[-1]]
    field = sample_rows(own, context.shapes[0], voxel).reshape(basis.shape)
    return (field * basis).sum(-1)


def climbed(
    context: Context, grid: ImageGrid, knots: Float[Tensor, "s k 3"], order: int, step_mm: float
) -> Float[Tensor, "s k 3"]:
    """The lines after one step uphill of their mean alignment: ``step_mm`` root mean square along each line."""
    with torch.enable_grad():
        free = knots.detach().requires_grad_()
        total = alignment(context, grid, free, order).mean(1).sum()
        (slope,) = torch.autograd.grad(total, free)
    # Shifts first, then bends: turning single knots is steepest, and would only roughen the line.
    waves = knotted.waves(knots.shape[1], _N_WAVES).to(slope)
    weight = 1 / (1 + torch.arange(_N_WAVES, device=slope.device).square())
    slope = torch.einsum("km,m,jm,sjc->skc", waves, weight.to(slope), waves, slope)
    size = slope.square().sum(-1).mean(1).sqrt()[:, None, None]
    return knots + step_mm * slope / size.clamp_min(1e-8)
