"""The Tractometer's scores on drawn streamlines, each known by construction."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.evaluate.connections import BundleRegions, Criteria, connections, winding
from tractode.evaluate.tractometer import bundle_score, tractometry
from tractode.evaluate.visitation import length_density, visits
from tractode.fields import ImageGrid, Streamlines


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid((30, 14, 12), oblique_affine, "sub-01_dwi")


@pytest.fixture
def bundles(grid: ImageGrid) -> dict[str, BundleRegions]:
    """Two tubes of 24 voxels along the first axis, 9 voxels apart along the second."""
    found = {}
    for name, j in (("low", 2), ("high", 11)):
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


def drawn(grid: ImageGrid) -> Streamlines:
    """Two valid, two wrong paths, two invalid connections of one kind and one of another, three without a connection."""
    lines = [
        line(grid, (3, 2, 5), (26, 2, 5)),  # along the low tube
        line(grid, (26, 11, 5), (3, 11, 5)),  # along the high one, backwards
        line(grid, (3, 2, 5), (15, 9, 5), (26, 2, 5)),  # right ends, wrong way
        line(grid, (3, 2, 5), (26, 2, 5), (26, 9, 5), (26, 2, 5)),  # right ends, and a trip in between
        line(grid, (3, 2, 5), (26, 11, 5)),  # from one tube to the other
        line(grid, (26, 11, 5), (3, 2, 5)),  # the same connection
        line(grid, (3, 2, 5), (3, 11, 5)),  # between the starts
        line(grid, (3, 2, 5), (15, 2, 5)),  # ends half-way
        line(grid, (8, 2, 5), (20, 2, 5)),  # begins and ends nowhere
        line(grid, (3, 2, 5), (15, 2, 5), (3, 2, 5)),  # turns back to where it began
    ]
    return Streamlines.from_list(lines, grid.space)


def test_every_line_is_what_it_was_drawn_as(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    found = connections(drawn(grid), bundles)
    assert found.bundle_of.tolist() == [0, 1, -1, -1, -1, -1, -1, -1, -1, -1]
    assert found.is_wrong_path.tolist() == [False, False, True, True, *[False] * 6]
    assert found.counts() == {"low": 1, "high": 1}
    assert found.invalid_bundles() == {"low-start high-start": 1, "low-start high-end": 2}
    rates = found.valid_rate, found.invalid_rate, found.no_connection_rate, found.wrong_path_rate
    assert rates == pytest.approx((0.2, 0.3, 0.5, 0.2))


def test_record_carries_the_names_of_the_paper(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    record = tractometry(drawn(grid), bundles).record()
    assert (record["n"], record["VB"], record["IB"], record["bundles"]) == (10, 2, 2, 2)
    assert [record[key] for key in ("VC", "IC", "NC", "WPC")] == pytest.approx([0.2, 0.3, 0.5, 0.2])
    # Each valid line visits the 24 voxels of its tube and no other.
    assert [record[key] for key in ("OL", "OR", "ORn", "F1")] == pytest.approx([1, 0, 0, 1])
    assert record["per_bundle"]["low"] == {"n": 1, "OL": 1.0, "OR": 0.0, "ORn": 0.0, "F1": 1.0}


def test_extent_counts_voxels(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    """A valid line beside its tube from voxel 9 to 20 visits 12 of the 24 voxels' neighbours: 12 + 12 voxels, half outside."""
    beside = line(grid, (3, 2, 5), (8, 2, 5), (9, 3, 5), (20, 3, 5), (21, 2, 5), (26, 2, 5))
    record = tractometry(Streamlines.from_list([beside], grid.space), bundles).record()
    low = record["per_bundle"]["low"]
    seen = visits(Streamlines.from_list([beside], grid.space), grid) > 0
    inside, outside = int((seen & bundles["low"].mask).sum()), int((seen & ~bundles["low"].mask).sum())
    assert 12 <= inside <= 14
    assert 12 <= outside <= 14
    assert low["OL"] == pytest.approx(inside / 24)
    assert low["OR"] == pytest.approx(outside / (inside + outside))
    assert low["ORn"] == pytest.approx(outside / 24)
    assert low["F1"] == pytest.approx(2 * inside / (24 + inside + outside))
    # A bundle that nothing belongs to counts in the means.
    assert record["per_bundle"]["high"] == {"n": 0, "OL": 0.0, "OR": 0.0, "ORn": 0.0, "F1": 0.0}
    assert record["OL"] == pytest.approx(low["OL"] / 2)
    assert record["VB"] == 1


def test_f1_is_the_mean_of_precision_and_recall() -> None:
    visited, truth = torch.zeros(4, 5, 5, dtype=torch.bool), torch.zeros(4, 5, 5, dtype=torch.bool)
    truth[:2], visited[1:4] = True, True  # 50 voxels, 75 voxels, 25 in common
    score = bundle_score(visited, truth, 3)
    assert (score.overlap, score.overreach, score.overreach_of_truth) == pytest.approx((1 / 2, 2 / 3, 1))
    precision = 1 - score.overreach
    assert score.f1 == pytest.approx(2 * precision * score.overlap / (precision + score.overlap))


def test_tolerance_widens_ends(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    lines = Streamlines.from_list([line(grid, (5, 2, 5), (24, 2, 5))], grid.space)
    assert connections(lines, bundles, Criteria(tolerance_mm=2.0)).valid_rate == 0
    assert connections(lines, bundles, Criteria(tolerance_mm=5.0)).valid_rate == 1


def test_length_is_a_criterion(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    low = bundles["low"]
    straight = Streamlines.from_list([line(grid, (3, 2, 5), (26, 2, 5))], grid.space)  # 23 voxels of 2 mm
    for lengths, valid in (((40.0, 50.0), 1), ((64.0, 70.0), 0), ((30.0, 36.0), 0), ((58.0, 60.0), 1)):
        limited = {"low": BundleRegions(grid, low.mask, low.start, low.end, lengths)}
        found = connections(straight, limited)
        assert (found.valid_rate, found.wrong_path_rate) == (valid, 1 - valid)


def test_a_loop_turns_by_2_pi_and_jitter_by_nothing(generator: torch.Generator) -> None:
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    circle = torch.stack([torch.cos(2 * math.pi * t), torch.sin(2 * math.pi * t), 0.05 * t], -1) * 10
    straight = torch.stack([60 * t, 0 * t, 0 * t], -1) + 0.02 * torch.randn(200, 3, generator=generator).double()
    bend = torch.stack([torch.cos(math.pi * t), torch.sin(math.pi * t), 0 * t], -1) * 20
    turns = winding(Streamlines.from_list([circle, straight, bend, circle[:2], circle[:1]], "w"))
    assert turns.tolist() == pytest.approx([2 * math.pi, 0, math.pi, 0, 0], abs=0.35)
    assert turns[3:].tolist() == [0, 0]


def test_a_loop_inside_a_bundle_is_a_wrong_path(grid: ImageGrid) -> None:
    mask, start, end = (torch.zeros(grid.shape, dtype=torch.bool) for _ in range(3))
    mask[:, :, 5], start[3, 2, 5], end[26, 2, 5] = True, True, True
    wide = {"sheet": BundleRegions(grid, mask, start, end)}
    looped = line(grid, (3, 2, 5), (20, 2, 5), (20, 10, 5), (10, 10, 5), (10, 2, 5), (26, 2, 5))
    found = connections(Streamlines.from_list([looped], grid.space), wide)
    assert found.is_wrong_path.tolist() == [True]
    assert connections(Streamlines.from_list([looped], grid.space), wide, Criteria(largest_winding=7.0)).valid_rate == 1


def test_visits_count_a_line_once_and_density_is_its_length(grid: ImageGrid) -> None:
    there_and_back = line(grid, (3, 2, 5), (10, 2, 5), (3, 2, 5))
    lines = Streamlines.from_list([there_and_back, line(grid, (3, 2, 5), (3, 6, 5))], grid.space)
    seen = visits(lines, grid)
    assert (int(seen.max()), int(seen[3, 2, 5]), int(seen.sum())) == (2, 2, 8 + 5)
    assert float(length_density(lines, grid).sum()) == pytest.approx(float(lines.lengths().sum()), rel=1e-4)


def test_a_region_that_bundles_share_is_one_region(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    """A line from a shared end back to it connects nothing; one between the others' far ends is an invalid connection."""
    low, high = bundles["low"], bundles["high"]
    both = low.start | high.start
    fork = {
        name: BundleRegions(grid, low.mask | high.mask, both, one.end) for name, one in (("low", low), ("high", high))
    }
    lines = [line(grid, (3, 2, 5), (3, 11, 5)), line(grid, (26, 2, 5), (26, 11, 5)), line(grid, (3, 2, 5), (26, 2, 5))]
    found = connections(Streamlines.from_list(lines, grid.space), fork)
    assert found.bundle_of.tolist() == [-1, -1, 0]
    assert found.invalid_bundles() == {"low-end high-end": 1}


def test_empty_tractogram_has_no_rate(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    scores = tractometry(Streamlines.from_list([], grid.space), bundles)
    assert math.isnan(scores.connections.valid_rate)
    assert scores.record()["VC"] is None
    assert scores.record()["OL"] == 0


def test_another_space_is_refused(grid: ImageGrid, bundles: dict[str, BundleRegions]) -> None:
    with pytest.raises(SpaceMismatchError, match="sub-02"):
        connections(Streamlines.from_list([line(grid, (3, 2, 5), (26, 2, 5))], "sub-02_dwi"), bundles)
