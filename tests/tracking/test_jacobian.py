"""The growth of the Jacobian along streamlines: closed forms, finite differences, and what a crossing does to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.jacobian import spectral_norm
from tractode.tracking.sdstream import SDStream

DOUBLE = torch.float64


def fibres(directions: Tensor, width: float = 0.02) -> Tensor:
    degree = sh.degrees(8).to(directions)
    unit = directions / directions.norm(dim=-1, keepdim=True)
    return sh.basis(unit, 8) * torch.exp(-width * degree * (degree + 1))


def on_grid(affine: Tensor, shape: tuple[int, int, int], coeffs_at) -> tuple[ShField, Image]:
    """A field given by its coefficients at positions relative to the grid's centre, mm."""
    grid = ImageGrid(shape, affine, "phantom")
    centre = grid.to_world((torch.tensor(shape, dtype=DOUBLE) - 1) / 2)
    coeffs = coeffs_at(grid.centres(DOUBLE) - centre)
    mask = Image(grid, torch.ones(1, *shape, dtype=torch.bool))
    return ShField(grid, coeffs.permute(3, 0, 1, 2).contiguous(), 8), mask


def bundle(tracker: SDStream, field: ShField, seeds: Tensor, mask: Image) -> Streamlines:
    start = torch.tensor([[1.0, 0, 0]], dtype=seeds.dtype).expand(len(seeds), 3)
    return next(tracker.track(field, seeds, mask, directions=start))


def near_centre(field: ShField, n: int, spread: float = 1.0) -> Tensor:
    vox = (torch.tensor(field.grid.shape, dtype=DOUBLE) - 1) / 2
    return field.grid.to_world(vox + spread * (torch.rand(n, 3, generator=torch.Generator().manual_seed(3)) - 0.5))


def test_the_spectral_norm_is_the_largest_singular_value() -> None:
    matrices = torch.randn(3, 3, 200, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    matrices[:, :, 0], matrices[:, :, 1] = torch.eye(3), 0
    matrices[:, :, 2] = torch.diag(torch.tensor([1.0, 2.0, 2.0]))
    expected = torch.linalg.matrix_norm(matrices.permute(2, 0, 1), ord=2)
    torch.testing.assert_close(spectral_norm(matrices), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("integration", ["euler", "rk4"])
def test_growth_is_that_of_finite_differences(oblique_affine: Tensor, integration: str) -> None:
    def bent(p: Tensor) -> Tensor:
        main = torch.stack((torch.ones_like(p[..., 0]), 0.05 * p[..., 1] + 0.03 * p[..., 2], 0.04 * p[..., 1]), dim=-1)
        return fibres(main) + 0.5 * fibres(torch.tensor([0.1, 0.2, 1.0], dtype=DOUBLE))

    field, mask = on_grid(oblique_affine, (8, 8, 8), bent)
    tracker = SDStream(
        step_mm=0.4,
        min_length=0.5,
        max_length=3.1,
        integration=integration,  # type: ignore[arg-type]
        report_growth=True,
    )
    seeds = near_centre(field, 4)
    here = bundle(tracker, field, seeds, mask)
    size, columns = 1e-5, []
    for axis in torch.eye(3, dtype=DOUBLE):
        ahead, behind = (bundle(tracker, field, seeds + sign * size * axis, mask) for sign in (1, -1))
        columns.append((ahead.points - behind.points) / (2 * size))
    expected = torch.linalg.matrix_norm(torch.stack(columns, dim=-1), ord=2)
    growth = here.per_point["growth"]
    torch.testing.assert_close(growth, expected, rtol=1e-5, atol=1e-6)
    at_seed = here.offsets[:-1] + here.per_streamline["seed_point"]
    assert torch.equal(growth[at_seed], torch.ones(4, dtype=DOUBLE))
    assert float(growth.max()) > 1.1


def test_lines_that_run_in_parallel_do_not_part(oblique_affine: Tensor) -> None:
    field, mask = on_grid(
        oblique_affine, (8, 8, 8), lambda p: fibres(torch.tensor([1.0, 0.1, 0.2], dtype=DOUBLE).expand_as(p))
    )
    lines = bundle(SDStream(min_length=1.0, report_growth=True), field, near_centre(field, 3), mask)
    torch.testing.assert_close(lines.per_point["growth"], torch.ones(len(lines.points), dtype=DOUBLE))
    assert "growth" not in bundle(SDStream(min_length=1.0), field, near_centre(field, 3), mask).per_point


def fan_and_crossing(angle: float):
    """Fibres that part as they go, crossed at the centre by others at ``angle`` (rad): the peaks are drawn together."""

    def coeffs(p: Tensor) -> Tensor:
        main = torch.stack((torch.ones_like(p[..., 0]), 0.02 * p[..., 1], 0.02 * p[..., 2]), dim=-1)
        other = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=DOUBLE)
        share = 1.5 * torch.exp(-p.square().sum(-1, keepdim=True) / (2 * 3.0**2))
        return fibres(main) + share * fibres(other)

    return coeffs


def test_crossings_make_lines_unstable_and_the_bound_keeps_the_gradient(oblique_affine: Tensor) -> None:
    """The sharper the crossing, the farther a shifted seed is carried; a bounded gradient stays within its bound."""
    worst, bound = [], 1.1
    for degrees in (90.0, 45.0, 25.0):
        field, mask = on_grid(oblique_affine, (16, 12, 12), fan_and_crossing(math.radians(degrees)))
        tracker = SDStream(step_mm=0.3, min_length=1.0, max_length=16.0, report_growth=True)
        seeds = near_centre(field, 60, spread=3.0)
        lines = bundle(tracker, field, seeds, mask)
        worst.append(float(lines.per_point["growth"].max()))
        gradients = []
        for limit in (None, bound):
            at = seeds.clone().requires_grad_()
            held = bundle(SDStream(step_mm=0.3, min_length=1.0, max_length=16.0, max_growth=limit), field, at, mask)
            ends = torch.cat((held.points[held.offsets[:-1]], held.points[held.offsets[1:] - 1]))
            (grad,) = torch.autograd.grad(ends.sum(), at)
            gradients.append(float(grad.norm(dim=1).max()))
        # Each half is given a gradient of length √3 at its end.
        assert gradients[1] <= 2 * bound * 3**0.5 * (1 + 1e-9)
        assert gradients[0] > 1.02 * gradients[1]
    assert worst[2] > 1.5 * worst[0]
    assert worst[1] > 1.02 * worst[0]
    assert gradients[0] > 2 * bound * 3**0.5
