"""Laws that every registered tracker obeys, on an oblique, left-handed, off-origin grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.tracking import TRACKERS

ORDER = 8
RADIUS = 15.0
DOUBLE = torch.float64
pytestmark = pytest.mark.parametrize("name", list(TRACKERS))


def fibres(directions: Tensor) -> Tensor:
    """Single-fibre distributions without side lobes, so that random starts climb to the fibre; coefficients last."""
    degree = sh.degrees(ORDER).to(directions)
    return sh.basis(directions, ORDER) * torch.exp(-0.06 * degree * (degree + 1))


def circles(grid: ImageGrid, axis: Tensor, centre: Tensor) -> tuple[ShField, Image]:
    """Fibres that run in circles about an axis, and a tube of radii 8 to 19 mm."""
    offset = grid.centres(DOUBLE) - centre
    tangent = torch.linalg.cross(axis.expand_as(offset), offset)
    radius = tangent.norm(dim=-1)
    coeffs = fibres(tangent / radius.clamp_min(1e-6)[..., None]).permute(3, 0, 1, 2)
    tube = (radius > 8) & (radius < 19) & ((offset @ axis).abs() < 6)
    return ShField(grid, coeffs.contiguous(), ORDER), Image(grid, tube[None])


def world(oblique_affine: Tensor, spacing: float = 1.0) -> tuple[ImageGrid, Tensor, Tensor]:
    """A grid of roughly cubic voxels turned as the fixture, the axis of its third side and its centre."""
    affine = oblique_affine.clone()
    affine[:3, :3] = spacing * affine[:3, :3] / affine[:3, :3].norm(dim=0)
    n = round(40 / spacing)
    grid = ImageGrid((n, n, round(14 / spacing)), affine, "phantom")
    centre = grid.to_world((torch.tensor(grid.shape, dtype=DOUBLE) - 1) / 2)
    return grid, affine[:3, 2] / affine[:3, 2].norm(), centre


def seeds_on_circle(grid: ImageGrid, centre: Tensor, n: int) -> Tensor:
    angle = 0.3 + torch.arange(n, dtype=DOUBLE) * (2 * math.pi / n)
    i, j = (grid.affine[:3, k] / grid.affine[:3, k].norm() for k in (0, 1))
    return centre + RADIUS * (angle.cos()[:, None] * i + angle.sin()[:, None] * j)


def run(tracker, field: ShField, seeds: Tensor, mask: Image, seed: int = 0) -> Streamlines:
    batches = list(tracker.track(field, seeds, mask, torch.Generator().manual_seed(seed)))
    return Streamlines.concatenate(batches, field.grid.space)


def test_follows_a_circle_at_first_order(name: str, oblique_affine: Tensor) -> None:
    grid, axis, centre = world(oblique_affine)
    field, mask = circles(grid, axis, centre)
    seeds = seeds_on_circle(grid, centre, 8)
    drift = []
    for step in (0.4, 0.2):
        lines = run(TRACKERS[name](step_mm=step, max_length=40.0), field, seeds, mask)
        assert len(lines) >= 4  # a random start across the fibre may climb nowhere
        radius = torch.linalg.cross(axis.expand_as(lines.points), lines.points - centre).norm(dim=-1)
        far = max(float(r) for line, r in zip(lines.offsets[1:], radius[lines.offsets[1:] - 1], strict=True) if line)
        drift.append(max(far, float(radius[lines.offsets[:-1]].max())) - RADIUS)
        # Euler on a circle: the radius grows by h s / 2 r over an arc s, here the longer half of each line.
        assert drift[-1] < 40 * step / (2 * RADIUS) + 0.02
        assert float(((lines.points - centre) @ axis).abs().max()) < 1e-3
    assert 1.8 < drift[0] / drift[1] < 2.2


def test_never_leaves_the_mask(name: str, oblique_affine: Tensor) -> None:
    grid, axis, centre = world(oblique_affine, 2.0)
    field, tube = circles(grid, axis, centre)
    half = tube.mask & (torch.arange(grid.shape[0])[:, None, None] < 11)
    seeds = grid.to_world(half.nonzero()[::3].to(DOUBLE))
    lines = run(TRACKERS[name](min_length=1.0), field, seeds, Image(grid, half[None]))
    assert len(lines) > 20
    nearest = (grid.to_voxel(lines.points) + 0.5).floor().long()
    assert half[tuple(nearest.mT)].all()


def test_turning_and_shifting_the_world_turns_and_shifts_the_lines(name: str, oblique_affine: Tensor) -> None:
    from scipy.spatial.transform import Rotation

    grid, axis, centre = world(oblique_affine, 2.0)
    seeds = seeds_on_circle(grid, centre, 12)
    first = run(TRACKERS[name](), *_swap(circles(grid, axis, centre), seeds))
    turn = torch.tensor(Rotation.from_euler("xyz", [40, -75, 130], degrees=True).as_matrix())
    shift = torch.tensor([100.0, -50.0, 20.0], dtype=DOUBLE)
    motion = torch.eye(4, dtype=DOUBLE)
    motion[:3, :3], motion[:3, 3] = turn, shift
    moved = ImageGrid(grid.shape, motion @ grid.affine, grid.space)
    second = run(
        TRACKERS[name](),
        *_swap(circles(moved, turn @ axis, turn @ centre + shift), seeds @ turn.mT + shift),
    )
    # The random start directions are those of the first world, so a line may come out reversed, or not start at all.
    ours, theirs = (lines.per_streamline["seed"].tolist() for lines in (first, second))
    common = sorted(set(ours) & set(theirs))
    assert len(common) >= 3
    for seed in common:
        expected, found = first[ours.index(seed)] @ turn.mT + shift, second[theirs.index(seed)]
        assert len(expected) == len(found)
        assert min(float((expected - found).abs().max()), float((expected.flip(0) - found).abs().max())) < 1e-3


def _swap(phantom: tuple[ShField, Image], seeds: Tensor) -> tuple[ShField, Tensor, Image]:
    """The field, the seeds, and two thirds of the tube: lines end at the mask, not at a length counted from one side."""
    field, tube = phantom
    open_tube = tube.mask & (torch.arange(field.grid.shape[0])[:, None, None] < 13)
    return field, seeds, Image(field.grid, open_tube[None])


def test_same_generator_same_lines_whatever_the_batch_size(name: str, oblique_affine: Tensor) -> None:
    grid, axis, centre = world(oblique_affine, 2.0)
    field, mask = circles(grid, axis, centre)
    field = ShField(grid, field.coeffs.float(), ORDER)
    seeds = grid.to_world(mask.mask.nonzero()[::11].to(DOUBLE)).float()
    results = [run(TRACKERS[name](batch_size=size), field, seeds, mask, seed=5) for size in (1000, 13)]
    torch.set_num_threads(2)
    try:
        results.append(run(TRACKERS[name](batch_size=64), field, seeds, mask, seed=5))
    finally:
        torch.set_num_threads(1)
    assert len(results[0]) > 30
    for other in results[1:]:
        assert torch.equal(results[0].points, other.points)
        assert torch.equal(results[0].offsets, other.offsets)
        assert torch.equal(results[0].per_streamline["seed"], other.per_streamline["seed"])
    other_draw = run(TRACKERS[name](), field, seeds, mask, seed=6)
    assert other_draw.points.shape != results[0].points.shape or not torch.equal(other_draw.points, results[0].points)


def test_gradient_is_finite_and_not_zero_where_declared(name: str, oblique_affine: Tensor) -> None:
    tracker = TRACKERS[name](max_length=10.0, min_length=1.0)
    if not tracker.is_differentiable:
        pytest.skip("not declared differentiable")
    grid, axis, centre = world(oblique_affine, 2.0)
    field, mask = circles(grid, axis, centre)
    coeffs = field.coeffs.clone().requires_grad_()
    seeds = seeds_on_circle(grid, centre, 3).requires_grad_()
    lines = run(tracker, ShField(grid, coeffs, ORDER), seeds, mask)
    lines.points[lines.offsets[1:] - 1].square().sum().backward()
    for gradient in (coeffs.grad, seeds.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert float(gradient.abs().max()) > 1e-3


def test_inputs_are_left_alone(name: str, oblique_affine: Tensor) -> None:
    grid, axis, centre = world(oblique_affine, 2.0)
    field, mask = circles(grid, axis, centre)
    seeds = seeds_on_circle(grid, centre, 3)
    before = field.coeffs.clone(), seeds.clone(), mask.values.clone()
    run(TRACKERS[name](), field, seeds, mask)
    assert torch.equal(field.coeffs, before[0])
    assert torch.equal(seeds, before[1])
    assert torch.equal(mask.values, before[2])
