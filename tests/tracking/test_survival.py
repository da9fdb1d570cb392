"""Soft termination: weights, lengths, maps and connectomes against hard termination, hand counts and finite differences."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tractode.errors import ShapeError
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.ops.splat import splat
from tractode.tracking.amplitude import amplitudes
from tractode.tracking.sampling import ComponentTable
from tractode.tracking.sdstream import SDStream
from tractode.tracking.seeds import random_directions, seeds_in_mask
from tractode.tracking.survival import (
    SoftTermination,
    Survival,
    alive_at_ends,
    connectome,
    end_memberships,
    memberships,
    soft_lengths,
    survival,
    visitation_map,
)

DOUBLE = torch.float64


def fibres(directions: Tensor) -> Tensor:
    degree = sh.degrees(8).to(directions)
    return sh.basis(directions, 8) * torch.exp(-0.02 * degree * (degree + 1))


@pytest.fixture
def fading(oblique_affine: Tensor) -> tuple[ShField, Image]:
    """Directions that turn smoothly, with an amplitude that falls along the first axis."""
    grid = ImageGrid((9, 8, 7), oblique_affine, "phantom")
    p = grid.centres(DOUBLE) - grid.to_world(torch.tensor([4.0, 4, 3], dtype=DOUBLE))
    main = torch.stack((torch.ones_like(p[..., 0]), 0.05 * p[..., 0] + 0.03 * p[..., 2], 0.04 * p[..., 1]), dim=-1)
    coeffs = fibres(main / main.norm(dim=-1, keepdim=True)).permute(3, 0, 1, 2)
    fade = torch.linspace(1.2, 0.1, 9, dtype=DOUBLE)[None, :, None, None]
    return ShField(grid, (coeffs * fade).contiguous(), 8), Image(grid, torch.ones(1, 9, 8, 7, dtype=torch.bool))


TRACKER = SDStream(min_length=0.5, step_mm=0.8, cutoff=0.4, compiled=False)


def lines_of(field: ShField, mask: Image, tracker: SDStream, n: int = 16) -> Streamlines:
    seeds = seeds_in_mask(mask, n, torch.Generator().manual_seed(0)).double()
    directions = random_directions(n, torch.Generator().manual_seed(1))
    return next(tracker.track(field, seeds, mask, directions=directions))


def by_seed(lines: Streamlines, values: Tensor, n: int = 16) -> Tensor:
    out = torch.zeros(n, dtype=DOUBLE)
    out[lines.per_streamline["seed"]] = values.detach()
    return out


def straight(n_before: int, n_after: int, step: float = 1.0) -> Streamlines:
    """One line along x with its seed at the origin."""
    x = torch.arange(-n_before, n_after + 1, dtype=DOUBLE) * step
    points = torch.stack((x, torch.zeros_like(x), torch.zeros_like(x)), dim=-1)
    return Streamlines(
        points, torch.tensor([0, len(x)]), "phantom", {}, {"seed_point": torch.tensor([n_before]), "seed": torch.zeros(1)}
    )  # fmt: skip


def test_amplitude_is_that_of_the_harmonics(fading: tuple[ShField, Image], generator: torch.Generator) -> None:
    field, _ = fading
    vox = torch.rand(20, 3, generator=generator, dtype=DOUBLE) * torch.tensor([7.9, 6.9, 5.9])
    points, directions = field.grid.to_world(vox), random_directions(20, generator)
    sampled = Image(field.grid, field.coeffs).sample(points)
    expected = (sh.basis(directions, 8) * sampled).sum(-1)
    torch.testing.assert_close(amplitudes(ComponentTable.of(field), points, directions), expected)


def test_amplitude_has_the_gradient_of_finite_differences(fading: tuple[ShField, Image]) -> None:
    field, _ = fading
    table = ComponentTable.of(field)
    points = field.grid.to_world(torch.tensor([[3.2, 4.4, 2.7], [1.3, 6.2, 5.1]], dtype=DOUBLE)).requires_grad_()
    directions = random_directions(2, torch.Generator().manual_seed(0)).requires_grad_()
    values = table.values.requires_grad_()

    def function(v: Tensor, x: Tensor, d: Tensor) -> Tensor:
        return amplitudes(ComponentTable(table.grid, v, table.rows), x, d)

    assert torch.autograd.gradcheck(function, (values, points, directions), fast_mode=True)


def test_as_the_temperature_falls_lengths_become_those_of_hard_termination(fading: tuple[ShField, Image]) -> None:
    field, mask = fading
    hard = lines_of(field, mask, TRACKER)
    assert 1 < len(hard) < 16
    loose = lines_of(field, mask, dataclasses.replace(TRACKER, cutoff=0.0))
    expected = by_seed(hard, hard.lengths())
    errors = []
    for temperature in (1e-1, 1e-2, 1e-3, 1e-6):
        weights = survival(loose, field, SoftTermination(0.4, temperature))
        errors.append(float((by_seed(loose, soft_lengths(loose, weights.point)) - expected).abs().max()))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-6
    # And point by point: what has weight 1 is what the hard lines have.
    weights = survival(loose, field, SoftTermination(0.4, 1e-6)).point
    assert float((weights * (1 - weights)).abs().max()) < 1e-3
    kept = torch.zeros(len(loose), dtype=DOUBLE).index_add(0, loose.streamline_of_point, weights.detach())
    torch.testing.assert_close(by_seed(loose, kept), by_seed(hard, hard.n_points.double()))


def test_weights_do_not_depend_on_the_step(fading: tuple[ShField, Image]) -> None:
    field, mask = fading
    found = []
    for step in (0.2, 0.4):
        lines = lines_of(field, mask, dataclasses.replace(TRACKER, step_mm=step, cutoff=0.1))
        weights = survival(lines, field, SoftTermination(0.4, 0.05))
        found.append(by_seed(lines, soft_lengths(lines, weights.point)))
    assert float((found[0] - found[1]).abs().max()) < 0.5
    assert float(found[0].max()) > 10


def test_lengths_maps_and_connectomes_have_the_gradient_of_finite_differences(fading: tuple[ShField, Image]) -> None:
    """Through amplitudes and points at once: the lines are tracked anew for every difference."""
    field, mask = fading
    seeds = field.grid.to_world(torch.tensor([[3.2, 3.7, 3.1], [2.6, 4.3, 2.8], [4.1, 4.0, 3.4]], dtype=DOUBLE))
    start = torch.tensor([[1.0, 0, 0], [1.0, 0.1, 0], [-1.0, 0, 0]], dtype=DOUBLE)
    tracker = SDStream(min_length=0.5, max_length=6.0, step_mm=0.5, cutoff=0.05, compiled=False)
    weighting = torch.rand(9, 8, 7, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    smooth = torch.rand(2, 9, 8, 7, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    regions, inner = Image(field.grid, smooth), Image(field.grid, 0.4 + 0.6 * weighting[None])
    termination = SoftTermination(0.5, 0.15, mask=inner, angle=0.06, angle_temperature=0.05)

    def function(coeffs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        there = ShField(field.grid, coeffs, 8)
        lines = next(tracker.track(there, seeds, mask, directions=start))
        weights = survival(lines, there, termination)
        visits = (visitation_map(lines, weights.point, field.grid) * weighting).sum()
        return soft_lengths(lines, weights.point), visits, connectome(lines, weights, regions)

    coeffs = field.coeffs.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (coeffs,), fast_mode=True, atol=1e-5, rtol=1e-4)
    assert float(function(coeffs)[0].detach().min()) > 0.5


def test_ends_are_where_survival_is_lost() -> None:
    lines = straight(2, 3)
    onward = torch.tensor([0.5, 0.8, 1.0, 0.9, 0.6, 0.2], dtype=DOUBLE)
    weights = Survival(torch.tensor([0.5], dtype=DOUBLE), onward, lines.streamline_of_point)
    grid = ImageGrid((8, 3, 3), torch.eye(4, dtype=DOUBLE), "phantom")
    grid = dataclasses.replace(grid, affine=torch.eye(4, dtype=DOUBLE).index_put(
        (torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])), torch.tensor([-3.0, -1, -1], dtype=DOUBLE)))  # fmt: skip
    position = grid.centres(DOUBLE)[..., 0]
    # One membership for each place on the line.
    regions = Image(grid, torch.stack([(position == x).double() for x in range(-2, 4)]))
    first, second = end_memberships(lines, weights, regions)
    torch.testing.assert_close(first[0], torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0, 0.0], dtype=DOUBLE))
    torch.testing.assert_close(second[0], torch.tensor([0.0, 0.0, 0.1, 0.3, 0.4, 0.2], dtype=DOUBLE))
    matrix = connectome(lines, weights, regions)
    assert float(matrix[0, 5]) == pytest.approx(0.5 * 0.5 * 0.2)
    assert torch.equal(matrix, matrix.mT)
    assert float(matrix.triu().sum()) == pytest.approx(0.5)
    assert float(visitation_map(lines, torch.ones(6, dtype=DOUBLE), grid).sum()) == pytest.approx(5.0)
    assert float(soft_lengths(lines, onward)) == pytest.approx(0.5 + 0.8 + 0.9 + 0.6 + 0.2)


def test_a_line_with_its_seed_at_one_end_ends_there_too(fading: tuple[ShField, Image]) -> None:
    field, mask = fading
    # All points lie between the centres of the outermost voxels, where sampling the image of ones gives 1.
    inner = torch.zeros_like(mask.mask)
    inner[1:-1, 1:-1, 1:-1] = True
    lines = lines_of(field, Image(field.grid, inner[None]), dataclasses.replace(TRACKER, one_way=True, cutoff=0.1))
    assert len(lines) > 2
    # A line runs from the end of its first half to its seed; there is no second half.
    assert torch.equal(lines.per_streamline["seed_point"], lines.n_points - 1)
    everywhere = Image(field.grid, torch.ones(1, *field.grid.shape, dtype=DOUBLE))
    weights = survival(lines, field, SoftTermination(0.4, 0.05))
    first, second = end_memberships(lines, weights, everywhere)
    whole = torch.ones(len(lines), dtype=DOUBLE)
    torch.testing.assert_close(first[:, 0], whole)
    torch.testing.assert_close(second[:, 0], whole)


def test_a_soft_mask_ends_lines_where_it_falls(fading: tuple[ShField, Image]) -> None:
    field, mask = fading
    wall = torch.zeros(1, 9, 8, 7, dtype=DOUBLE)
    wall[:, :5] = 1
    lines = lines_of(field, mask, dataclasses.replace(TRACKER, cutoff=0.05))
    weights = survival(lines, field, SoftTermination(0.05, 1e-3, mask=Image(field.grid, wall), mask_temperature=1e-3))
    vox = field.grid.to_voxel(lines.points)[:, 0]
    assert float(weights.point[vox > 4.7].max()) < 1e-3
    assert float(weights.point[vox < 4.3].max()) > 0.99


def test_a_soft_turn_is_a_hazard_of_the_angle_between_steps() -> None:
    """A line by hand: straight on, 40°, straight on; 1 mm a step. Nothing else ends it."""
    turn = math.radians(40)
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [2 + math.cos(turn), math.sin(turn), 0]], dtype=DOUBLE)
    points = torch.cat((points, points[3:] + points[3:] - points[2:3])) + 3
    data = {"seed": torch.tensor([0]), "seed_point": torch.tensor([1])}
    lines = Streamlines(points, torch.tensor([0, 5]), "phantom", {}, data)
    grid = ImageGrid((9, 9, 9), torch.eye(4, dtype=DOUBLE), "phantom")
    isotropic = torch.zeros(45, 9, 9, 9, dtype=DOUBLE)
    isotropic[0] = 10.0
    termination = SoftTermination(0.1, 0.01, angle=math.radians(30), angle_temperature=math.radians(4))
    found = survival(lines, ShField(grid, isotropic, 8), termination)
    scale = math.radians(4) * math.sin(math.radians(30))
    none, bent = (math.log1p(math.exp((math.cos(math.radians(30)) - math.cos(a)) / scale)) for a in (0.0, turn))
    # The seed's own step turns from nothing, and the line's last points are reached before their hazard counts.
    expected = torch.tensor([0.0, 0.0, 0.0, -bent, -bent - none], dtype=DOUBLE)
    torch.testing.assert_close(found.onward.log(), expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(alive_at_ends(lines, found)[0], found.onward[[0, 4]])


def test_rules_made_soft_leave_hardly_a_line_alive_at_a_hard_end(fading: tuple[ShField, Image]) -> None:
    """With its cutoff alone soft, lines that run out of the mask are alive there; with all rules soft they are not."""
    field, mask = fading
    half = mask.values.clone()
    half[:, 6:] = False
    inside = Image(field.grid, half)
    tracker = dataclasses.replace(TRACKER, cutoff=0.1, angle=math.radians(20))
    alive = {}
    for name, termination in (("cutoff", SoftTermination(0.1, 0.02)), ("all", SoftTermination.like(tracker, inside))):
        lines = lines_of(field, inside, termination.loosened(tracker))
        alive[name] = alive_at_ends(lines, survival(lines, field, termination)).amax()
    assert float(alive["cutoff"]) > 0.9
    assert float(alive["all"]) < 0.05
    loose = SoftTermination.like(tracker, inside).loosened(tracker)
    assert loose.angle == pytest.approx(math.radians(35))
    # A least radius is a turn too, and gives way to the looser one.
    curved = dataclasses.replace(tracker, min_radius=2.0)
    soft = SoftTermination.like(curved, inside)
    assert soft.angle == pytest.approx(2 * math.asin(0.8 / 4))
    assert soft.loosened(curved).min_radius is None


def test_splat_is_the_transpose_of_sampling(oblique_affine: Tensor, generator: torch.Generator) -> None:
    grid = ImageGrid((5, 6, 4), oblique_affine, "w")
    vox = torch.rand(30, 3, generator=generator, dtype=DOUBLE) * 7 - 1.5
    image = torch.rand(2, 5, 6, 4, generator=generator, dtype=DOUBLE)
    values = torch.rand(30, 2, generator=generator, dtype=DOUBLE)
    sampled = Image(grid, image).sample(grid.to_world(vox))
    torch.testing.assert_close((sampled * values).sum(), (splat(values, vox, grid.shape) * image).sum())


def test_memberships_are_full_inside_and_fade_outside(oblique_affine: Tensor) -> None:
    grid = ImageGrid((15, 15, 15), oblique_affine, "w")
    label = torch.zeros(1, 15, 15, 15, dtype=torch.bool)
    label[0, 4:11, 4:11, 4:11] = True
    soft = memberships(label, grid, 2.0).values[0]
    assert float(soft[7, 7, 7]) == 1
    assert float(soft[5, 7, 7]) > 0.95
    assert 0.05 < float(soft[3, 7, 7]) < 0.8
    assert float(soft[0, 7, 7]) < 1e-3


def test_annealing_ends_where_it_should_and_wrong_requests_are_refused(fading: tuple[ShField, Image]) -> None:
    steps = SoftTermination(0.1, 0.1).annealed(0.001, 3)
    assert [s.temperature for s in steps] == pytest.approx([0.1, 0.01, 0.001])
    assert SoftTermination(0.1, 0.01).loosened(SDStream()).cutoff == pytest.approx(0.05)
    with pytest.raises(ValueError, match="positive"):
        SoftTermination(temperature=0.0)
    with pytest.raises(ValueError, match="turn"):
        SoftTermination(angle=2.0)
    bare = Streamlines.from_list([torch.zeros(3, 3)], "phantom")
    with pytest.raises(ShapeError, match="seed_point"):
        survival(bare, fading[0], SoftTermination())
