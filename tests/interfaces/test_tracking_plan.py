"""What was asked of tractography becomes the tracker and the lengths that a sidecar states."""

from __future__ import annotations

import pytest
import torch

from tractode.fields import ImageGrid
from tractode.interfaces.tracking_plan import TrackingPlan


def test_with_tissues_trackers_follow_half_the_amplitude(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((4, 4, 4), oblique_affine, "w")
    assert TrackingPlan(with_act=True).tracker("sdstream", grid).cutoff == 0.05
    assert TrackingPlan(with_act=True, cutoff=0.08).tracker("sdstream", grid).cutoff == 0.08
    assert TrackingPlan().tracker("sdstream", grid).cutoff == 0.1


def test_sidecars_state_the_lengths_that_lines_have_in_the_end(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((4, 4, 4), oblique_affine, "w")
    voxel = float(torch.linalg.det(oblique_affine[:3, :3]).abs()) ** (1 / 3)
    plan = TrackingPlan(with_act=True)
    stated = plan.stated(plan.tracker("sdstream", grid), grid)
    assert (stated["MinimumLength"], stated["MaximumLength"]) == pytest.approx((2 * voxel, 100 * voxel))
    plan = TrackingPlan(with_act=True, min_length=11.0, max_length=120.0)
    stated = plan.stated(plan.tracker("ifod2", grid), grid)
    assert (stated["MinimumLength"], stated["MaximumLength"]) == (11.0, 120.0)
    plan = TrackingPlan()
    stated = plan.stated(plan.tracker("sdstream", grid), grid)
    assert (stated["MinimumLength"], stated["MaximumLength"]) == pytest.approx((5 * voxel, 100 * voxel))
