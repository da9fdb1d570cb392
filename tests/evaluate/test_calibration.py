"""Calibration: probabilities that are kept have no error, stated ones that are not have the error they were given."""

from __future__ import annotations

import math

import pytest
import torch

from tractode.evaluate.calibration import discrimination, reliability


def test_kept_promises_have_no_error() -> None:
    generator = torch.Generator().manual_seed(3)
    p = torch.rand(200_000, generator=generator)
    happened = torch.rand(200_000, generator=generator) < p
    found = reliability(p, happened)
    assert found.error < 0.005
    assert found.brier == pytest.approx(1 / 6, abs=0.003)  # ∫ p (1 − p)


def test_the_error_is_the_distance_from_what_happened() -> None:
    p = torch.tensor([0.75] * 8 + [0.25] * 8)
    happened = torch.tensor([True] * 2 + [False] * 6 + [False] * 8)
    found = reliability(p, happened, n_bins=4)
    assert found.counts == (8, 8)
    assert found.stated == pytest.approx((0.25, 0.75))
    assert found.observed == pytest.approx((0.0, 0.25))
    assert found.error == pytest.approx((8 * 0.25 + 8 * 0.5) / 16)


def test_bins_of_equal_counts_hold_equal_counts() -> None:
    p = torch.linspace(0.9, 1.0, 40) ** 9
    found = reliability(p, torch.ones(40, dtype=torch.bool), n_bins=5, equal_counts=True)
    assert found.counts == (8,) * 5
    assert list(found.stated) == sorted(found.stated)


def test_extremes_fall_into_the_outer_bins_and_nothing_gives_nan() -> None:
    found = reliability(torch.tensor([0.0, 1.0]), torch.tensor([False, True]))
    assert found.error == 0.0
    empty = reliability(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert math.isnan(empty.error)


def test_discrimination_counts_pairs() -> None:
    score = torch.tensor([0.1, 0.4, 0.4, 0.8])
    happened = torch.tensor([False, False, True, True])
    assert discrimination(score, happened) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert math.isnan(discrimination(score, torch.ones(4, dtype=torch.bool)))
