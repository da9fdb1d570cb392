"""Polyline geometry against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from tractode.ops import polyline


def test_arc_length_and_resampling_of_a_bent_line() -> None:
    line = torch.tensor([[0.0, 0, 0], [3, 0, 0], [3, 4, 0]], dtype=torch.float64)
    assert polyline.arc_length(line).tolist() == [0, 3, 7]
    points = polyline.resample(line, 8)
    assert torch.allclose(points[3], torch.tensor([3.0, 0, 0], dtype=torch.float64))
    assert torch.allclose(points[5], torch.tensor([3.0, 2, 0], dtype=torch.float64))
    assert torch.equal(points[-1], line[-1])


def test_repeated_points_do_not_break_resampling() -> None:
    line = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]])
    points = polyline.resample(line, 5)
    assert torch.allclose(points[:, 0], torch.linspace(0, 1, 5))


def test_resampling_needs_two_points() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        polyline.resample(torch.zeros(3, 3), 1)


def test_hausdorff_takes_the_worst_vertex_of_either_line() -> None:
    short = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    long = torch.tensor([[0.0, 0, 0], [1, 0, 0], [4, 0, 0]])
    assert float(polyline.hausdorff(short, long)) == 3
    assert float(polyline.hausdorff(long, short)) == 3


def test_mdf_does_not_mind_reversal() -> None:
    line = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    shifted = line + torch.tensor([0.0, 2, 0])
    assert float(polyline.mdf(line, shifted.flip(0))) == pytest.approx(2.0, rel=1e-5)
