"""SD_STREAM: its peaks, its rules, its gradients, and its agreement with MRtrix3."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tractode.errors import InputDataError, ShapeError, SpaceMismatchError
from tractode.fields import Image, ImageGrid, ShField, Streamlines, TensorField
from tractode.ops import sh_polynomial as poly
from tractode.ops import spherical_harmonics as sh
from tractode.ops.peaks import LANES, Peak, find_peaks
from tractode.tracking.propagate import track_until
from tractode.tracking.sdstream import SDStream
from tractode.tracking.seeds import random_directions, seeds_in_mask

DOUBLE = torch.float64


def fibres(directions: Tensor, width: float = 0.02) -> Tensor:
    """Single fibres blurred by a heat kernel; above a width of 0.05 there are no side lobes to start from."""
    degree = sh.degrees(8).to(directions)
    return sh.basis(directions, 8) * torch.exp(-width * degree * (degree + 1))


def straight(
    affine: Tensor, direction: Tensor, shape: tuple[int, int, int] = (20, 12, 12), scale: float = 1.0
) -> tuple[ShField, Image]:
    grid = ImageGrid(shape, affine, "phantom")
    coeffs = (scale * fibres(direction, 0.06))[:, None, None, None].expand(-1, *shape).clone()
    return ShField(grid, coeffs, 8), Image(grid, torch.ones(1, *shape, dtype=torch.bool))


def one(tracker: SDStream, field: ShField, seeds: Tensor, mask: Image, **options) -> Streamlines:
    return next(tracker.track(field, seeds, mask, **options))


def test_peaks_of_single_fibres_are_their_directions() -> None:
    truth = random_directions(LANES, torch.Generator().manual_seed(0)).mT
    truth[:, 0] = torch.tensor([0.0, 0.0, 1.0])
    start = truth + 0.3 * random_directions(LANES, torch.Generator().manual_seed(1)).mT
    found, amplitude = find_peaks(poly.from_harmonics(8) @ fibres(truth.mT).mT, start / start.norm(dim=0))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-9)
    torch.testing.assert_close(amplitude, (sh.basis(truth.mT, 8) * fibres(truth.mT)).sum(-1), rtol=1e-9, atol=1e-9)


def test_each_of_two_crossing_fibres_is_found_from_its_side() -> None:
    x, y = torch.tensor([1.0, 0, 0], dtype=DOUBLE), torch.tensor([0.0, 1, 0], dtype=DOUBLE)
    components = (poly.from_harmonics(8) @ (fibres(x) + 0.7 * fibres(y)))[:, None].expand(-1, LANES).contiguous()
    angle = torch.linspace(0, math.pi / 2, LANES, dtype=DOUBLE)
    start = torch.stack((angle.cos(), angle.sin(), torch.zeros_like(angle)))
    found, _ = find_peaks(components, start)
    assert float((found[0, : LANES // 3] - 1).abs().max()) < 1e-8
    assert float((found[1, -LANES // 3 :] - 1).abs().max()) < 1e-8


def test_peak_gradient_is_that_of_finite_differences() -> None:
    start = random_directions(4, torch.Generator().manual_seed(3))
    noise = 0.02 * torch.randn(4, 45, dtype=DOUBLE, generator=torch.Generator().manual_seed(4))
    components = (poly.from_harmonics(8) @ (fibres(start) + noise).mT).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: Peak.apply(c, start.mT), (components,), atol=1e-5, fast_mode=True)


def test_step_lengths_and_limits_are_those_of_mrtrix(oblique_affine: Tensor) -> None:
    direction = oblique_affine[:3, 0] / oblique_affine[:3, 0].norm()
    field, mask = straight(oblique_affine, direction, (150, 6, 6))
    centre = field.grid.to_world(torch.tensor([[75.0, 2.5, 2.5], [2.0, 2.5, 2.5]], dtype=DOUBLE))
    voxel = (2.0 * 2.3 * 2.6) ** (1 / 3)
    lines = one(SDStream(), field, centre, mask, directions=torch.stack((direction, -direction)))
    steps = lines[0].diff(dim=0).norm(dim=-1)
    assert torch.allclose(steps, torch.full_like(steps, 0.1 * voxel))
    # 100 voxels are 1,000 steps; tckgen adds points until there are 3 more than that.
    assert lines.n_points[0] == 1003
    # A first half that reaches the limit still leaves one step to the second.
    assert one(SDStream(), field, centre[1:], mask, directions=direction[None]).n_points[0] == 1004
    # The seed near the end of the image: one half ends at the image, the other at the limit; it is kept whole.
    ends = field.grid.to_voxel(lines[1][[0, -1]])[:, 0]
    assert float(ends.min()) > -0.5
    assert float(ends.min()) < -0.5 + 0.1 * voxel / 2.0


def test_short_lines_are_left_out(oblique_affine: Tensor) -> None:
    direction = oblique_affine[:3, 1] / oblique_affine[:3, 1].norm()
    field, _ = straight(oblique_affine, direction)
    slab = torch.zeros(1, 20, 12, 12, dtype=torch.bool)
    slab[:, :, 4:8] = True  # 4 voxels of 2.3 mm: 9.2 mm
    seed = field.grid.to_world(torch.tensor([[10.0, 6.0, 6.0]], dtype=DOUBLE))
    assert len(one(SDStream(min_length=9.6), field, seed, Image(field.grid, slab))) == 0
    assert len(one(SDStream(min_length=8.5), field, seed, Image(field.grid, slab))) == 1


def test_weak_peaks_empty_voxels_and_sharp_turns_end_lines(oblique_affine: Tensor) -> None:
    axes = oblique_affine[:3, :3] / oblique_affine[:3, :3].norm(dim=0)
    field, mask = straight(oblique_affine, axes[:, 0])
    seed = field.grid.to_world(torch.tensor([[5.0, 6.0, 6.0]], dtype=DOUBLE))
    peak = float((sh.basis(axes[:, 0], 8) * fibres(axes[:, 0], 0.06)).sum())
    tracker = SDStream(min_length=1.0, cutoff=0.5 * peak)

    def upper_end(coeffs: Tensor) -> float:
        lines = one(tracker, ShField(field.grid, coeffs, 8), seed, mask)
        return float(field.grid.to_voxel(lines.points)[:, 0].max())

    step = 0.1 * (2.0 * 2.3 * 2.6) ** (1 / 3) / 2.0  # voxels along the first axis
    weak = field.coeffs.clone()
    weak[:, 11:] *= 1e-6  # interpolation halves the peak at 10.5
    assert 10.5 - 1e-6 <= upper_end(weak) <= 10.5 + step
    empty = field.coeffs.clone()
    empty[:, 11:] = 0
    assert 10.5 - 1e-6 <= upper_end(empty) <= 10.5 + step
    turned = field.coeffs.clone()
    turned[:, 11:] = fibres(axes[:, 1], 0.06)[:, None, None, None]
    assert upper_end(turned) < 12.5


def test_seeds_outside_the_mask_or_below_the_cutoff_start_nothing(oblique_affine: Tensor) -> None:
    direction = oblique_affine[:3, 0] / oblique_affine[:3, 0].norm()
    field, mask = straight(oblique_affine, direction, scale=1e-3)
    seed = field.grid.to_world(torch.tensor([[5.0, 6.0, 6.0]], dtype=DOUBLE))
    assert len(one(SDStream(), field, seed, mask)) == 0
    field, mask = straight(oblique_affine, direction)
    assert len(one(SDStream(), field, seed, Image(field.grid, torch.zeros_like(mask.values)))) == 0
    assert len(one(SDStream(), field, field.grid.to_world(torch.tensor([[-3.0, 6, 6]], dtype=DOUBLE)), mask)) == 0


def curved(affine: Tensor) -> tuple[ShField, Image]:
    """Directions that turn smoothly with position, with a weaker crossing fibre."""
    grid = ImageGrid((9, 8, 7), affine, "phantom")
    p = grid.centres(DOUBLE) - grid.to_world(torch.tensor([4.0, 4, 3], dtype=DOUBLE))
    main = torch.stack((torch.ones_like(p[..., 0]), 0.05 * p[..., 0] + 0.03 * p[..., 2], 0.04 * p[..., 1]), dim=-1)
    other = torch.tensor([0.1, 0.2, 1.0], dtype=DOUBLE)
    coeffs = fibres(main / main.norm(dim=-1, keepdim=True)) + 0.5 * fibres(other / other.norm())
    return ShField(grid, coeffs.permute(3, 0, 1, 2).contiguous(), 8), Image(
        grid, torch.ones(1, 9, 8, 7, dtype=torch.bool)
    )


def test_point_gradients_are_those_of_finite_differences(oblique_affine: Tensor) -> None:
    field, mask = curved(oblique_affine)
    seeds = field.grid.to_world(torch.tensor([[4.2, 3.7, 3.1], [3.6, 4.3, 2.8]], dtype=DOUBLE))
    start = torch.tensor([[1.0, 0, 0], [-1.0, 0.1, 0]], dtype=DOUBLE)
    tracker = SDStream(max_length=3.0, min_length=0.5, step_mm=0.3)

    def points(coeffs: Tensor, at: Tensor) -> Tensor:
        return one(tracker, ShField(field.grid, coeffs, 8), at, mask, directions=start).points

    coeffs, at = field.coeffs.clone().requires_grad_(), seeds.clone().requires_grad_()
    assert len(points(coeffs, at)) > 15
    assert torch.autograd.gradcheck(points, (coeffs, at), fast_mode=True, atol=1e-4, rtol=1e-3)


def test_gradients_move_a_line_to_a_target(oblique_affine: Tensor) -> None:
    """The use of it all: the field is bent until the end of the line lies where it should."""
    field, mask = curved(oblique_affine)
    seed = field.grid.to_world(torch.tensor([[4.0, 4.0, 3.0]], dtype=DOUBLE))
    start = torch.tensor([[1.0, 0, 0]], dtype=DOUBLE)
    tracker = SDStream(max_length=6.0, min_length=0.5, step_mm=0.5)
    coeffs = field.coeffs.clone().requires_grad_()
    end = one(tracker, field, seed, mask, directions=start).points[0]
    target = end + torch.tensor([0.0, 0.6, -0.4], dtype=DOUBLE)
    optimiser = torch.optim.Adam([coeffs], lr=0.015)
    for _ in range(12):
        optimiser.zero_grad()
        loss = (one(tracker, ShField(field.grid, coeffs, 8), seed, mask, directions=start).points[0] - target).norm()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.6 * float((end - target).norm())


def test_track_until_stops_at_the_count_whatever_the_batch_size(oblique_affine: Tensor) -> None:
    field, mask = curved(oblique_affine)
    field = ShField(field.grid, field.coeffs.float(), 8)

    def lines(batch_size: int) -> Streamlines:
        tracker = SDStream(batch_size=batch_size, min_length=3.0, step_mm=0.5)
        parts = track_until(tracker, field, mask, mask, 60, torch.Generator().manual_seed(2))
        return Streamlines.concatenate(parts, "phantom")

    first, second = lines(4096), lines(50)
    assert len(first) == 60
    assert torch.equal(first.points, second.points)
    assert torch.equal(first.per_streamline["seed"], second.per_streamline["seed"])


def test_track_until_gives_up_when_the_seeds_are_spent(oblique_affine: Tensor) -> None:
    field, mask = straight(oblique_affine, oblique_affine[:3, 0] / 2.0, (6, 6, 6), scale=1e-3)
    assert list(track_until(SDStream(), field, mask, mask, 10, torch.Generator(), max_seeds=100)) == []


def test_seeds_lie_in_the_mask_and_fill_it(oblique_affine: Tensor) -> None:
    mask = torch.zeros(1, 6, 5, 4, dtype=torch.bool)
    mask[0, 1:3, 2, 1:4] = True
    image = Image(ImageGrid((6, 5, 4), oblique_affine, "w"), mask)
    seeds = seeds_in_mask(image, 3000, torch.Generator().manual_seed(0))
    vox = image.grid.to_voxel(seeds.double())
    nearest = (vox + 0.5).floor().long()
    assert mask[0][tuple(nearest.mT)].all()
    counts = torch.unique(nearest, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert int(counts.min()) > 400
    assert float((vox - nearest).abs().mean()) == pytest.approx(0.25, abs=0.01)


def test_wrong_requests_say_what_is_needed(oblique_affine: Tensor) -> None:
    field, mask = straight(oblique_affine, oblique_affine[:3, 0] / 2.0, (4, 4, 4))
    with pytest.raises(ValueError, match="step_mm"):
        SDStream(step_mm=-1.0)
    with pytest.raises(ShapeError, match="TensorField"):
        SDStream().track(TensorField(field.grid, torch.zeros(6, 4, 4, 4)), torch.zeros(1, 3), mask)
    elsewhere = Image(field.grid.renamed("elsewhere"), mask.values)
    with pytest.raises(SpaceMismatchError, match="elsewhere"):
        SDStream().track(field, torch.zeros(1, 3), elsewhere)
    with pytest.raises(InputDataError, match="empty"):
        seeds_in_mask(Image(field.grid, torch.zeros(1, 4, 4, 4)), 1, torch.Generator())


def test_parameters_are_plain_facts(oblique_affine: Tensor) -> None:
    facts = SDStream().parameters(ImageGrid((4, 4, 4), oblique_affine, "w"))
    assert facts["MaximumAngle"] == pytest.approx(60)
    assert facts["StepSize"] == pytest.approx(0.1 * (2.0 * 2.3 * 2.6) ** (1 / 3))
