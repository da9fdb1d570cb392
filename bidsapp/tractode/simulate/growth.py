"""A known change of a brain between two scans: both lateral ventricles grow, and what lies around them gives way.

The flow of a smooth velocity that draws points towards the middle of each ventricle, as the asymmetry in `warp` does: a
diffeomorphism, the identity far away. Departure: growth is of one shape, and nothing shrinks elsewhere in turn.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Chain, Flow, ImageGrid, VelocityField
from tractode.simulate.courses import Vector

VENTRICLES: tuple[Vector, ...] = ((-16.0, -20.0, 20.0), (16.0, -20.0, 20.0))  # template, mm
_SIGMA: Vector = (10.0, 26.0, 11.0)
_SPACING, _REACH = 3.0, 4.0  # mm; standard deviations of the grid that holds it


def grown(warp: Chain, share: float, source: str) -> Flow:
    """Points of the grown head (``source``) → points of the head whose T1w space → template is ``warp``.

    Volume in the middle of each ventricle is larger by ``share`` (0.2: a fifth).
    """
    centres = warp.inverse().map(torch.tensor(VENTRICLES, dtype=torch.float64))
    grid = _around(centres, source)
    points = grid.centres(torch.float64)
    velocity = torch.zeros_like(points)
    # A velocity −r·x contracts lengths by e^−r in unit time; two Gaussians overlap in the middle of the other a little.
    rates = torch.linalg.solve(_overlap(centres), torch.full((len(centres),), math.log1p(share) / 3).double())
    for centre, rate in zip(centres, rates, strict=True):
        velocity = velocity - rate * _weight(points, centre)[..., None] * (points - centre)
    return Flow(VelocityField(grid, velocity.movedim(-1, 0)[None]), source, warp.source, steps=4)


def _weight(points: Float[Tensor, "*p 3"], centre: Float[Tensor, " 3"]) -> Float[Tensor, "*p"]:
    return torch.exp(-0.5 * ((points - centre) / torch.tensor(_SIGMA, dtype=torch.float64)).square().sum(-1))


def _overlap(centres: Float[Tensor, "n 3"]) -> Float[Tensor, "n n"]:
    """A third of the divergence that each one's unit velocity has in the middle of each: Σ w (1 − x²/σ²)."""
    sigma = torch.tensor(_SIGMA, dtype=torch.float64)
    rows = []
    for at in centres:
        apart = (at - centres) / sigma
        rows.append(torch.exp(-0.5 * apart.square().sum(-1)) * (1 - apart.square().sum(-1) / 3))
    return torch.stack(rows)


def _around(centres: Float[Tensor, "n 3"], space: str) -> ImageGrid:
    reach = torch.tensor(_SIGMA, dtype=torch.float64) * _REACH
    low, high = centres.amin(0) - reach, centres.amax(0) + reach
    affine = torch.eye(4, dtype=torch.float64) * _SPACING
    affine[:3, 3], affine[3, 3] = low, 1
    i, j, k = (((high - low) / _SPACING).ceil().int() + 1).tolist()
    return ImageGrid((i, j, k), affine, space)
