"""Known answers, agreement with NumPy, tiles that do not show."""

from __future__ import annotations

import numpy as np
import torch

from tractode.ops import least_squares


def _problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(12, 4, generator=generator, dtype=torch.float64),
        torch.randn(9, 12, generator=generator, dtype=torch.float64),
        torch.rand(9, 12, generator=generator, dtype=torch.float64) + 0.1,
    )


def test_ordinary_equals_numpy() -> None:
    design, data, _ = _problem()
    expected = np.linalg.lstsq(design.numpy(), data.numpy().T, rcond=None)[0].T
    np.testing.assert_allclose(least_squares.ordinary(design, data).numpy(), expected, atol=1e-12)


def test_weighted_equals_numpy_on_scaled_rows() -> None:
    design, data, weights = _problem()
    found = least_squares.weighted(design, data, weights)
    for row in range(len(data)):
        root = weights[row].sqrt()
        expected = np.linalg.lstsq((root[:, None] * design).numpy(), (root * data[row]).numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-10)


def test_weights_of_zero_on_too_many_rows_stay_finite() -> None:
    design, data, weights = _problem()
    weights[0, 2:] = 0
    assert bool(torch.isfinite(least_squares.weighted(design, data, weights)).all())


def test_weighted_is_differentiable() -> None:
    design, data, weights = _problem()
    assert torch.autograd.gradcheck(
        lambda y, w: least_squares.weighted(design, y, w), (data[:2].requires_grad_(), weights[:2].requires_grad_())
    )


def test_tiles_join_and_an_empty_input_keeps_its_shape() -> None:
    rows = torch.arange(23.0)[:, None]
    sizes: list[int] = []

    def double(tile: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tile))
        return 2 * tile

    torch.testing.assert_close(least_squares.in_tiles(double, rows, 10), 2 * rows)
    assert sizes == [10, 10, 10]
    assert least_squares.in_tiles(double, rows[:0], 10).shape == (0, 1)


def _monomials(n: int = 40) -> torch.Tensor:
    """A design of monomials, many of whose products are the same."""
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    second = torch.stack([x[:, i] * x[:, j] for i in range(3) for j in range(i, 3)], -1)
    return torch.cat([torch.ones(n, 1).double(), -second, 0.5 * x[:, :1] ** 4, x[:, 1:2] ** 4], -1)


def test_products_that_are_multiples_are_summed_once() -> None:
    design = least_squares.Design(_monomials())
    sums, _, _ = design.products
    assert len(sums) < 45  # 9 columns
    weights = torch.rand(40, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = torch.einsum("ni,nt,nj->tij", design.matrix, weights, design.matrix)
    torch.testing.assert_close(design.normal(sums @ weights), expected)


def test_the_compiled_solver_equals_lapack_and_marks_what_is_singular() -> None:
    design = least_squares.Design(_monomials())
    generator = torch.Generator().manual_seed(4)
    data = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    weights = torch.rand(40, 16, generator=generator, dtype=torch.float64) + 0.01
    weights[5:, 3] = 0
    found = design.weighted(data, weights)
    assert bool(torch.isfinite(found).all())
    normal = design.normal(design.products[0] @ weights)
    expected = torch.linalg.solve(normal, (design.matrix.mT @ (weights * data)).mT).mT
    kept = torch.arange(16) != 3
    torch.testing.assert_close(found[:, kept], expected[:, kept], rtol=1e-9, atol=1e-9)


def test_the_compiled_solver_is_differentiable() -> None:
    design = least_squares.Design(_monomials(14))
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(14, 8, generator=generator, dtype=torch.float64)
    weights = torch.rand(14, 8, generator=generator, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(
        lambda y, w: design.weighted(y, w)[:, :2], (data.requires_grad_(), weights.requires_grad_()), fast_mode=True
    )
