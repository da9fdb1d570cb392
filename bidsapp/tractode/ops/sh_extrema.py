"""The largest value of an even function on the sphere, given by its harmonics, and the axis where it stands.

The best of many directions is refined by Newton's method in the tangent plane, as for an eigenvector of a symmetric
tensor: Schultz & Seidel, IEEE TVCG 2008, doi:10.1109/TVCG.2008.128. Departure: a step that does not raise the value is
not taken, so that the answer is never below the best of the directions searched.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import least_squares, sphere
from tractode.ops import sh_polynomial as poly
from tractode.ops import spherical_harmonics as sh

_N_SEARCHED = 1600  # axes some 4 degrees apart
_N_STEPS = 4
_TILE = 256


def largest(coefficients: Float[Tensor, "v l"]) -> tuple[Float[Tensor, "v 1"], Float[Tensor, "v 3"]]:
    """Greatest value of each function and its unit axis (the side of z ≥ 0 where it starts; a constant has any axis).

    Differentiable in the coefficients: at a maximum the value's slope is the basis there, the axis counts as fixed.
    """
    order = poly.order_of(coefficients.shape[-1])
    with torch.no_grad():
        axis = least_squares.in_tiles(lambda tile: _axis(tile, order), coefficients.detach(), _TILE)
    return (coefficients * sh.basis(axis, order)).sum(-1, keepdim=True), axis


def smallest(coefficients: Float[Tensor, "v l"]) -> tuple[Float[Tensor, "v 1"], Float[Tensor, "v 3"]]:
    """Least value of each function and its unit axis; see `largest`."""
    value, axis = largest(-coefficients)
    return -value, axis


def _axis(coefficients: Float[Tensor, "t l"], order: int) -> Float[Tensor, "t 3"]:
    axes, values = (part.to(coefficients) for part in _searched(order))
    axis = axes[(coefficients @ values.mT).argmax(-1)].mT
    if order < 2:
        return axis.mT
    components = poly.from_harmonics(order).to(coefficients) @ coefficients.mT
    height = _height(components, axis)
    for _ in range(_N_STEPS):
        trial = _stepped(components, axis, order)
        raised = _height(components, trial)
        better = raised > height
        axis, height = torch.where(better, trial, axis), torch.where(better, raised, height)
    return axis.mT


@cache
def _searched(order: int) -> tuple[Float[Tensor, "d 3"], Float[Tensor, "d l"]]:
    axes = sphere.directions(_N_SEARCHED)
    return axes, sh.basis(axes, order)


def _height(components: Float[Tensor, "n t"], axis: Float[Tensor, "3 t"]) -> Float[Tensor, " t"]:
    return poly.dot(axis, poly.apply(poly.contraction(components, axis), axis))


def _stepped(components: Float[Tensor, "n t"], axis: Float[Tensor, "3 t"], order: int) -> Float[Tensor, "3 t"]:
    """One step of Newton in the plane at right angles to the axis, back on the sphere."""
    matrix = poly.contraction(components, axis)
    first, second = sphere.frame_to_z(axis.mT)[:, :2].permute(1, 2, 0)
    along = poly.apply(matrix, axis)
    value = poly.dot(axis, along)
    slope = order * torch.stack([poly.dot(first, along), poly.dot(second, along)])
    # Hessian on the sphere: L(L−1)·B in the plane, less the radial slope L·f.
    scale = order * (order - 1)
    a = scale * poly.dot(first, poly.apply(matrix, first)) - order * value
    b = scale * poly.dot(first, poly.apply(matrix, second))
    c = scale * poly.dot(second, poly.apply(matrix, second)) - order * value
    determinant = a * c - b * b
    peaked = (a < 0) & (determinant > 0)
    safe = torch.where(peaked, determinant, torch.ones_like(determinant))
    u = torch.where(peaked, (b * slope[1] - c * slope[0]) / safe, torch.zeros_like(safe)).clamp(-0.1, 0.1)
    v = torch.where(peaked, (b * slope[0] - a * slope[1]) / safe, torch.zeros_like(safe)).clamp(-0.1, 0.1)
    moved = axis + u * first + v * second
    return moved / moved.norm(dim=0)
