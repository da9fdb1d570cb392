"""Products of three Hermite functions: the eigenfunctions of the harmonic oscillator in space, those of even order.

Özarslan et al., *Mean apparent propagator (MAP) MRI*, NeuroImage 2013, doi:10.1016/j.neuroimage.2013.04.016, eqs. 23–27:
``φ_n(x) = i^(−n) H_n(x) exp(−x²/2) / √(2ⁿ n!)`` in each coordinate, with n₁ + n₂ + n₃ even, so that the product is real. All
functions of one order together span a space that no rotation leaves.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@cache
def indices(order: int) -> Int[Tensor, "f 3"]:
    """n₁ n₂ n₃ of each function, by rising total order."""
    rows = [(n - i - j, j, i) for n in range(0, order + 1, 2) for i in range(n + 1) for j in range(n - i + 1)]
    return torch.tensor(rows)


def n_functions(order: int) -> int:
    """1, 7, 22, 50, 95 for orders 0, 2, 4, 6, 8."""
    half = order // 2
    return (half + 1) * (half + 2) * (4 * half + 3) // 6


def basis(points: Float[Tensor, "*n 3"], order: int) -> Float[Tensor, "*n f"]:
    """Every function at points in the basis's own (dimensionless) coordinates."""
    n1, n2, n3 = indices(order).to(points.device).unbind(-1)
    sign = (1 - (n1 + n2 + n3) % 4).to(points)  # i^(−N) for even N
    first, second, third = (_hermite(points[..., k], order) for k in range(3))
    return sign * first[..., n1] * second[..., n2] * third[..., n3]


def _hermite(x: Float[Tensor, "*n"], order: int) -> Float[Tensor, "*n k"]:
    """``H_n(x) exp(−x²/2) / √(2ⁿ n!)`` for n up to ``order``, by the recurrence of normalised Hermite functions."""
    values = [(-x.square() / 2).exp()]
    for n in range(order):
        below = math.sqrt(n / (n + 1)) * values[n - 1] if n else 0.0
        values.append(math.sqrt(2 / (n + 1)) * x * values[n] - below)
    return torch.stack(values, dim=-1)


@cache
def at_origin(order: int) -> Float[Tensor, " f"]:
    """Each function's value at 0."""
    return basis(torch.zeros(3, dtype=torch.float64), order)


@cache
def integral(order: int) -> Float[Tensor, " f"]:
    """Each function's integral over space, by Gauss–Hermite quadrature, which is exact here."""
    nodes, weights = line_quadrature(order)
    grid = torch.stack(torch.meshgrid(nodes, nodes, nodes, indexing="ij"), dim=-1).reshape(-1, 3)
    weight = (weights[:, None, None] * weights[:, None] * weights).reshape(-1)
    return weight @ basis(grid, order)


@cache
def line_quadrature(order: int) -> tuple[Float[Tensor, " q"], Float[Tensor, " q"]]:
    """Nodes and weights that integrate ``exp(−x²/2)`` times a polynomial of this order exactly over a line."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order // 2 + 1)
    return torch.from_numpy(nodes), torch.from_numpy(weights * np.exp(nodes**2 / 2))


@cache
def hessian_at_origin(order: int) -> Float[Tensor, "3 3 f"]:
    """Each function's second derivatives at 0."""
    functions = torch.func.jacfwd(torch.func.jacfwd(lambda x: basis(x, order)))
    return functions(torch.zeros(3, dtype=torch.float64)).permute(1, 2, 0)


@cache
def roughness(order: int, from_order: int = 0) -> Float[Tensor, "f f"]:
    """``∫ ∇²φ_i ∇²φ_j / π^(3/2)``: a quadratic form of coefficients; functions below ``from_order`` do not count.

    From ``h'' = ½(√(n(n−1)) h_(n−2) − (2n+1) h_n + √((n+1)(n+2)) h_(n+2))`` of orthonormal Hermite functions (Fick et al.,
    *MAPL*, NeuroImage 2016, doi:10.1016/j.neuroimage.2016.03.046, with scale factors of 1).
    """
    columns = [tuple(row) for row in indices(order).tolist()]
    place = {tuple(row): k for k, row in enumerate(indices(order + 2).tolist())}
    laplacian = torch.zeros(len(place), len(columns), dtype=torch.float64)
    for column, index in enumerate(columns):
        if sum(index) < from_order:
            continue
        sign = (-1) ** (sum(index) // 2)
        for axis in range(3):
            n = index[axis]
            for change, factor in ((-2, n * (n - 1)), (0, -((2 * n + 1) ** 2)), (2, (n + 1) * (n + 2))):
                target = (*index[:axis], n + change, *index[axis + 1 :])
                if factor:
                    laplacian[place[target], column] += sign * math.copysign(math.sqrt(abs(factor)), factor) / 2
    return laplacian.mT @ laplacian
