"""Errors of maps, directions and warps whose size is known."""

from __future__ import annotations

import math

import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.evaluate.truth import direction_error, scalar_error, warp_error
from tractode.fields import Affine


def test_scalar_error_is_signed_bias_and_mean_distance() -> None:
    truth = torch.zeros(2, 2, 2)
    estimate = truth.clone()
    estimate[0, 0, 0], estimate[0, 0, 1], estimate[1, 1, 1] = 0.3, -0.1, 9.0
    mask = torch.ones(2, 2, 2, dtype=torch.bool)
    mask[1, 1, 1] = False
    got = scalar_error(estimate, truth, mask)
    assert got["n"] == 7
    assert math.isclose(got["bias"], 0.2 / 7, rel_tol=1e-6)
    assert math.isclose(got["mae"], 0.4 / 7, rel_tol=1e-6)


def test_direction_error_ignores_sign_and_counts_missing_as_90_degrees() -> None:
    angle = math.radians(20)
    truth = torch.tensor([[1.0, 0, 0]] * 3).mT.reshape(3, 3, 1, 1)
    estimate = torch.tensor([[-math.cos(angle), math.sin(angle), 0], [2.0, 0, 0], [0.0, 0, 0]]).mT.reshape(3, 3, 1, 1)
    got = direction_error(estimate, truth, torch.ones(3, 1, 1, dtype=torch.bool))
    assert got["n"] == 3
    assert math.isclose(got["mean"], (20 + 0 + 90) / 3, rel_tol=1e-4)
    assert math.isclose(got["median"], 20, rel_tol=1e-4)


def shift(amount: float, source: str, target: str) -> Affine:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 3] = amount
    return Affine(matrix, source, target)


def test_warp_error_is_the_distance_left(generator: torch.Generator) -> None:
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64) * 30
    got = warp_error(shift(-4.0, "T1w", "MNI"), shift(7.0, "MNI", "T1w"), points)
    assert math.isclose(got["mean"], 3.0, rel_tol=1e-9)
    assert math.isclose(got["mean_before"], 7.0, rel_tol=1e-9)
    assert got["n"] == 50


def test_warps_in_the_same_direction_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(SpaceMismatchError, match="inverse"):
        warp_error(shift(1.0, "T1w", "MNI"), shift(1.0, "T1w", "MNI"), torch.zeros(1, 3, dtype=torch.float64))
