"""Fully symmetric tensors of rank 4 in three dimensions, and the averages of the kurtosis that they describe.

Jensen, Helpern, Ramani, Lu & Kaczynski, *Diffusional kurtosis imaging*, MRM 2005, doi:10.1002/mrm.20508; Tabesh, Jensen,
Ardekani & Helpern, *Estimation of tensors and tensor-derived measures in diffusional kurtosis imaging*, MRM 2011,
doi:10.1002/mrm.22655; the kurtosis tensor's mean and anisotropy of Hansen, Lund, Sangill & Jespersen, MRM 2013,
doi:10.1002/mrm.24743, and Glenn et al., NMR Biomed 2015, doi:10.1002/nbm.3271. Departure: mean kurtosis is not taken from
Carlson's elliptic integrals, which need cases where eigenvalues meet, but from one smooth integral (`_mean_weights`).

Components are those of exponents in lexical order: xxxx xxxy xxxz xxyy xxyz xxzz xyyy xyyz xyzz xzzz yyyy yyyz yyzz yzzz zzzz.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import symmetric

EXPONENTS = tuple("".join(c) for c in combinations_with_replacement("xyz", 4))
MULTIPLICITIES = tuple(
    math.factorial(4) // math.prod(math.factorial(n) for n in Counter(e).values()) for e in EXPONENTS
)
_PAIRS = ("xx", "xy", "xz", "yy", "yz", "zz")
_FIRST, _SECOND = (["xyz".index(pair[i]) for pair in _PAIRS] for i in range(2))
_FRONT, _BACK = ([_PAIRS.index(e[i : i + 2]) for e in EXPONENTS] for i in (0, 2))
_N_NODES = 24
_LEAST_RATIO = 0.01


def quartic_form(directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 15"]:
    """The row ``q`` with ``q · components = Σ W_ijkl g_i g_j g_k g_l`` for each direction g."""
    pairs = directions[..., _FIRST] * directions[..., _SECOND]
    return pairs[..., _FRONT] * pairs[..., _BACK] * directions.new_tensor(MULTIPLICITIES)


def contraction(components: Float[Tensor, "*v 15"]) -> Float[Tensor, "*v 6"]:
    """``T_ij = Σ_k W_ijkk``, a symmetric tensor (xx xy xz yy yz zz)."""
    places = [[EXPONENTS.index("".join(sorted(pair + 2 * k))) for k in "xyz"] for pair in _PAIRS]
    return torch.stack([components[..., p].sum(-1) for p in places], -1)


def mean_of_tensor(components: Float[Tensor, "*v 15"]) -> Float[Tensor, "*v"]:
    """The average of ``W(g)`` over all directions: a fifth of the full contraction."""
    return symmetric.trace(contraction(components)) / 5


def anisotropy(components: Float[Tensor, "*v 15"]) -> Float[Tensor, "*v"]:
    """``|W − W̄ I| / |W|`` with I the isotropic tensor of mean 1: 0 for an isotropic one and for none."""
    count = components.new_tensor(MULTIPLICITIES)
    isotropic = components.new_tensor([1 if len(set(e)) == 1 else 1 / 3 if all(e.count(a) % 2 == 0 for a in e) else 0 for e in EXPONENTS])  # fmt: skip
    deviation = components - mean_of_tensor(components)[..., None] * isotropic
    above, below = (count * deviation.square()).sum(-1), (count * components.square()).sum(-1)
    ratio = above / torch.where(below > 0, below, 1)
    positive = ratio > 0  # the square root has no slope at 0
    return torch.where(positive, torch.where(positive, ratio, 1).sqrt(), 0)


def averages(
    values: Float[Tensor, "*v 3"], vectors: Float[Tensor, "*v 3 3"], product: Float[Tensor, "*v 15"]
) -> tuple[Float[Tensor, "*v"], Float[Tensor, "*v"], Float[Tensor, "*v"]]:
    """Mean, axial and radial kurtosis: averages of ``K(g) = V(g) / D(g)²`` over the sphere, along the first axis, across it.

    Parameters
    ----------
    values, vectors
        Eigenvalues of D, largest first, and its eigenvectors as columns. Values below a hundredth of the largest are
        raised to it, and where none is positive the kurtosis is 0.
    product
        ``V = MD² W``, in units of the values squared.
    """
    usable = values[..., :1] > 0
    largest = torch.where(usable, values[..., :1], 1)
    shape = torch.maximum(torch.where(usable, values, 1) / largest, values.new_tensor(_LEAST_RATIO))
    w = torch.where(usable, product / largest.square(), 0)
    frame = vectors.mT
    along = (quartic_form(frame) * w[..., None, :]).sum(-1)  # V_iiii in the frame of D
    halves = (symmetric.quadratic_form(frame) * contraction(w)[..., None, :]).sum(-1) - along  # Σ_{j≠i} V_iijj
    across = halves.sum(-1, keepdim=True) / 2 - halves  # V_jjkk, named by the axis i that is left out
    single, double = _mean_weights(shape)
    mean = (single * along).sum(-1) + 6 * (double * across).sum(-1)
    axial = along[..., 0] / shape[..., 0].square()
    p, q = shape[..., 1].sqrt(), shape[..., 2].sqrt()
    common = 1 / (2 * (p + q).square())
    second, third, both = common * (2 * p + q) / p**3, common * (2 * q + p) / q**3, common / (p * q)
    radial = second * along[..., 1] + third * along[..., 2] + 6 * both * across[..., 0]
    return mean, axial, radial


def _mean_weights(shape: Float[Tensor, "*v 3"]) -> tuple[Float[Tensor, "*v 3"], Float[Tensor, "*v 3"]]:
    """Averages over the sphere of ``x_i⁴ / (xᵀΛx)²`` and of ``x_j² x_k² / (xᵀΛx)²`` (named by i) for eigenvalues Λ.

    The ratio has degree 0, so its average over the sphere is that over a Gaussian; with ``q⁻² = ∫ t e^(−tq) dt`` the Gaussian
    integral is elementary and leaves ``∫ t Π (1 + 2tλ_i)^(−kᵢ−1/2) dt``. With ``1 + 2tλ̄ = r⁻²`` this is an integral over
    0 < r < 1 of a smooth function, which two dozen nodes of Gauss and Legendre give to nine digits for ratios up to 100.
    """
    middle = shape.mean(-1, keepdim=True)
    r, weight = (torch.from_numpy(n).to(shape) for n in _nodes())
    square = r.square()
    u = [1 / (square + (1 - square) * ratio) for ratio in (shape / middle).split(1, dim=-1)]
    base = weight * 2 * square * (1 - square) * (u[0] * u[1] * u[2]).sqrt()
    with_base = [base * each for each in u]
    single = torch.stack([3 * (with_base[i] * u[i]).sum(-1) for i in range(3)], -1)
    double = torch.stack([(with_base[j] * u[k]).sum(-1) for j, k in ((1, 2), (0, 2), (0, 1))], -1)
    factor = 1 / (4 * middle.square())
    return factor * single, factor * double


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(_N_NODES)
    return (points + 1) / 2, weights / 2
