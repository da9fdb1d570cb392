"""The polynomial form of spherical harmonics against the harmonics themselves and their automatic derivatives."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import ShapeError
from tractode.ops import sh_polynomial as poly
from tractode.ops import spherical_harmonics as sh


def directions(n: int) -> torch.Tensor:
    drawn = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn[:, 0] = torch.tensor([0.0, 0.0, 1.0])  # the pole, where angles fail
    return drawn / drawn.norm(dim=0)


@pytest.mark.parametrize("order", [2, 4, 8, 12])
def test_value_is_that_of_the_harmonics(order: int) -> None:
    d = directions(50)
    coeffs = torch.randn(sh.n_coefficients(order), 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    b = poly.contraction(poly.from_harmonics(order) @ coeffs, d)
    expected = (sh.basis(d.mT, order) * coeffs.mT).sum(-1)
    torch.testing.assert_close(poly.dot(d, poly.apply(b, d)), expected, rtol=1e-10, atol=1e-10)


def test_surface_gradient_is_that_of_the_harmonics() -> None:
    order, d = 8, directions(20)
    coeffs = torch.randn(45, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    b = poly.contraction(poly.from_harmonics(order) @ coeffs, d)
    free = d.mT.clone().requires_grad_()
    unit = free / free.norm(dim=-1, keepdim=True)
    (sh.basis(unit, order) * coeffs.mT).sum().backward()
    bd = poly.apply(b, d)
    torch.testing.assert_close(order * (bd - poly.dot(d, bd) * d), free.grad.mT, rtol=1e-9, atol=1e-9)


def test_hessian_is_that_of_the_gradient() -> None:
    order, d = 6, directions(5)
    components = torch.randn(28, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def gradient(x: torch.Tensor) -> torch.Tensor:
        # Homogeneous of degree 6: B is of degree 4 in x, so 6 B x is the gradient everywhere, not only on the sphere.
        return order * poly.apply(poly.contraction(components, x), x)

    step = 1e-6 * torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    column = (gradient(d + step) - gradient(d - step)) / 2e-6
    expected = order * (order - 1) * poly.contraction(components, d)[:3]
    torch.testing.assert_close(column, expected, rtol=1e-6, atol=1e-6)


def test_transpose_is_the_adjoint() -> None:
    d = directions(7)
    components = torch.randn(45, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    weights = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    left = (poly.contraction(components, d) * weights).sum(0)
    right = (components * poly.contraction_transpose(weights, d, 8)).sum(0)
    torch.testing.assert_close(left, right)


def test_order_zero_has_no_peaks() -> None:
    with pytest.raises(ShapeError, match="even order"):
        poly.from_harmonics(0)
