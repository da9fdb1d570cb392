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
