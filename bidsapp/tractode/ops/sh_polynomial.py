"""Spherical harmonics as one homogeneous polynomial in x, y, z: value, gradient and Hessian without angles or poles.

An even function of harmonics up to order L equals, on the sphere, a homogeneous polynomial of degree L (lower degrees
are multiplied by powers of x² + y² + z² = 1), that is, a symmetric tensor of order L with (L+1)(L+2)/2 distinct
components: as many as there are harmonics. Schultz & Seidel, *Estimating crossing fibers: a tensor decomposition
approach*, IEEE TVCG 2008, doi:10.1109/TVCG.2008.128. Departure: the tensor is contracted L − 2 times with the
direction, which leaves a 3×3 matrix ``B``; then ``f = dᵀBd``, ``∇f = L·Bd``, ``∇²f = L(L−1)·B`` (Euler).

Layout: everything is component-first, ``(components, m)`` for m directions, so that each operation runs over contiguous
rows. Component (a, b, c) of x^a y^b z^c, with s = b + c, has index s(s+1)/2 + c. Symmetric 3×3 matrices are rows
xx xy xz yy yz zz.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import ShapeError
from tractode.ops import spherical_harmonics


@cache
def from_harmonics(order: int) -> Float[Tensor, "n l"]:
    """The matrix that turns harmonic coefficients into the components that `contraction` takes (float64)."""
    if order < 2 or order % 2:
        raise ShapeError(
            f"The polynomial of an orientation distribution needs an even order of at least 2; got {order}."
        )
    directions = _lattice(4 * spherical_harmonics.n_coefficients(order))
    harmonics = spherical_harmonics.basis(directions, order)
    values = contraction_transpose(outer(directions.mT, directions.mT), directions.mT, order)
    return torch.linalg.lstsq(values.mT, harmonics).solution


def order_of(n_components: int) -> int:
    """The order of a tensor of so many components: the inverse of (L+1)(L+2)/2."""
    return (math.isqrt(8 * n_components + 1) - 3) // 2


def contraction(components: Float[Tensor, "n m"], directions: Float[Tensor, "3 m"]) -> Float[Tensor, "6 m"]:
    """``B``: the tensor contracted with each direction until a symmetric 3×3 matrix is left."""
    weights = _divided_monomials(directions, order_of(components.shape[0]) - 2)
    # Three sums and not views of one: a sum that grows in place must not change another's history under autograd.
    first, second, third = (components.new_zeros(n, components.shape[1]) for n in (1, 2, 3))
    for weight, (xx, xy, yy) in zip(weights.unbind(0), _rows(len(weights)), strict=True):
        first.addcmul_(weight, components[xx : xx + 1])
        second.addcmul_(weight, components[xy : xy + 2])
        third.addcmul_(weight, components[yy : yy + 3])
    return torch.cat((first, second, third))


def contraction_transpose(
    weights: Float[Tensor, "6 m"], directions: Float[Tensor, "3 m"], order: int
) -> Float[Tensor, "n m"]:
    """The derivative of ``Σ weights·B`` with respect to the components (B is linear in them)."""
    monomials = _divided_monomials(directions, order - 2)
    out = weights.new_zeros(spherical_harmonics.n_coefficients(order), weights.shape[1])
    for monomial, (xx, xy, yy) in zip(monomials.unbind(0), _rows(len(monomials)), strict=True):
        out[xx].addcmul_(monomial, weights[0])
        out[xy : xy + 2].addcmul_(monomial, weights[1:3])
        out[yy : yy + 3].addcmul_(monomial, weights[3:6])
    return out


def outer(first: Float[Tensor, "3 m"], second: Float[Tensor, "3 m"]) -> Float[Tensor, "6 m"]:
    """The weights with which ``Σ weights·B = firstᵀ B second``: off-diagonal entries count twice in a symmetric matrix."""
    a, b = first, second
    return torch.stack(
        (
            a[0] * b[0],
            a[0] * b[1] + a[1] * b[0],
            a[0] * b[2] + a[2] * b[0],
            a[1] * b[1],
            a[1] * b[2] + a[2] * b[1],
            a[2] * b[2],
        )
    )


def apply(matrix: Float[Tensor, "6 m"], vectors: Float[Tensor, "3 m"]) -> Float[Tensor, "3 m"]:
    """Symmetric 3×3 matrices times vectors."""
    xx, xy, xz, yy, yz, zz = matrix.unbind(0)
    x, y, z = vectors.unbind(0)
    return torch.stack((xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z))


def dot(first: Float[Tensor, "3 m"], second: Float[Tensor, "3 m"]) -> Float[Tensor, " m"]:
    """Dot products, summed in a fixed order whatever the number of columns."""
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


@cache
def _rows(n_weights: int) -> tuple[tuple[int, int, int], ...]:
    """For each component of the contracted degree: the indices of its xx, xy (then xz) and yy (then yz, zz) parents."""
    rows: list[tuple[int, int, int]] = []
    s = 0
    while len(rows) < n_weights:
        rows += [(k, k + s + 1, k + 2 * s + 3) for k in range(s * (s + 1) // 2, (s + 1) * (s + 2) // 2)]
        s += 1
    return tuple(rows)


def _divided_monomials(directions: Float[Tensor, "3 m"], degree: int) -> Float[Tensor, "w m"]:
    """``x^a y^b z^c / (a! b! c!)`` of one degree; the factor degree! that completes the multinomial is in the components."""
    x, y, z = (_divided_powers(axis, degree) for axis in directions.unbind(0))
    y_descending = torch.stack(y[::-1])
    z_ascending = torch.stack(z)
    blocks = [y_descending[degree - s :] * z_ascending[: s + 1] * x[degree - s] for s in range(degree + 1)]
    return torch.cat(blocks)


def _divided_powers(values: Float[Tensor, " m"], degree: int) -> list[Tensor]:
    """``1, x, x²/2!, …, x^degree/degree!``."""
    powers = [torch.ones_like(values)]
    for exponent in range(1, degree + 1):
        powers.append(powers[-1] * values * (1 / exponent))
    return powers


def _lattice(n: int) -> Float[Tensor, "n 3"]:
    """A Fibonacci lattice on the upper hemisphere."""
    k = torch.arange(n, dtype=torch.float64)
    z = (k + 0.5) / n
    angle = math.pi * (3 - math.sqrt(5)) * k
    radius = (1 - z * z).sqrt()
    return torch.stack((radius * angle.cos(), radius * angle.sin(), z), dim=-1)
