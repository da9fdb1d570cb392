"""Points spread over the sphere, angles between directions, and amplitudes' local maxima.

Spread: a golden-angle spiral relaxed by electrostatic repulsion of axes, Jones, Horsfield & Simmons, *Optimal
strategies for measuring diffusion in anisotropic systems*, MRM 1999, doi:10.1002/(SICI)1522-2594(199909)42:3<515::AID-MRM14>3.0.CO;2-Q.
Departure: a fixed number of gradient steps instead of a search, so that the same points come out every time.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

_STEPS = 200
_ROWS = 64
_LARGEST_RELAXED = 1500  # beyond this the spiral alone is even enough, and the n² repulsion slow


def directions(n: int, hemisphere: bool = True) -> Float[Tensor, "n 3"]:
    """``n`` well-spread unit vectors, float64, the same on every call.

    With ``hemisphere`` they are spread as axes (a point repels its antipode too) and given with z ≥ 0; otherwise over
    the whole sphere.
    """
    if n < 1:
        raise ValueError(f"A set of directions needs at least one; got {n}.")
    return _spread(n, hemisphere).clone()


@cache
def _spread(n: int, hemisphere: bool) -> Float[Tensor, "n 3"]:
    index = torch.arange(n, dtype=torch.float64) + 0.5
    z = 1 - index / n if hemisphere else 1 - 2 * index / n
    phi = index * math.pi * (3 - math.sqrt(5))
    radius = (1 - z**2).sqrt()
    points = torch.stack([radius * phi.cos(), radius * phi.sin(), z], dim=-1)
    if 1 < n <= _LARGEST_RELAXED:
        points = _relaxed(points, hemisphere)
    return torch.where(points[:, 2:] < 0, -points, points) if hemisphere else points


def _relaxed(points: Float[Tensor, "n 3"], axial: bool) -> Float[Tensor, "n 3"]:
    """Coulomb repulsion on the sphere, in steps that shrink from a third of the mean spacing."""
    spacing = math.sqrt(4 * math.pi / (len(points) * (2 if axial else 1)))
    for step in range(_STEPS):
        force = _axial_repulsion(points) if axial else _repulsion(points, points)
        force = force - (force * points).sum(-1, keepdim=True) * points
        largest = force.norm(dim=-1).max()
        if float(largest) < 1e-12:
            break
        points = points + force / largest * spacing * 0.3 * (1 - step / _STEPS)
        points = points / points.norm(dim=-1, keepdim=True)
    return points


def _repulsion(points: Float[Tensor, "n 3"], charges: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    distance = torch.cdist(points, charges, compute_mode="donot_use_mm_for_euclid_dist")
    weight = torch.where(distance > 1e-9, distance, torch.inf).pow(-3)
    return points * weight.sum(-1, keepdim=True) - weight @ charges


def _axial_repulsion(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Of the other points and of all antipodes: ``|p ∓ q|² = 2 ∓ 2 p·q``."""
    # A few rows at a time are too little work for a library to spread over threads, which would mostly wait for each other.
    forces = []
    for begin in range(0, len(points), _ROWS):
        rows = points[begin : begin + _ROWS]
        cosine = 2 * rows @ points.mT
        itself = torch.arange(len(rows))
        near, far = 2 - cosine, cosine.add_(2)
        near[itself, itself + begin], far[itself, itself + begin] = math.inf, 4.0
        near, far = near.rsqrt_(), far.rsqrt_()
        near, far = near.square().mul_(near), far.square().mul_(far)
        forces.append(rows * (near + far).sum(-1, keepdim=True) + (far - near) @ points)
    return torch.cat(forces)


def angle(a: Float[Tensor, "*d 3"], b: Float[Tensor, "*d 3"], axial: bool = True) -> Float[Tensor, "*d"]:
    """Angle between directions in radians: in [0, π/2] between axes, in [0, π] between vectors.

    Exact for small angles too, where an arc cosine loses half the digits.
    """
    sine = torch.linalg.cross(a, b).norm(dim=-1)
    cosine = (a * b).sum(-1)
    return torch.atan2(sine, cosine.abs() if axial else cosine)


def frame_to_z(axis: Float[Tensor, "*d 3"]) -> Float[Tensor, "*d 3 3"]:
    """A proper rotation ``R`` with ``R @ axis = z`` for each unit axis (the turn about the axis is arbitrary)."""
    smallest = axis.abs().argmin(-1)
    helper = torch.nn.functional.one_hot(smallest, 3).to(axis)
    first = torch.linalg.cross(helper, axis)
    first = first / first.norm(dim=-1, keepdim=True)
    return torch.stack([first, torch.linalg.cross(axis, first), axis], dim=-2)
