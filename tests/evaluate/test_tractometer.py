"""End-point validity on drawn streamlines."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.evaluate.tractometer import BundleRegions, end_point_validity
from tractode.fields import ImageGrid, Streamlines


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid((30, 12, 12), oblique_affine, "sub-01_dwi")


@pytest.fixture
def bundles(grid: ImageGrid) -> dict[str, BundleRegions]:
    """Two tubes along the first axis, 7 voxels apart along the second."""
    found = {}
    for name, j in (("low", 2), ("high", 9)):
        mask, start, end = (torch.zeros(grid.shape, dtype=torch.bool) for _ in range(3))
        mask[3:27, j, 5] = True
        start[3, j, 5], end[26, j, 5] = True, True
        found[name] = BundleRegions(grid, mask, start, end)
    return found


def line(grid: ImageGrid, *corners: tuple[float, float, float]) -> torch.Tensor:
    points = torch.tensor(corners, dtype=torch.float64)
    parts = [
        torch.lerp(a, b, torch.linspace(0, 1, 60, dtype=torch.float64)[:, None]) for a, b in itertools.pairwise(points)
    ]
    return grid.to_world(torch.cat(parts))


def test_only_lines_that_connect_both_ends_along_the_bundle_are_valid(
    grid: ImageGrid, bundles: dict[str, BundleRegions]
) -> None:
    lines = [
        line(grid, (3, 2, 5), (26, 2, 5)),  # along the low tube
        line(grid, (26, 9, 5), (3, 9, 5)),  # along the high one, backwards
        line(grid, (3, 2, 5), (15, 2, 5)),  # ends half-way
        line(grid, (3, 2, 5), (26, 9, 5)),  # from one tube to the other
        line(grid, (3, 2, 5), (15, 11, 5), (26, 2, 5)),  # right ends, wrong way
        line(grid, (3, 2, 5), (15, 2, 5), (4, 2, 5)),  # turns back to where it began
    ]
    validity = end_point_validity(Streamlines.from_list(lines, grid.space), bundles)
    assert validity.bundle_of.tolist() == [0, 1, -1, -1, -1, -1]
    assert validity.counts() == {"low": 1, "high": 1}
    assert math.isclose(validity.valid_rate, 2 / 6)


def test_tolerance_widens_ends(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    lines = Streamlines.from_list([line(grid, (5, 2, 5), (24, 2, 5))], grid.space)
    assert end_point_validity(lines, bundles, tolerance_mm=2.0).valid_rate == 0
    assert end_point_validity(lines, bundles, tolerance_mm=5.0).valid_rate == 1


def test_empty_tractogram_has_no_rate(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    assert math.isnan(end_point_validity(Streamlines.from_list([], grid.space), bundles).valid_rate)


def test_another_space_is_refused(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    with pytest.raises(SpaceMismatchError, match="sub-02"):
        end_point_validity(Streamlines.from_list([line(grid, (3, 2, 5), (26, 2, 5))], "sub-02_dwi"), bundles)
