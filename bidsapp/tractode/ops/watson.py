"""Watson's distribution of axes, ``∝ exp(κ (μ·n)²)``: its moments, and functions of one axis spread by it.

Mardia & Jupp, *Directional Statistics*, Wiley 2000, doi:10.1002/9780470316979. Moments by Gauss–Legendre quadrature, which is
smooth in κ everywhere, 0 and large values included, where formulas with Dawson's integral cancel.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_N_NODES = 64


@cache
def quadrature() -> tuple[Float[Tensor, " q"], Float[Tensor, " q"]]:
    """Nodes and weights for even functions of a cosine: over 0–1, weights of sum 1."""
    nodes, weights = np.polynomial.legendre.leggauss(_N_NODES)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


@cache
def legendre(order: int) -> Float[Tensor, "r q"]:
    """``P_l`` of even degrees at the nodes of `quadrature`."""
    nodes = quadrature()[0].numpy()
    rows = [np.polynomial.legendre.Legendre.basis(degree)(nodes) for degree in range(0, order + 1, 2)]
    return torch.from_numpy(np.stack(rows))


@cache
def legendre_powers(order: int) -> Float[Tensor, "r k"]:
    """Coefficients of ``P_l`` of even degrees in the powers of the squared cosine."""
    rows = [np.polynomial.legendre.leg2poly([0] * degree + [1])[::2] for degree in range(0, order + 1, 2)]
    return torch.from_numpy(np.stack([np.pad(row, (0, order // 2 + 1 - len(row))) for row in rows]))


def moments(kappa: Float[Tensor, "*v"], order: int) -> Float[Tensor, "*v r"]:
    """Mean of ``P_l(μ·n)`` for even l: 1, 0, 0, … for κ = 0, all 1 for κ → ∞."""
    nodes, weights = (part.to(kappa) for part in quadrature())
    density = weights * torch.exp(kappa[..., None] * (nodes**2 - 1))
    return (density @ legendre(order).to(kappa).mT) / density.sum(-1, keepdim=True)


def moments_and_slopes(kappa: Float[Tensor, "*v"], order: int) -> tuple[Float[Tensor, "*v r"], Float[Tensor, "*v r"]]:
    """`moments` and their derivatives in κ: ``⟨P_l t²⟩ − ⟨P_l⟩⟨t²⟩``."""
    nodes, weights = (part.to(kappa) for part in quadrature())
    square, rows = nodes**2, legendre(order).to(kappa).mT
    density = weights * torch.exp(kappa[..., None] * (square - 1))
    density = density / density.sum(-1, keepdim=True)
    mean = density @ rows
    spread = density * (square - (density @ square)[..., None])
    return mean, spread @ rows


def mean_square(moments: Float[Tensor, "*v r"]) -> Float[Tensor, "*v"]:
    """Mean of ``(μ·n)²``, from 1/3 to 1, from the moments: ``(1 + 2⟨P₂⟩)/3``."""
    return (1 + 2 * moments[..., 1]) / 3


def expansion(values: Float[Tensor, "*u q"], order: int) -> Float[Tensor, "*u r"]:
    """Legendre coefficients of even functions of a cosine given at the nodes: ``f(t) = Σ c_l P_l(t)``."""
    degree = torch.arange(0, order + 1, 2).to(values)
    weights = quadrature()[1].to(values)
    return (2 * degree + 1) * ((values * weights) @ legendre(order).to(values).mT)
