"""Tables: counts, unit directions, coverage, order."""

from __future__ import annotations

import pytest
import torch

from tractode.simulate.gradients import multi_shell


def test_counts_and_b0_first() -> None:
    gtab = multi_shell(((1000.0, 16), (2500.0, 32)), 6)
    assert len(gtab) == 54
    assert int(gtab.is_b0.sum()) == 6
    assert bool(gtab.is_b0[0])
    assert [(round(b), len(index)) for b, index in gtab.shells()] == [(1000, 16), (2500, 32)]


def test_directions_of_a_shell_are_spread_over_the_whole_sphere() -> None:
    gtab = multi_shell(((1000.0, 30),), 1)
    g = gtab.bvecs[~gtab.is_b0]
    cosine = (g @ g.mT).abs() - torch.eye(len(g))
    # 30 axes packed at random come within a few degrees; spread ones keep about 25°.
    assert torch.rad2deg(torch.acos(cosine.max())) > 18
    assert torch.allclose(g.mT @ g / len(g), torch.eye(3, dtype=torch.float64) / 3, atol=0.03)
    assert g.mean(0).norm() < 0.3


def test_no_b0_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one b=0"):
        multi_shell(((1000.0, 6),), 0)
