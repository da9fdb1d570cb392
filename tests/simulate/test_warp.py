"""The participant's warp: exact inverse, no folds, and an asymmetry of the right sign."""

from __future__ import annotations

import pytest
import torch

from tractode.fields import ImageGrid
from tractode.simulate.seeds import stream
from tractode.simulate.warp import WarpSettings, participant_warp, tabulated


@pytest.fixture
def template() -> ImageGrid:
    affine = torch.diag(torch.tensor([4.0, 4, 4, 1], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-98.0, -134, -72])
    return ImageGrid((50, 59, 48), affine, "MNI152NLin2009aSym")


@pytest.fixture
def points(template: ImageGrid) -> torch.Tensor:
    return template.centres(torch.float64)[4:-4:5, 4:-4:5, 4:-4:5].reshape(-1, 3)


def test_inverse_undoes_the_warp(template: ImageGrid, points: torch.Tensor) -> None:
    warp = participant_warp(template, "sub-01_T1w", stream(1, 0, "warp"))
    assert (warp.source, warp.target) == ("sub-01_T1w", template.space)
    moved = warp.map(points)
    assert (moved - points).norm(dim=-1).mean() > 2
    assert (warp.inverse().map(moved) - points).norm(dim=-1).max() < 1e-3


def test_warp_folds_nowhere(template: ImageGrid, points: torch.Tensor) -> None:
    warp = participant_warp(template, "sub-01_T1w", stream(2, 0, "warp"))
    step = torch.eye(3, dtype=torch.float64) * 0.5
    jacobian = torch.stack([warp.map(points + s) - warp.map(points - s) for s in step], dim=-1)
    assert torch.linalg.det(jacobian).min() > 0.2


def test_table_of_the_warp_is_close_to_it(template: ImageGrid, points: torch.Tensor) -> None:
    warp = participant_warp(template, "sub-01_T1w", stream(3, 0, "warp"))
    error = (tabulated(warp, template.renamed("sub-01_T1w")).map(points) - warp.map(points)).norm(dim=-1)
    assert error.max() < 0.1


def test_asymmetry_is_a_torque_and_a_larger_left_ventricle(template: ImageGrid) -> None:
    still = {"rotation_deg": 0.0, "translation_mm": 0.0, "scale": 0.0, "shape_mm": 0.0}
    back = participant_warp(template, "sub-01_T1w", stream(0, 0, "warp"), WarpSettings(**still)).inverse()
    pairs = torch.tensor([[25.0, 65, 5], [25.0, -95, 0], [17.0, -22, 29]], dtype=torch.float64)
    mirror = torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    right, left = back.map(pairs), back.map(pairs * mirror)
    assert right[0, 1] - left[0, 1] > 2  # the right frontal pole is farther forward
    assert right[1, 1] - left[1, 1] > 2  # the left occipital pole is farther back
    assert left[2, 2] - right[2, 2] > 0.5  # the roof of the left ventricle is higher
    symmetric = participant_warp(
        template, "sub-01_T1w", stream(0, 0, "warp"), WarpSettings(**still, asymmetry=0.0)
    ).inverse()
    assert torch.allclose(symmetric.map(pairs) * mirror, symmetric.map(pairs * mirror), atol=1e-9)


def test_participants_differ_and_seeds_repeat(template: ImageGrid, points: torch.Tensor) -> None:
    first, again, other = (
        participant_warp(template, "sub-01_T1w", stream(5, n, "warp")).map(points) for n in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert (first - other).norm(dim=-1).mean() > 1
