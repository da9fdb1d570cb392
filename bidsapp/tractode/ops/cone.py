"""Cones about an axis: the half-angle that holds a given share of scattered axes.

Jones, *Determining and visualizing uncertainty in estimates of fiber orientation from diffusion tensor MRI*, MRM 2003,
doi:10.1002/mrm.10331. For axes that scatter as a normal distribution in the tangent plane, of standard deviations a ≥ b:
``x = R (a cos φ, b sin φ)`` with R of Rayleigh's distribution and φ uniform, so
``P(|x| ≤ r) = 1 − mean over φ of exp(−r² / 2(a² cos² φ + b² sin² φ))``. Departure: the radius is read from a table over
b/a instead of being counted among samples. No cone is wider than that of axes that point anywhere.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import sphere

_N_RATIOS = 65
_N_ANGLES = 256


def widest(level: float) -> float:
    """Half-angle (rad) that holds the share ``level`` of axes spread evenly: all there is to say without information."""
    return math.acos(1 - level)


def of_normal(covariance: Float[Tensor, "v 2 2"], level: float = 0.9) -> Float[Tensor, " v"]:
    """Half-angle (rad) for axes whose tangential parts have this covariance (rad²)."""
    spread, product = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) / 2, torch.linalg.det(covariance)
    split = (spread.square() - product).clamp(min=0).sqrt()
    largest, least = (spread + split).clamp(min=0), (spread - split).clamp(min=0)
    tiny = torch.finfo(covariance.dtype).tiny
    place = (least / largest.clamp(min=tiny)).sqrt().nan_to_num(1.0).clamp(0, 1) * (_N_RATIOS - 1)
    table = _radii(level).to(covariance)
    low = place.floor().long().clamp(max=_N_RATIOS - 2)
    radius = torch.lerp(table[low], table[low + 1], place - low)
    return (radius * largest.sqrt()).nan_to_num(math.inf).clamp(max=widest(level))


def of_samples(axis: Float[Tensor, "v 3"], samples: Float[Tensor, "n v 3"], level: float = 0.9) -> Float[Tensor, " v"]:
    """Half-angle (rad) about ``axis`` that holds the share ``level`` of the samples; signs do not matter."""
    angles, n = sphere.angle(axis.expand_as(samples), samples), len(samples)
    # The k-th of n samples holds the share k / (n + 1) of all that could have been drawn.
    rank = min(max(level * (n + 1) - 1, 0.0) / max(n - 1, 1), 1.0)
    return torch.quantile(angles, rank, dim=0).clamp(max=widest(level))


@cache
def _radii(level: float) -> Float[Tensor, " r"]:
    """r / a for b/a from 0 to 1, by bisection."""
    ratio = torch.linspace(0, 1, _N_RATIOS, dtype=torch.float64)[:, None]
    phi = (torch.arange(_N_ANGLES, dtype=torch.float64) + 0.5) * math.pi / (2 * _N_ANGLES)
    squared = phi.cos().square() + ratio.square() * phi.sin().square()
    low, high = torch.zeros(_N_RATIOS, dtype=torch.float64), torch.full((_N_RATIOS,), 10.0, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        held = 1 - torch.exp(-middle.square()[:, None] / (2 * squared)).mean(-1)
        low, high = torch.where(held < level, middle, low), torch.where(held < level, high, middle)
    return (low + high) / 2
