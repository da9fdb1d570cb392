"""Batched nonlinear least squares: known answers, SciPy's, and the derivative of the optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from tractode.ops.levenberg_marquardt import levenberg_marquardt, value_and_jacobian

_TIMES = torch.linspace(0, 4, 15, dtype=torch.float64)


def _decay(params: torch.Tensor) -> torch.Tensor:
    """An offset and an exponential: ``c + a exp(−k t)``."""
    a, k, c = params[:, :1], params[:, 1:2], params[:, 2:]
    return c + a * (-k * _TIMES).exp()


def _noisy(n: int, sigma: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    truth = torch.rand(n, 3, generator=generator, dtype=torch.float64) + torch.tensor([1.0, 0.6, 0.2]).double()
    data = _decay(truth)
    return truth, data + sigma * torch.randn(data.shape, generator=generator, dtype=torch.float64)


_START = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)


def test_it_finds_the_parameters_of_noiseless_data() -> None:
    truth, data = _noisy(20, sigma=0.0)
    torch.testing.assert_close(levenberg_marquardt(_decay, data, _START.expand(20, 3)), truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_optimum_is_that_of_scipy(weighted: bool) -> None:
    _, data = _noisy(12)
    weights = torch.rand(data.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    found = levenberg_marquardt(_decay, data, _START.expand(12, 3), weights=weights if weighted else None)
    for row, (y, w) in enumerate(zip(data, weights, strict=True)):
        root = w.sqrt().numpy() if weighted else 1.0

        def residual(p: np.ndarray, y: torch.Tensor = y, root: np.ndarray | float = root) -> np.ndarray:
            return root * (_decay(torch.tensor(p)[None])[0] - y).numpy()

        theirs = least_squares(residual, _START[0].numpy(), method="lm", xtol=1e-12, ftol=1e-12, gtol=1e-12).x
        np.testing.assert_allclose(found[row].numpy(), theirs, rtol=1e-5, atol=1e-6)


def test_a_narrow_curved_valley_is_followed() -> None:
    def rosenbrock(p: torch.Tensor) -> torch.Tensor:
        return torch.stack([10 * (p[:, 1] - p[:, 0] ** 2), 1 - p[:, 0]], -1)

    start = torch.tensor([[-1.2, 1.0], [3.0, -5.0], [0.0, 0.0]], dtype=torch.float64)
    found = levenberg_marquardt(rosenbrock, torch.zeros(3, 2, dtype=torch.float64), start, n_iterations=200)
    torch.testing.assert_close(found, torch.ones(3, 2, dtype=torch.float64), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_its_derivative_is_that_of_the_optimum(weighted: bool) -> None:
    _, data = _noisy(3, sigma=0.2)  # large residuals: Gauss and Newton's matrix alone would be wrong
    weights = torch.rand(data.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1

    def optimum(y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return levenberg_marquardt(_decay, y, _START.expand(3, 3), weights=w if weighted else None, n_iterations=200)

    generator = torch.Generator().manual_seed(5)
    along = [torch.randn(data.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    mix = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64)
    variables = data.clone().requires_grad_(), weights.clone().requires_grad_(weighted)
    slopes = torch.autograd.grad((optimum(*variables) @ mix).sum(), variables[: 1 + weighted])
    expected = sum((slope * way).sum() for slope, way in zip(slopes, along, strict=False))
    ahead, behind = ((optimum(data + h * along[0], weights + h * along[1]) @ mix).sum() for h in (1e-4, -1e-4))
    assert float(expected) == pytest.approx(float(ahead - behind) / 2e-4, rel=1e-5)


def test_order_and_number_of_rows_do_not_matter() -> None:
    _, data = _noisy(300)
    found = levenberg_marquardt(_decay, data, _START.expand(300, 3))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    again = levenberg_marquardt(_decay, data[order], _START.expand(300, 3))
    torch.testing.assert_close(again, found[order], rtol=0, atol=0)
    torch.testing.assert_close(levenberg_marquardt(_decay, data[:5], _START.expand(5, 3)), found[:5], rtol=0, atol=0)


def test_each_row_gets_its_own_constants() -> None:
    truth, _ = _noisy(300)
    delays = torch.linspace(0, 1, 300, dtype=torch.float64)[:, None]

    def delayed(p: torch.Tensor, delay: torch.Tensor) -> torch.Tensor:
        return p[:, 2:] + p[:, :1] * (-p[:, 1:2] * (_TIMES + delay)).exp()

    found = levenberg_marquardt(delayed, delayed(truth, delays), _START.expand(300, 3), constants=delays)
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-8)


def test_a_parameter_without_effect_stays_and_nothing_becomes_infinite() -> None:
    data = torch.zeros(2, 15, dtype=torch.float64)
    data[1] = float("inf")
    found = levenberg_marquardt(lambda p: _decay(p) * 0, data, _START.expand(2, 3))
    torch.testing.assert_close(found, _START.expand(2, 3))


def test_no_rows_give_no_rows() -> None:
    assert levenberg_marquardt(_decay, torch.zeros(0, 15).double(), torch.zeros(0, 3).double()).shape == (0, 3)


def test_the_jacobian_is_row_by_row() -> None:
    truth, _ = _noisy(4)
    value, jacobian = value_and_jacobian(_decay, truth)
    torch.testing.assert_close(value, _decay(truth))
    step = torch.tensor([0.0, 1e-6, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        jacobian[..., 1], (_decay(truth + step) - _decay(truth - step)) / 2e-6, rtol=1e-6, atol=1e-8
    )
