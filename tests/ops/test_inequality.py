"""Least squares under shared inequalities: known answers, SciPy's, and the derivative."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from tractode.ops.inequality import constrained
from tractode.ops.least_squares import Design


def _problem(p: int = 6, t: int = 40) -> tuple[Design, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(25, p, generator=generator, dtype=torch.float64)
    data = torch.randn(25, t, generator=generator, dtype=torch.float64)
    weights = torch.rand(25, t, generator=generator, dtype=torch.float64) + 0.2
    return Design(matrix), data, weights


def test_bounds_on_the_parameters_give_what_scipy_gives() -> None:
    design, data, weights = _problem()
    found = constrained(design, weights, design.weighted(data, weights), torch.eye(6, dtype=torch.float64))
    for column in range(40):
        root = weights[:, column].sqrt()
        expected, _ = nnls((root[:, None] * design.matrix).numpy(), (root * data[:, column]).numpy())
        np.testing.assert_allclose(found[:, column].numpy(), expected, atol=1e-9)


def test_many_dependent_bounds_meet_the_conditions_of_an_optimum() -> None:
    design, data, weights = _problem()
    bounds = torch.randn(200, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bounds = bounds[bounds[:, 0] > 0.2]  # a cone that is not a point
    free = design.weighted(data, weights)
    found = constrained(design, weights, free, bounds)
    assert float((bounds @ found).min()) > -1e-8
    for column in range(40):
        normal = design.matrix.mT @ (weights[:, column, None] * design.matrix)
        slope = normal @ (found[:, column] - free[:, column])
        held = (bounds @ found[:, column]).abs() < 1e-7
        # The slope of the cost is a sum of the bounds that hold, none with a negative weight.
        _, left = nnls(bounds[held].mT.numpy(), slope.numpy()) if bool(held.any()) else (0, float(slope.norm()))
        assert left < 1e-6


def test_what_meets_the_bounds_is_left_alone() -> None:
    design, _, weights = _problem()
    free = torch.rand(6, 40, dtype=torch.float64)
    assert torch.equal(constrained(design, weights, free, torch.eye(6, dtype=torch.float64)), free)


def test_its_derivative_is_that_of_the_optimum() -> None:
    design, data, weights = _problem(t=8)
    bounds = torch.eye(6, dtype=torch.float64)

    def solve(y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return constrained(design, w, design.weighted(y, w), bounds)

    assert int((solve(data, weights) < 1e-9).sum()) > 5
    generator = torch.Generator().manual_seed(3)
    ways = [torch.randn(25, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    mix = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    variables = data.clone().requires_grad_(), weights.clone().requires_grad_()
    slopes = torch.autograd.grad((solve(*variables) * mix).sum(), variables)
    expected = float(sum((s * w).sum() for s, w in zip(slopes, ways, strict=True)))
    ahead, behind = ((solve(data + h * ways[0], weights + h * ways[1]) * mix).sum() for h in (1e-6, -1e-6))
    assert expected == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-5)
