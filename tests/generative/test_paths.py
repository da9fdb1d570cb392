"""Diffusion and flow matching on normal data, for which the best prediction is known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tractode.generative.diffusion import Diffusion
from tractode.generative.flow_matching import FlowMatching, graded_times

MEAN = torch.tensor([0.4, -0.7])
COVARIANCE = torch.tensor([[0.30, 0.12], [0.12, 0.10]])
FACTOR = torch.linalg.cholesky(COVARIANCE)
N = 20_000


def data(generator: torch.Generator, n: int = N) -> Tensor:
    return MEAN + torch.randn(n, 2, generator=generator) @ FACTOR.T


def best_noise(path: Diffusion) -> Callable[[Tensor, Tensor], Tensor]:
    """``E[ε | x_t] = σ (ᾱ Σ + σ² 1)⁻¹ (x − √ᾱ μ)`` for data N(μ, Σ)."""

    def predict(x: Tensor, time: Tensor) -> Tensor:
        share = path.signal_shares[round(float(time[0]) * path.n_times)].to(x)
        spread = share * COVARIANCE + (1 - share) * torch.eye(2)
        return (1 - share).sqrt() * torch.linalg.solve(spread, (x - share.sqrt() * MEAN).T).T

    return predict


def best_velocity(x: Tensor, time: Tensor) -> Tensor:
    """``E[x_1 − x_0 | x_t]`` for independent ``x_0`` ~ N(0, 1) and ``x_1`` ~ N(μ, Σ)."""
    t = time[0]
    spread = t**2 * COVARIANCE + (1 - t) ** 2 * torch.eye(2)
    cross = t * COVARIANCE - (1 - t) * torch.eye(2)
    return MEAN + (cross @ torch.linalg.solve(spread, (x - t * MEAN).T)).T


def check_moments(drawn: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(drawn.mean(0), MEAN, atol=tolerance, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), COVARIANCE, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("path", "n_steps"), [(Diffusion(), 300), (Diffusion(), 1000), (Diffusion(spacing="trailing"), 400)]
)
def test_diffusion_with_the_best_noise_draws_the_data(
    path: Diffusion, n_steps: int, generator: torch.Generator
) -> None:
    start = torch.randn(N, 2, generator=generator)
    check_moments(path.sample(best_noise(path), start, n_steps), 0.02)


@pytest.mark.parametrize(
    ("path", "n_steps"),
    [
        (FlowMatching(), 100),
        (FlowMatching(method="midpoint"), 12),
        (FlowMatching(method="midpoint", grid="edm"), 30),
    ],
)
def test_flow_with_the_best_velocity_draws_the_data(
    path: FlowMatching, n_steps: int, generator: torch.Generator
) -> None:
    check_moments(path.sample(best_velocity, torch.randn(N, 2, generator=generator), n_steps), 0.02)


@pytest.mark.parametrize("path", [Diffusion(), FlowMatching(), FlowMatching(times="edm")])
def test_target_is_on_average_the_best_prediction(path: Diffusion | FlowMatching, generator: torch.Generator) -> None:
    """The target minus the best prediction has mean nought and is uncorrelated with where it was asked."""
    n = 400
    for _ in range(3):
        x1, source = data(generator, n), torch.randn(n, 2, generator=generator)
        x, time, target = path.training_pair(x1, source, generator)
        assert (time >= 0).all()
        assert (time <= 1).all()
        best = best_noise(path) if isinstance(path, Diffusion) else best_velocity
        left = torch.cat([target[i : i + 1] - best(x[i : i + 1], time[i : i + 1]) for i in range(n)])
        assert left.mean(0).abs().max() < 0.25
        assert (left * x).mean(0).abs().max() < 0.25


@pytest.mark.parametrize(
    "path", [Diffusion(), Diffusion(spacing="trailing"), FlowMatching(), FlowMatching(method="midpoint", grid="edm")]
)
@pytest.mark.parametrize("n_steps", [1, 3, 7])
def test_one_datum_is_reached_exactly_in_any_number_of_steps(path: Diffusion | FlowMatching, n_steps: int) -> None:
    """If all data are one line, the best prediction leads to it however few the steps."""
    line = torch.linspace(-0.9, 0.8, 12).reshape(1, 4, 3)
    start = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(3))
    calls = []

    def predict(x: Tensor, time: Tensor) -> Tensor:
        assert time.shape == (5,)
        calls.append(float(time[0]))
        if isinstance(path, FlowMatching):
            return line - start
        share = path.signal_shares[round(float(time[0]) * path.n_times)]
        return (x - share.sqrt() * line) / (1 - share).sqrt()

    drawn = path.sample(predict, start, n_steps)
    torch.testing.assert_close(drawn, line.expand(5, 4, 3), atol=2e-4, rtol=0)
    assert len(calls) == path.evaluations(n_steps)


def test_flow_starts_at_any_source(generator: torch.Generator) -> None:
    """Coupled source: x_1 = x_0 + 0.3 row by row, so the velocity is 0.3 everywhere and one step is exact."""
    source = torch.randn(50, 4, 3, generator=generator)
    x, time, target = FlowMatching().training_pair(source + 0.3, source, generator)
    torch.testing.assert_close(target, torch.full_like(target, 0.3))
    torch.testing.assert_close(x, source + 0.3 * time[:, None, None])
    moved = FlowMatching().sample(lambda x, _: torch.full_like(x, 0.3), source, 1)
    torch.testing.assert_close(moved, source + 0.3)


def test_schedule_is_the_published_one() -> None:
    path = Diffusion()
    shares = path.signal_shares
    assert float(1 - shares[0]) == pytest.approx(0.0015)
    assert float(1 - shares[-1] / shares[-2]) == pytest.approx(0.0205)
    assert float(shares[-1]) < 2e-4
    assert path.sampling_times(10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert Diffusion(spacing="trailing").sampling_times(10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    for spacing in (path, Diffusion(spacing="trailing")):
        assert spacing.sampling_times(1000) == list(range(999, -1, -1))
        assert spacing.sampling_times(1) == [999]
        assert len(set(spacing.sampling_times(7))) == 7
    with pytest.raises(ValueError, match="1 to 1000"):
        path.sampling_times(0)


def test_skewed_times_are_log_normal(generator: torch.Generator) -> None:
    _, time, _ = FlowMatching(times="edm").training_pair(torch.zeros(N, 1), torch.zeros(N, 1), generator)
    sigma = ((1 - time) / time).log()
    assert float(sigma.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(sigma.std()) == pytest.approx(1.2, abs=0.03)
    times = graded_times(8)
    assert times[0] == 0
    assert times[-1] == 1
    assert list(times) == sorted(times)
    with pytest.raises(ValueError, match="at least one"):
        graded_times(0)


def test_clipping_keeps_samples_in_the_box() -> None:
    start = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))
    drawn = Diffusion(clip=1.0).sample(lambda x, _: torch.zeros_like(x), start, 5)
    assert drawn.abs().max() <= 1
    assert Diffusion().sample(lambda x, _: torch.zeros_like(x), start, 5).abs().max() > 1
