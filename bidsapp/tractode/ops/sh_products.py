"""Products of two harmonics as sums of harmonics: ``Y_a Y_b = Σ_c g_abc Y_c`` (Gaunt's coefficients for the real basis).

Homeier & Steinborn, *Some properties of the coupling coefficients of real spherical harmonics and their relation to Gaunt
coefficients*, J Mol Struct THEOCHEM 1996, doi:10.1016/S0166-1280(96)90531-X. Departure: they are found by quadrature that
is exact for these polynomials (Gauss–Legendre in z, even steps in azimuth), not by recursion.

So a sum ``Σ_k w_k Y(d_k) Y(d_k)ᵀ`` over many directions, a matrix of ``n (n + 1) / 2`` numbers, is known from
the far fewer ``Σ_k w_k Y_c(d_k)`` of twice the order, by a sparse product.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.ops import spherical_harmonics as sh


@cache
def products(order: int) -> tuple[Int[Tensor, "z 2"], Float[Tensor, " z"]]:
    """For the lower triangle of pairs up to ``order``, by rows: (number of the pair, c of twice the order) and ``g_abc``, float64.

    Pair ``(a, b)``, ``b ≤ a``, is number ``a (a + 1) / 2 + b``; the entries are in the order of their pairs.
    """
    degree = 4 * order  # of Y_a Y_b Y_c
    nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    turn = torch.arange(degree + 1, dtype=torch.float64) * (2 * math.pi / (degree + 1))
    z = torch.tensor(nodes)[:, None].expand(-1, len(turn))
    radius = (1 - z**2).sqrt()
    points = torch.stack([radius * turn.cos(), radius * turn.sin(), z], -1).reshape(-1, 3)
    weight = torch.tensor(weights).repeat_interleave(len(turn)) * (2 * math.pi / len(turn))
    values, double = sh.basis(points, order), sh.basis(points, 2 * order)
    rows, columns = torch.tril_indices(values.shape[1], values.shape[1])
    table = (values[:, rows] * values[:, columns]).mT @ (weight[:, None] * double)
    found = (table.abs() > 1e-9).nonzero()
    return found, table[found[:, 0], found[:, 1]]


def packed_system(
    matrix: Float[Tensor, "p p"], order: int
) -> tuple[Float[Tensor, " e"], Int[Tensor, " e1"], Int[Tensor, " z"], Float[Tensor, " z"]]:
    """A symmetric matrix as `tractode.ops.lane_algebra` packs it, and how sums add to it; float64.

    The first unknowns are harmonics up to ``order``, and the first sums those of twice the order; the unknowns after them
    stand alone, each with a sum of its own that adds to its diagonal. The matrix is filled up by the identity to a multiple
    of 4. Entry ``e`` gets ``Σ weights · sums[which]`` over the numbers from ``first[e]`` to ``first[e + 1]``.
    """
    p, n = len(matrix), sh.n_coefficients(order)
    whole = torch.eye(p + (-p) % 4, dtype=torch.float64)
    whole[:p, :p] = matrix
    rows, columns = torch.tril_indices(len(whole), len(whole))
    found, weights = products(order)
    alone = torch.arange(n, p)
    pairs = torch.cat([found[:, 0], alone * (alone + 1) // 2 + alone])
    which = torch.cat([found[:, 1], sh.n_coefficients(2 * order) + alone - n])
    first = torch.searchsorted(pairs, torch.arange(len(rows) + 1))
    return whole[rows, columns], first, which, torch.cat([weights, weights.new_ones(len(alone))])
