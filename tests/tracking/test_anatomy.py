"""Anatomical rules on a line through known tissues: where it is cut, when it is kept, and that gradients pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tractode.errors import ShapeError, SpaceMismatchError
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.anatomy import Anatomy, with_anatomy
from tractode.tracking.interface_seeding import InterfaceSeeding
from tractode.tracking.propagate import track_until
from tractode.tracking.sdstream import SDStream
from tractode.tracking.stopping import mean_voxel_size
from tractode.tracking.tissues import TissueMaps

CORTEX, DEEP, WHITE, CSF, LESION = range(5)
N = 24
STEP = 0.25  # voxels


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid((N, 7, 7), oblique_affine, "w")


def maps(grid: ImageGrid, *parts: tuple[int, int]) -> TissueMaps:
    """Tissues along the first axis: each from a voxel on; nothing before the first."""
    values = torch.zeros(5, *grid.shape)
    for (tissue, low), (_, high) in zip(parts, [*parts[1:], (0, N)], strict=True):
        values[tissue, low:high] = 1
    return TissueMaps(Image(grid, values))


def rule(tissues: TissueMaps, least: float = 0.5, crop: bool = False, field: ShField | None = None) -> Anatomy:
    whole = torch.ones(1, *tissues.grid.shape, dtype=torch.bool)
    return Anatomy(tissues, Image(tissues.grid, whole), field, min_length=least, crop=crop)


def line(grid: ImageGrid, seed: float, low: float, high: float) -> Streamlines:
    """A straight line of small steps; its second half goes up."""
    down = round((seed - low) / STEP)
    up = round((high - seed) / STEP)
    x = seed + STEP * torch.arange(-down, up + 1, dtype=torch.float64)
    points = grid.to_world(torch.stack((x, torch.full_like(x, 3.0), torch.full_like(x, 3.0)), dim=-1))
    data = {"seed": torch.tensor([0]), "seed_point": torch.tensor([down])}
    return Streamlines(points, torch.tensor([0, len(points)]), "w", {}, data)


def voxels(grid: ImageGrid, found: Streamlines) -> tuple[float, float]:
    x = grid.to_voxel(found.points.detach())[:, 0]
    return round(float(x[0]), 4), round(float(x[-1]), 4)


def test_lines_end_with_their_first_point_in_cortex(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (CORTEX, 16), (CSF, 20))
    found = rule(tissues).apply(line(grid, 10.1, 3.0, 18.0))
    # Grey equals white half-way between two voxels.
    assert voxels(grid, found) == (5.35, 15.6)
    assert grid.to_voxel(found.points[found.per_streamline["seed_point"]])[0, 0].item() == pytest.approx(10.1)


def test_csf_and_white_matter_are_no_ends(grid: ImageGrid) -> None:
    assert not len(rule(maps(grid, (CORTEX, 2), (WHITE, 6), (CSF, 16))).apply(line(grid, 10.1, 3.0, 18.0)))
    assert not len(rule(maps(grid, (CORTEX, 2), (WHITE, 6))).apply(line(grid, 10.1, 3.0, 18.0)))
    # A lesion is one.
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (LESION, 16))
    assert voxels(grid, rule(tissues).apply(line(grid, 10.1, 3.0, 18.0))) == (5.35, 18.1)


def test_lines_may_leave_the_brain_and_the_mask(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (CSF, 30))
    tissues.image.values[:, 18:] = 0
    assert voxels(grid, rule(tissues).apply(line(grid, 10.1, 3.0, 22.0))) == (5.35, 17.35)
    whole = maps(grid, (CORTEX, 2), (WHITE, 6))
    mask = torch.ones(1, *grid.shape, dtype=torch.bool)
    mask[:, 15:] = False
    act = Anatomy(whole, Image(grid, mask), min_length=0.5)
    wide = act.tracking_mask().mask
    assert bool(wide[15].any())
    assert not bool(wide[16:].any())
    assert voxels(grid, act.apply(line(grid, 10.1, 3.0, 16.0))) == (5.35, 14.35)


def test_subcortical_grey_matter_ends_lines_where_the_fibres_are_weakest(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (DEEP, 14), (WHITE, 19))
    through = line(grid, 10.1, 3.0, 22.0)
    assert voxels(grid, rule(tissues).apply(through)) == (5.35, 18.35)
    axis = grid.affine[:3, 0] / grid.affine[:3, 0].norm()
    coeffs = sh.basis(axis, 8)[:, None, None, None].repeat(1, *grid.shape)
    coeffs[:, 16] *= 0.5
    assert voxels(grid, rule(tissues, field=ShField(grid, coeffs, 8)).apply(through)) == (5.35, 16.1)
    # Ended within it by the tracker: kept whole.
    assert voxels(grid, rule(tissues).apply(line(grid, 10.1, 3.0, 17.0))) == (5.35, 17.1)


def test_seeds_in_subcortical_grey_matter_must_reach_white_matter_once(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (DEEP, 10), (WHITE, 15), (CORTEX, 20))
    # The first half leaves it for cortex; the second may not.
    assert voxels(grid, rule(tissues).apply(line(grid, 12.1, 3.0, 22.0))) == (5.35, 14.35)
    assert not len(rule(tissues).apply(line(grid, 12.1, 11.0, 13.0)))


def test_seeds_must_lie_in_white_matter(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (CORTEX, 16), (CSF, 20))
    for seed in (4.0, 5.25, 21.0):
        assert not len(rule(tissues).apply(line(grid, seed, 3.0, 22.0)))


def test_a_seed_on_the_interface_goes_into_white_matter_only(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (CORTEX, 16))
    found = rule(tissues).apply(line(grid, 5.499, 3.0, 22.0))
    assert found.per_streamline["seed_point"].tolist() == [0]
    assert voxels(grid, found) == (5.499, 15.749)


def test_short_lines_are_left_out_and_ends_are_cropped(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (CORTEX, 16))
    through = line(grid, 10.1, 3.0, 18.0)
    found = rule(tissues, crop=True).apply(through)
    torch.testing.assert_close(torch.tensor(voxels(grid, found)), torch.tensor([5.5, 15.5]), atol=1e-3, rtol=0)
    assert len(rule(tissues, least=19.9).apply(through)) == 1
    assert len(rule(tissues, least=20.8).apply(through)) == 0


def test_gradients_reach_the_points_that_are_left(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (CORTEX, 16))
    through = line(grid, 10.1, 3.0, 18.0)
    points = through.points.requires_grad_()
    found = rule(tissues, crop=True).apply(through)
    found.points.square().sum().backward()
    assert points.grad is not None
    has_gradient = points.grad.abs().sum(-1) > 0
    assert int(has_gradient.sum()) == len(found.points)


def test_tracking_from_the_interface_ends_in_grey_matter(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (CORTEX, 16))
    axis = grid.affine[:3, 0] / grid.affine[:3, 0].norm()
    degree = sh.degrees(8).double()
    kernel = torch.exp(-0.06 * degree * (degree + 1))
    field = ShField(grid, (sh.basis(axis, 8) * kernel)[:, None, None, None].repeat(1, *grid.shape).float(), 8)
    act = rule(tissues, field=field)
    tracker = with_anatomy(SDStream(step_mm=0.5), grid)
    assert tracker.cutoff == 0.05
    parts = track_until(
        tracker, field, act.mask, InterfaceSeeding(tissues), 40, torch.Generator().manual_seed(0), rules=[act]
    )
    found = Streamlines.concatenate(parts, "w")
    assert len(found) == 40
    x = grid.to_voxel(found.points.double())[:, 0]
    ends = torch.stack((x[found.offsets[:-1]], x[found.offsets[1:] - 1]), dim=1).sort(dim=1).values
    assert float((ends[:, 0] - 5.5).abs().max()) < 0.3
    assert float((ends[:, 1] - 15.5).abs().max()) < 0.3


def test_what_does_not_fit_is_refused(grid: ImageGrid) -> None:
    with pytest.raises(ShapeError, match="channels"):
        TissueMaps(Image(grid, torch.zeros(3, *grid.shape)))
    tissues = maps(grid, (WHITE, 0))
    elsewhere = Image(grid.renamed("elsewhere"), torch.ones(1, *grid.shape))
    with pytest.raises(SpaceMismatchError, match="elsewhere"):
        Anatomy(tissues, elsewhere)


def test_what_is_cut_away_does_not_count_towards_the_greatest_length(grid: ImageGrid) -> None:
    tissues = maps(grid, (CORTEX, 2), (WHITE, 6), (CORTEX, 16))
    through = line(grid, 10.1, 2.1, 22.1)
    whole = rule(tissues)
    (kept,) = whole.apply(through).lengths().tolist()
    assert kept < through.lengths().item() - 10
    assert len(dataclasses.replace(whole, max_length=kept + 0.1).apply(through)) == 1
    assert len(dataclasses.replace(whole, max_length=kept - 0.1).apply(through)) == 0
    assert whole.facts()["MaximumLength"] == pytest.approx(100 * mean_voxel_size(grid))


@pytest.mark.parametrize("greatest", [None, 30.0])
def test_trackers_leave_lengths_to_anatomy(greatest: float | None, grid: ImageGrid) -> None:
    plain = SDStream(max_length=greatest)
    constrained = with_anatomy(plain, grid)
    step, _, most = plain.lengths(grid)
    assert constrained.lengths(grid) == pytest.approx((step, step, 2 * most))
