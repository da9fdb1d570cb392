"""Cubic B-splines on evenly spaced nodes: M. Unser, *Splines: a perfect fit*, IEEE SPM 16:22 (1999), doi:10.1109/79.799930."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Real
from torch import Tensor


def cubic_basis(at: Real[Tensor, " n"], span: float, spacing: float) -> Float[Tensor, "n m"]:
    """Values of each spline at places from 0 to ``span``: rows add up to 1. One node lies beyond either end."""
    m = math.ceil(span / spacing - 1e-9) + 3
    distance = (at.to(torch.float32)[:, None] / spacing - torch.arange(-1, m - 1)).abs()
    near = 2 / 3 - distance.square() * (1 - 0.5 * distance)
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)
