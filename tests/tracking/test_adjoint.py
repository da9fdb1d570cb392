"""Gradients of streamlines with respect to the field, the seeds and the step: Euler and RK4, torch and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.adjoint import Derivative
from tractode.tracking.sdstream import SDStream

DOUBLE = torch.float64
WAYS = [
    ("euler", True),
    ("rk4", True),
    # The torch march is held to the compiled loop below.
    pytest.param("euler", False, marks=pytest.mark.slow),
    pytest.param("rk4", False, marks=pytest.mark.slow),
]
every_way = pytest.mark.parametrize(("integration", "compiled"), WAYS)


def fibres(directions: Tensor, width: float = 0.02) -> Tensor:
    degree = sh.degrees(8).to(directions)
    unit = directions / directions.norm(dim=-1, keepdim=True)
    return sh.basis(unit, 8) * torch.exp(-width * degree * (degree + 1))


@pytest.fixture
def phantom(oblique_affine: Tensor) -> tuple[ShField, Image]:
    """Directions that turn smoothly with position, with a weaker crossing fibre."""
    grid = ImageGrid((9, 8, 7), oblique_affine, "phantom")
    p = grid.centres(DOUBLE) - grid.to_world(torch.tensor([4.0, 4, 3], dtype=DOUBLE))
    main = torch.stack((torch.ones_like(p[..., 0]), 0.05 * p[..., 0] + 0.03 * p[..., 2], 0.04 * p[..., 1]), dim=-1)
    coeffs = fibres(main) + 0.5 * fibres(torch.tensor([0.1, 0.2, 1.0], dtype=DOUBLE))
    mask = Image(grid, torch.ones(1, *grid.shape, dtype=torch.bool))
    return ShField(grid, coeffs.permute(3, 0, 1, 2).contiguous(), 8), mask


def seeds_near_the_middle(field: ShField, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    vox = torch.tensor([4.0, 4, 3], dtype=DOUBLE) + 1.5 * (torch.rand(n, 3, dtype=DOUBLE, generator=generator) - 0.5)
    return field.grid.to_world(vox)


def bundle(tracker: SDStream, field: ShField, seeds: Tensor, mask: Image) -> Streamlines:
    start = torch.tensor([[1.0, 0, 0]], dtype=seeds.dtype).expand(len(seeds), 3)
    return next(tracker.track(field, seeds, mask, directions=start))


def tracker_of(integration: str, compiled: bool, **settings) -> SDStream:
    return SDStream(step_mm=0.4, min_length=0.5, max_length=3.1, integration=integration, compiled=compiled, **settings)  # type: ignore[arg-type]


@every_way
def test_points_pass_gradcheck_for_coefficients_seeds_and_step(
    phantom: tuple[ShField, Image], integration: str, compiled: bool
) -> None:
    field, mask = phantom
    tracker = tracker_of(integration, compiled)
    step = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)

    def points(coeffs: Tensor, seeds: Tensor, h: Tensor) -> Tensor:
        return bundle(replace(tracker, step_mm=h), ShField(field.grid, coeffs, 8), seeds, mask).points

    inputs = (field.coeffs.clone().requires_grad_(), seeds_near_the_middle(field, 2).requires_grad_(), step)
    assert len(points(*inputs)) > 15
    assert torch.autograd.gradcheck(points, inputs, fast_mode=True, atol=1e-5, rtol=1e-4)


def length_along(probe: Tensor) -> Callable[[Streamlines], Tensor]:
    """A smooth loss that weighs every point of a bundle differently."""

    def loss(lines: Streamlines) -> Tensor:
        return (lines.points * probe[: len(lines.points)]).sin().mean()

    return loss


@every_way
@pytest.mark.parametrize("variable", ["coefficients", "seeds", "step"])
def test_a_whole_bundles_loss_has_the_slope_of_finite_differences(
    phantom: tuple[ShField, Image], integration: str, compiled: bool, variable: str
) -> None:
    """Within 1e-5, every line keeping its number of steps."""
    field, mask = phantom
    tracker, seeds = tracker_of(integration, compiled), seeds_near_the_middle(field, 25)
    generator = torch.Generator().manual_seed(1)
    loss = length_along(torch.randn(40 * 40, 3, dtype=DOUBLE, generator=generator))
    ways = {
        "coefficients": torch.randn(field.coeffs.shape, dtype=DOUBLE, generator=generator),
        "seeds": torch.randn(seeds.shape, dtype=DOUBLE, generator=generator),
        "step": torch.ones((), dtype=DOUBLE),
    }

    def lines(at: float | Tensor) -> Streamlines:
        moved = {name: at * way if name == variable else 0.0 * way for name, way in ways.items()}
        bent = ShField(field.grid, field.coeffs + moved["coefficients"], 8)
        return bundle(replace(tracker, step_mm=0.4 + moved["step"]), bent, seeds + moved["seeds"], mask)

    at = torch.zeros((), dtype=DOUBLE, requires_grad=True)
    here = lines(at)
    (slope,) = torch.autograd.grad(loss(here), at)
    size = {"coefficients": 1e-6, "seeds": 1e-5, "step": 1e-6}[variable]
    ahead, behind = lines(size), lines(-size)
    assert torch.equal(ahead.offsets, here.offsets)
    assert torch.equal(behind.offsets, here.offsets)
    difference = float(loss(ahead) - loss(behind)) / (2 * size)
    assert float(slope) == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("integration", ["euler", "rk4"])
@pytest.mark.parametrize("max_growth", [None, 1.0])
def test_the_compiled_gradient_is_that_of_torch(
    phantom: tuple[ShField, Image], integration: str, max_growth: float | None
) -> None:
    field, mask = phantom
    probe = torch.randn(20 * 40, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))

    def gradients(compiled: bool) -> tuple[Tensor, ...]:
        inputs = (
            field.coeffs.clone().requires_grad_(),
            seeds_near_the_middle(field, 20).requires_grad_(),
            torch.tensor(0.4, dtype=DOUBLE, requires_grad=True),
        )
        tracker = replace(tracker_of(integration, compiled, max_growth=max_growth), step_mm=inputs[2])
        lines = bundle(tracker, ShField(field.grid, inputs[0], 8), inputs[1], mask)
        return torch.autograd.grad((lines.points * probe[: len(lines.points)]).sum(), inputs)

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_gradients_are_the_same_bytes_for_any_number_of_threads(phantom: tuple[ShField, Image]) -> None:
    field, mask = phantom
    before = torch.get_num_threads()

    def gradient(threads: int) -> tuple[Tensor, ...]:
        torch.set_num_threads(threads)
        coeffs, seeds = field.coeffs.clone().requires_grad_(), seeds_near_the_middle(field, 300).requires_grad_()
        step = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)
        tracker = replace(tracker_of("euler", True), step_mm=step)
        lines = bundle(tracker, ShField(field.grid, coeffs, 8), seeds, mask)
        return torch.autograd.grad(lines.points.square().sum(), (coeffs, seeds, step))

    try:
        one, three = gradient(1), gradient(3)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_a_bound_on_growth_holds_and_a_loose_one_changes_nothing(phantom: tuple[ShField, Image]) -> None:
    field, mask = phantom
    seeds = seeds_near_the_middle(field, 50)

    def at_seeds(max_growth: float | None) -> tuple[Tensor, Streamlines]:
        moved = seeds.clone().requires_grad_()
        lines = bundle(tracker_of("euler", True, max_growth=max_growth), field, moved, mask)
        (grad,) = torch.autograd.grad(lines.points.sum(), moved)
        return grad, lines

    exact, lines = at_seeds(None)
    entered = lines.n_points * 3**0.5  # every point's gradient is (1, 1, 1)
    assert bool((exact.norm(dim=1) > entered[0]).any())
    assert torch.equal(at_seeds(1e6)[0], exact)
    held = at_seeds(1.0)[0]
    assert bool((held.norm(dim=1) <= entered * (1 + 1e-12)).all())
    with pytest.raises(ValueError, match="max_growth"):
        Derivative(max_growth=0.5)


def test_what_is_kept_is_a_position_and_a_direction_a_step(phantom: tuple[ShField, Image]) -> None:
    field, mask = phantom
    coeffs = field.coeffs.float().requires_grad_()
    seeds = seeds_near_the_middle(field, 100).float()
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        lines = bundle(tracker_of("euler", True), ShField(field.grid, coeffs, 8), seeds, mask)
    of_lines = [x.untyped_storage().nbytes() for x in kept.values() if x.shape[-1:] == (3,)]
    # 24 bytes a point, the result itself among them: 24 MB for 1,000 streamlines of 1,000 steps.
    assert sum(of_lines) == 24 * len(lines.points)
    # What else is kept belongs to the field: its table, which voxels it has, and the matrix from harmonics.
    others = [x for x in kept.values() if x.shape[-1:] != (3,)]
    assert max(len(x) for x in others if x.ndim) == field.grid.n_voxels + 1


def test_the_gradient_survives_another_pass_and_leaves_inputs_alone(phantom: tuple[ShField, Image]) -> None:
    field, mask = phantom
    coeffs = field.coeffs.clone().requires_grad_()
    before = coeffs.detach().clone()
    lines = bundle(tracker_of("euler", True), ShField(field.grid, coeffs, 8), seeds_near_the_middle(field, 3), mask)
    points = lines.points.detach().clone()
    (first,) = torch.autograd.grad(lines.points.sum(), coeffs, retain_graph=True)
    (second,) = torch.autograd.grad(lines.points.sum(), coeffs)
    assert torch.equal(first, second)
    assert torch.equal(coeffs.detach(), before)
    assert torch.equal(lines.points.detach(), points)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("integration", ["euler", "rk4"])
def test_the_gradient_on_a_gpu_is_that_of_the_cpu(phantom: tuple[ShField, Image], integration: str) -> None:
    field, mask = phantom

    def gradients(device: str) -> tuple[Tensor, ...]:
        inputs = (
            field.coeffs.to(device).requires_grad_(),
            seeds_near_the_middle(field, 20).to(device).requires_grad_(),
            torch.tensor(0.4, dtype=DOUBLE, device=device, requires_grad=True),
        )
        tracker = replace(tracker_of(integration, True), step_mm=inputs[2])
        lines = bundle(tracker, ShField(field.grid, inputs[0], 8), inputs[1], mask.to(device))
        return torch.autograd.grad(lines.points.square().sum(), inputs)

    for one, other in zip(gradients("cuda"), gradients("cpu"), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-7, atol=1e-7)
