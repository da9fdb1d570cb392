"""The deconvolution's linear systems: lower triangles give what whole matrices do, single precision nearly so."""

from __future__ import annotations

import pytest
import torch

from tractode.models.deconvolution import Deconvolution, constrained_deconvolution
from tractode.models.response import gaussian_response
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh


@pytest.fixture(scope="module")
def signals() -> torch.Tensor:
    """Sixty noisy signals of one or two fibres at 45 directions, b = 2000 s/mm², SNR 20."""
    generator = torch.Generator().manual_seed(3)
    axes = torch.randn(60, 2, 3, generator=generator, dtype=torch.float64)
    axes = axes / axes.norm(dim=-1, keepdim=True)
    share = torch.rand(60, 1, generator=generator, dtype=torch.float64)
    each = (-2000 * (0.3e-3 + 1.4e-3 * (axes @ sphere.directions(45).mT).square())).exp()
    clean = share * each[:, 0] + (1 - share) * each[:, 1]
    return (clean + 0.05 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)).abs()


@pytest.fixture(scope="module")
def operator() -> Deconvolution:
    response = gaussian_response(2000.0, 1.7e-3, 0.3e-3, 1.0).coefficients
    return Deconvolution(sphere.directions(45), response, 8)


def test_a_solve_is_that_of_the_whole_matrix(operator: Deconvolution, signals: torch.Tensor) -> None:
    active = operator.active_set(signals)
    target = signals @ operator.forward
    held = active.double()[:, :, None] * operator.constraint
    whole = operator.normal + held.mT @ held
    expected = torch.linalg.solve(whole, target[..., None])[..., 0]
    assert torch.allclose(operator.solve(target, active), expected, rtol=1e-9, atol=1e-11)
    # At the end of the iteration the set held at zero is the set of negative amplitudes.
    assert torch.equal(expected @ operator.constraint.mT < 0, active)


def test_single_precision_differs_by_rounding_only(operator: Deconvolution, signals: torch.Tensor) -> None:
    directions = sphere.directions(45)
    exact = constrained_deconvolution(signals, directions, operator.response, 8)
    fast = constrained_deconvolution(signals.float(), directions, operator.response, 8, torch.float32)
    assert fast.dtype == torch.float32
    assert fast.shape == (60, sh.n_coefficients(8))
    assert (fast - exact).abs().max() < 2e-5 * exact.abs().max()


def test_the_compiled_rounds_end_where_the_matrix_products_do(operator: Deconvolution, signals: torch.Tensor) -> None:
    active = operator.active_set(signals)
    fod, settled = operator.fitted(signals)
    assert torch.equal(settled, active)
    assert torch.allclose(fod, operator.solve(signals @ operator.forward, active), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [4, 6, 10])
def test_other_orders_end_there_too(order: int, signals: torch.Tensor) -> None:
    other = Deconvolution(sphere.directions(45), gaussian_response(2000.0, 1.7e-3, 0.3e-3, 1.0).coefficients, order)
    fod, settled = other.fitted(signals)
    assert torch.equal(settled, other.active_set(signals))
    assert torch.allclose(fod, other.solve(signals @ other.forward, settled), rtol=1e-8, atol=1e-11)


def test_a_result_does_not_depend_on_the_number_of_threads(operator: Deconvolution, signals: torch.Tensor) -> None:
    many = signals.repeat(20, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = operator.fitted(many)[0]
        torch.set_num_threads(2)
        two = operator.fitted(many)[0]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)
    assert torch.equal(one[:60], one[60:120])
