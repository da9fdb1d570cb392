"""The one spherical-harmonic basis of the house: real, even orders, orthonormal, as MRtrix3 (tournier07, non-legacy).

Tournier, Calamante & Connelly, *Robust determination of the fibre orientation distribution in diffusion MRI*,
NeuroImage 2007, doi:10.1016/j.neuroimage.2007.02.016. Departure: evaluated by Cartesian recurrences, without angles,
so that values and derivatives are finite at the poles as everywhere else.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor


def n_coefficients(order: int) -> int:
    """Number of even coefficients up to ``order``."""
    return (order + 1) * (order + 2) // 2


def degrees(order: int) -> Int[Tensor, " l"]:
    """The degree of each coefficient: 0, 2, 2, 2, 2, 2, 4, …; coefficient ``(l, m)`` has index ``l(l+1)/2 + m``."""
    return torch.tensor([degree for degree in range(0, order + 1, 2) for _ in range(2 * degree + 1)])


def basis(directions: Float[Tensor, "*d 3"], order: int) -> Float[Tensor, "*d l"]:
    """Every even harmonic up to ``order`` at unit directions; ``amplitudes = basis(d, order) @ coefficients``.

    The directions are taken as they are: the caller normalises them. Derivatives are those of a polynomial in x, y, z
    that equals the harmonic on the sphere, so project them on the tangent plane for a surface gradient.
    """
    x, y, z = directions.unbind(-1)
    legendre = _scaled_legendre(z, order)
    columns: list[Tensor] = [torch.empty(0)] * n_coefficients(order)
    # Re and Im of (x + iy)^m are sin(θ)^m cos(mφ) and sin(θ)^m sin(mφ).
    cosine, sine = torch.ones_like(z), torch.zeros_like(z)
    for m in range(order + 1):
        for degree in range(m + m % 2, order + 1, 2):
            centre = degree * (degree + 1) // 2
            columns[centre + m] = legendre[degree, m] * cosine
            if m:
                columns[centre - m] = legendre[degree, m] * sine
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
    return torch.stack(columns, dim=-1)


def _scaled_legendre(z: Float[Tensor, "*d"], order: int) -> dict[tuple[int, int], Tensor]:
    """Normalised associated Legendre functions divided by ``sin(θ)^m``: polynomials in z, by the three-term recurrence."""
    values: dict[tuple[int, int], Tensor] = {}
    for m in range(order + 1):
        previous, current = torch.zeros_like(z), torch.full_like(z, _sectoral(m))
        values[m, m] = current
        for degree in range(m + 1, order + 1):
            a = math.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
            b = math.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1)) if degree > m + 1 else 0.0
            previous, current = current, a * (z * current - b * previous)
            values[degree, m] = current
    return values


@cache
def _sectoral(m: int) -> float:
    """The (m, m) function over ``sin(θ)^m``, with the √2 of a real harmonic for m > 0 and the Condon–Shortley phase."""
    value = math.sqrt(1 / (4 * math.pi))
    for k in range(1, m + 1):
        value *= -math.sqrt((2 * k + 1) / (2 * k))
    return value * (math.sqrt(2) if m else 1)


def zonal(order: int, cosines: Float[Tensor, "*d"]) -> Float[Tensor, "*d r"]:
    """The harmonics of m = 0 at given cosines of the polar angle, one column per even degree."""
    legendre = _scaled_legendre(cosines, order)
    return torch.stack([legendre[degree, 0] for degree in range(0, order + 1, 2)], dim=-1)
