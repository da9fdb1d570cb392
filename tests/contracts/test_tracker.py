"""Laws that every registered tracker obeys, on an oblique, left-handed, off-origin grid.

Deterministic methods are held to the analytic circle at the order they state. Stochastic ones draw their random numbers
from (key, line, step) in axes tied to the grid, so that they too turn with the image exactly and do not depend on batches.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tractode.contracts import Orientations
from tractode.fields import Image, ImageGrid, PeakField, ShField, Streamlines, TensorField
from tractode.ops import spherical_harmonics as sh
from tractode.ops import symmetric
from tractode.tracking import TRACKERS
from tractode.tracking.method import values_of

SH_ORDER = 8
RADIUS = 15.0
DOUBLE = torch.float64
# The order of convergence that each deterministic method states; all others are stochastic.
ORDER = {"sdstream": 1, "tensordet": 1, "eudx": 1}
# How far (rad) mean directions stay behind a bend. iFOD1 draws around its last direction: in a cone of 15° each step of
# 0.1 mm makes up for about an eighth of what this wide fibre and the last direction differ by, and the circle turns by
# 0.0067 rad a step.
LAG = {"ifod1": 8 * 0.0067}
pytestmark = pytest.mark.parametrize("name", list(TRACKERS))


def fibres(directions: Tensor) -> Tensor:
    """Single-fibre distributions without side lobes, so that random starts climb to the fibre; coefficients last."""
    degree = sh.degrees(SH_ORDER).to(directions)
    return sh.basis(directions, SH_ORDER) * torch.exp(-0.06 * degree * (degree + 1))


def orientations(name: str, grid: ImageGrid, tangent: Tensor) -> Orientations:
    """Unit directions at every voxel, as the kind of field that a tracker follows first of all."""
    kind = TRACKERS[name].accepts[0]
    if kind is ShField:
        return ShField(grid, fibres(tangent).permute(3, 0, 1, 2).contiguous(), SH_ORDER)
    if kind is PeakField:
        amplitudes = torch.ones(1, *grid.shape, dtype=DOUBLE)
        return PeakField(grid, tangent.permute(3, 0, 1, 2)[None].contiguous(), amplitudes)
    assert kind is TensorField
    matrix = 0.3e-3 * torch.eye(3, dtype=DOUBLE) + 1.4e-3 * tangent[..., :, None] * tangent[..., None, :]
    return TensorField(grid, symmetric.from_matrix(matrix).permute(3, 0, 1, 2).contiguous())


def cast(field: Orientations, dtype: torch.dtype) -> Orientations:
    names = [f.name for f in dataclasses.fields(field) if isinstance(getattr(field, f.name), Tensor)]
    return dataclasses.replace(field, **{name: getattr(field, name).to(dtype) for name in names})


def circles(name: str, grid: ImageGrid, axis: Tensor, centre: Tensor) -> tuple[Orientations, Image]:
    """Fibres that run in circles about an axis, and a tube of radii 8 to 19 mm."""
    offset = grid.centres(DOUBLE) - centre
    tangent = torch.linalg.cross(axis.expand_as(offset), offset)
    radius = tangent.norm(dim=-1)
    # No voxel centre lies on a border, where rounding would decide.
    tube = (radius > 8) & (radius < 19) & ((offset @ axis).abs() < 6.1)
    return orientations(name, grid, tangent / radius.clamp_min(1e-6)[..., None]), Image(grid, tube[None])


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


def run(
    tracker, field: Orientations, seeds: Tensor, mask: Image, seed: int = 0, directions: Tensor | None = None
) -> Streamlines:
    generator = torch.Generator().manual_seed(seed)
    batches = list(tracker.track(field, seeds, mask, generator, directions=directions))
    return Streamlines.concatenate(batches, field.grid.space)


def radii(lines: Streamlines, axis: Tensor, centre: Tensor) -> Tensor:
    return torch.linalg.cross(axis.expand_as(lines.points), lines.points - centre).norm(dim=-1)


def test_follows_a_circle_at_its_order(name: str, oblique_affine: Tensor) -> None:
    if name not in ORDER:
        pytest.skip("stochastic")
    grid, axis, centre = world(oblique_affine)
    field, mask = circles(name, grid, axis, centre)
    seeds = seeds_on_circle(grid, centre, 8)
    drift = []
    for step in (0.4, 0.2):
        lines = run(TRACKERS[name](step_mm=step, max_length=40.0), field, seeds, mask)
        assert len(lines) >= 4  # a random start across the fibre may climb nowhere
        radius = radii(lines, axis, centre)
        drift.append(float(torch.cat((radius[lines.offsets[:-1]], radius[lines.offsets[1:] - 1])).max()) - RADIUS)
        # Euler on a circle: the radius grows by h s / 2 r over an arc s, here the longer half of each line.
        assert drift[-1] < 40 * step / (2 * RADIUS) + 0.02
        assert float(((lines.points - centre) @ axis).abs().max()) < 1e-3
    assert 0.9 * 2 ** ORDER[name] < drift[0] / drift[1] < 1.1 * 2 ** ORDER[name]


def test_stays_about_a_circle_on_average(name: str, oblique_affine: Tensor) -> None:
    """Stochastic methods: over 12 mm of arc, the mean of the ends' radii and heights is that of the circle."""
    if name in ORDER:
        pytest.skip("deterministic")
    grid, axis, centre = world(oblique_affine)
    field, mask = circles(name, grid, axis, centre)
    seeds = seeds_on_circle(grid, centre, 128)
    tangent = torch.linalg.cross(axis.expand_as(seeds), seeds - centre) / RADIUS
    tracker = TRACKERS[name](max_length=12.0, min_length=10.0, one_way=True)
    lines = run(tracker, field, seeds, mask, directions=tangent)
    assert len(lines) > 100
    ends = lines.offsets[:-1]  # lines run towards the seed in their first half, the only one here
    assert torch.equal(lines.per_streamline["seed_point"], lines.offsets[1:] - 1 - ends)
    across, along = radii(lines, axis, centre)[ends] - RADIUS, ((lines.points - centre) @ axis)[ends]
    for offset in (across, along):
        error = float(offset.std()) / math.sqrt(len(lines))
        assert 0.02 < float(offset.std()) < 3  # it spreads, and does not wander freely
        # Four standard errors, what a chord of 0.5 mm adds to the radius, and what staying behind adds.
        assert abs(float(offset.mean())) < 4 * error + 12 * (0.5 / (2 * RADIUS) + LAG.get(name, 0.0))


def test_never_leaves_the_mask(name: str, oblique_affine: Tensor) -> None:
    grid, axis, centre = world(oblique_affine, 2.0)
    field, tube = circles(name, grid, axis, centre)
    half = tube.mask & (torch.arange(grid.shape[0])[:, None, None] < 11)
    seeds = grid.to_world(half.nonzero()[::3].to(DOUBLE))
    lines = run(TRACKERS[name](min_length=1.0, step_mm=0.5), field, seeds, Image(grid, half[None]))
    assert len(lines) > 20
    nearest = (grid.to_voxel(lines.points) + 0.5).floor().long()
    assert half[tuple(nearest.mT)].all()


def test_turning_and_shifting_the_world_turns_and_shifts_the_lines(name: str, oblique_affine: Tensor) -> None:
    from scipy.spatial.transform import Rotation

    grid, axis, centre = world(oblique_affine, 2.0)
    seeds = seeds_on_circle(grid, centre, 12)
    starts = torch.randn(12, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    starts = starts / starts.norm(dim=-1, keepdim=True)
    first = run(TRACKERS[name](step_mm=0.5), *_open(circles(name, grid, axis, centre), seeds), directions=starts)
    turn = torch.tensor(Rotation.from_euler("xyz", [40, -75, 130], degrees=True).as_matrix())
    shift = torch.tensor([100.0, -50.0, 20.0], dtype=DOUBLE)
    motion = torch.eye(4, dtype=DOUBLE)
    motion[:3, :3], motion[:3, 3] = turn, shift
    moved = ImageGrid(grid.shape, motion @ grid.affine, grid.space)
    phantom = circles(name, moved, turn @ axis, turn @ centre + shift)
    second = run(TRACKERS[name](step_mm=0.5), *_open(phantom, seeds @ turn.mT + shift), directions=starts @ turn.mT)
    assert len(first) >= 6
    assert torch.equal(first.offsets, second.offsets)
    assert torch.equal(first.per_streamline["seed"], second.per_streamline["seed"])
    torch.testing.assert_close(second.points, first.points @ turn.mT + shift, rtol=0, atol=1e-3)


def _open(phantom: tuple[Orientations, Image], seeds: Tensor) -> tuple[Orientations, Tensor, Image]:
    """The field, the seeds, and two thirds of the tube."""
    field, tube = phantom
    open_tube = tube.mask & (torch.arange(field.grid.shape[0])[:, None, None] < 13)
    return field, seeds, Image(field.grid, open_tube[None])


@pytest.mark.parametrize(("compiled", "dtype"), [(True, DOUBLE), (False, torch.float32)])
def test_same_generator_same_bytes_whatever_batches_and_threads(
    name: str, oblique_affine: Tensor, compiled: bool, dtype: torch.dtype
) -> None:
    grid, axis, centre = world(oblique_affine, 2.0)
    field, mask = circles(name, grid, axis, centre)
    field = cast(field, dtype)
    seeds = grid.to_world(mask.mask.nonzero()[::60].to(DOUBLE)).to(dtype)
    tracker = TRACKERS[name](compiled=compiled, max_length=3.0, min_length=1.0)
    first = run(tracker, field, seeds, mask, seed=5)
    torch.set_num_threads(2)
    try:
        other = run(dataclasses.replace(tracker, batch_size=9), field, seeds, mask, seed=5)
    finally:
        torch.set_num_threads(1)
    assert len(first) > 8
    assert torch.equal(first.points, other.points)
    assert torch.equal(first.offsets, other.offsets)
    assert torch.equal(first.per_streamline["seed"], other.per_streamline["seed"])
    other_draw = run(tracker, field, seeds, mask, seed=6)
    assert other_draw.points.shape != first.points.shape or not torch.equal(other_draw.points, first.points)


def test_gradient_is_finite_and_not_zero_where_declared(name: str, oblique_affine: Tensor) -> None:
    tracker = TRACKERS[name](max_length=10.0, min_length=1.0)
    if not tracker.is_differentiable:
        pytest.skip("not declared differentiable")
    grid, axis, centre = world(oblique_affine, 2.0)
    field, mask = circles(name, grid, axis, centre)
    seeds = seeds_on_circle(grid, centre, 3).requires_grad_()
    values = values_of(field).requires_grad_()
    lines = run(tracker, field, seeds, mask)
    lines.points[lines.offsets[1:] - 1].square().sum().backward()
    for gradient in (values.grad, seeds.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert float(gradient.abs().max()) > 1e-3


def test_inputs_are_left_alone(name: str, oblique_affine: Tensor) -> None:
    grid, axis, centre = world(oblique_affine, 2.0)
    field, mask = circles(name, grid, axis, centre)
    seeds = seeds_on_circle(grid, centre, 3)
    tensors = [values_of(field), seeds, mask.values]
    before = [tensor.clone() for tensor in tensors]
    run(TRACKERS[name](max_length=10.0), field, seeds, mask)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
