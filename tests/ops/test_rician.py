"""Moments of Rician magnitudes, against sampling and closed forms, and cones of scattered axes."""

from __future__ import annotations

import math

import pytest
import torch

from tractode.ops import cone, rician


@pytest.mark.parametrize("theta", [0.0, 0.5, 2.0, 30.0])
def test_mean_and_variance_are_those_of_samples(theta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    samples = torch.hypot(theta + noise[0], noise[1])
    at = torch.tensor(theta, dtype=torch.float64)
    assert float(rician.mean(at)) == pytest.approx(float(samples.mean()), abs=5e-3)
    assert float(rician.variance(at)) == pytest.approx(float(samples.var()), abs=1e-2)


def test_noise_alone_is_rayleigh() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    assert float(rician.mean(zero)) == pytest.approx(math.sqrt(math.pi / 2))
    assert float(rician.variance(zero)) == pytest.approx(2 - math.pi / 2)


def test_the_table_of_variances_is_the_formula() -> None:
    theta = torch.logspace(-2, 2, 200, dtype=torch.float64)
    torch.testing.assert_close(rician.variance_of(rician.mean(theta)), rician.variance(theta), rtol=0, atol=1e-6)


def test_amplitudes_come_back_where_signal_is_strong_and_better_than_magnitudes_where_it_is_weak() -> None:
    strong = torch.tensor([3.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(rician.amplitude(rician.mean(strong), 3), strong, rtol=2e-3, atol=0.0)
    weak = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    magnitude = rician.mean(weak)
    errors = [(rician.amplitude(magnitude, steps) - weak).abs() for steps in (0, 2, 5)]
    assert bool((errors[1] < 0.5 * errors[0]).all())
    assert bool((errors[2] < errors[1]).all())


def test_a_magnitude_below_the_floor_has_no_negative_amplitude() -> None:
    assert float(rician.amplitude(torch.tensor(0.3), 3)) == 0.0


def test_round_cone_is_rayleighs_quantile_and_a_flat_one_the_normals() -> None:
    round_one = torch.eye(2, dtype=torch.float64)[None] * 1e-4
    flat = torch.diag(torch.tensor([1e-4, 0.0], dtype=torch.float64))[None]
    assert float(cone.of_normal(round_one)) == pytest.approx(1e-2 * math.sqrt(2 * math.log(10)), rel=1e-6)
    assert float(cone.of_normal(flat)) == pytest.approx(1e-2 * 1.6448536, rel=1e-4)


def test_cone_of_a_covariance_holds_that_share_of_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    factor = torch.tensor([[0.03, 0.01], [0.0, 0.015]], dtype=torch.float64)
    plane = torch.randn(200_000, 2, generator=generator, dtype=torch.float64) @ factor.mT
    radius = cone.of_normal((factor @ factor.mT)[None])
    assert float((plane.norm(dim=-1) <= radius).double().mean()) == pytest.approx(0.9, abs=3e-3)
    samples = torch.cat([plane, torch.ones(len(plane), 1, dtype=torch.float64)], -1)[:20_000, None]
    samples = samples / samples.norm(dim=-1, keepdim=True)
    axis = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64)
    assert float(cone.of_samples(axis, samples)) == pytest.approx(float(radius), rel=0.03)


def test_no_cone_is_wider_than_that_of_axes_that_point_anywhere() -> None:
    assert float(cone.of_normal(torch.eye(2, dtype=torch.float64)[None] * 1e6)) == pytest.approx(math.acos(0.1))
    nonsense = torch.full((1, 2, 2), math.nan, dtype=torch.float64)
    assert float(cone.of_normal(nonsense)) == pytest.approx(math.acos(0.1))
