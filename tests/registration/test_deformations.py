"""Families of velocities, integrators and their gradients, several channels, lesions, stiffness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from tractode.evaluate.folding import certificate
from tractode.fields import Affine, Flow, Image, ImageGrid, VelocityField
from tractode.ops import ode
from tractode.registration import DEFORMATIONS
from tractode.registration.deformation import border_window, half_flows
from tractode.registration.metrics.mind import MIND
from tractode.registration.metrics.mse import MeanSquares
from tractode.registration.midpoint import halved
from tractode.registration.neural_field import NeuralVelocity
from tractode.registration.optimise import Schedule, Stage, register
from tractode.registration.svf import StationaryVelocity
from tractode.registration.tvf import TimeVelocity

IDENTITY = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")
QUICK = Schedule((Stage(8.0, 16.0, 2),), weight=3.0, points=8000)


def nodes(n: int = 9, spacing: float = 8.0) -> ImageGrid:
    affine = torch.eye(4, dtype=torch.float64) * spacing
    affine[:3, 3], affine[3, 3] = -30.0, 1
    return ImageGrid((n, n + 2, n - 1), affine, "half-way")


def random_velocity(grid: ImageGrid, times: int = 1, size: float = 3.0) -> torch.Tensor:
    noise = torch.randn(times, 3, *grid.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return size * noise * border_window(grid.shape)


@pytest.mark.parametrize("name", sorted(DEFORMATIONS))
def test_family_starts_at_the_identity_and_its_parameters_move_it(name: str) -> None:
    family = DEFORMATIONS[name](nodes())
    start = family.parameters()
    assert float(family.velocity(start).abs().max()) == 0
    leaf = start.requires_grad_(True)
    forward, back = family.halves(family.velocity(leaf))
    target = torch.ones_like(forward)
    ((forward - target).square().mean() + (back + target).square().mean()).backward()
    assert float(leaf.grad.abs().max()) > 0
    moved = start.detach() - family.step * 10 * leaf.grad.sign() * (leaf.grad != 0)
    velocity = family.velocity(moved)
    assert float(velocity.mean(0).mean((1, 2, 3)).min()) > 0


@pytest.mark.parametrize("name", sorted(DEFORMATIONS))
def test_refined_family_gives_about_the_same_velocity(name: str) -> None:
    coarse, fine = DEFORMATIONS[name](nodes()), DEFORMATIONS[name](nodes(17, 4.0))
    generator = torch.Generator().manual_seed(1)
    start = coarse.parameters()
    parameters = start + 0.05 * torch.randn(start.shape, generator=generator)
    before, after = coarse.velocity(parameters), fine.velocity(coarse.refined(parameters, fine))
    inside = fine.grid.centres()[6:11, 6:13, 6:11]
    first = VelocityField(coarse.grid, before).values
    seen = [Image(grid, v[0]).sample(inside) for grid, v in ((coarse.grid, first), (fine.grid, after))]
    # Smoothing in nodes is half as wide on the finer ones.
    assert float((seen[0] - seen[1]).norm() / seen[0].norm()) < 0.6


def test_halves_of_every_integrator_agree_and_make_the_whole() -> None:
    grid = nodes()
    values = random_velocity(grid) / 8.0 * 0.5
    ways = {name: half_flows(values, name) for name in ("squaring", "euler", "rk4")}  # type: ignore[arg-type]
    for name in ("squaring", "euler"):
        for one, other in zip(ways[name], ways["rk4"], strict=True):
            assert float((one - other)[:, 2:-2, 2:-2, 2:-2].abs().max()) < 0.05
    flow = Flow(VelocityField(grid, values * 8.0), "a", "b", steps=16)
    centres = grid.centres(torch.float64)[3:-3, 3:-3, 3:-3]
    forward = replace(flow, t0=0.5).map(centres)
    measured = (centres + 8.0 * ways["rk4"][0].permute(1, 2, 3, 0)[3:-3, 3:-3, 3:-3] - forward).norm(dim=-1)
    assert float(measured.max()) < 0.1


def test_time_dependent_halves_are_inverse_when_composed() -> None:
    grid = nodes()
    flow = Flow(VelocityField(grid, random_velocity(grid, 3)), "a", "b", steps=16)
    points = grid.centres(torch.float64)[3:-3, 3:-3, 3:-3]
    start = replace(flow, t0=0.5, t1=0.0).map(points)
    torch.testing.assert_close(flow.map(start), replace(flow, t0=0.5, t1=1.0).map(points), atol=2e-3, rtol=0)


def test_adjoint_gradient_nears_the_discrete_one() -> None:
    """Both gradients of the end points, with respect to the velocity; they differ as the steps do."""
    grid = nodes(7)
    values = random_velocity(grid).div(16.0).requires_grad_(True)
    target = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None, None, None]
    found = {}
    for gradient in ("discrete", "adjoint"):
        forward, _ = half_flows(values, "rk4", gradient)  # type: ignore[arg-type]
        found[gradient] = torch.autograd.grad((forward * target).sum(), values)[0]
    apart = (found["adjoint"] - found["discrete"]).norm() / found["discrete"].norm()
    assert 0 < float(apart) < 0.05


def test_steps_follow_the_steepest_place() -> None:
    flat = torch.zeros(3, 5, 5, 5)
    assert ode.steps_for(flat) == 1
    assert ode.squarings_for(flat) == 1
    flat[0, 2:] = 3.0
    assert ode.steps_for(flat, bound=0.5) == 6
    assert 2 ** ode.squarings_for(flat, bound=0.1) >= 30


@pytest.mark.parametrize(
    "family", [TimeVelocity, partial(NeuralVelocity, features=24, width=24), DEFORMATIONS["decoder"]]
)
def test_other_families_register(family: Callable, fixed: Image, fixed_mask: Image, moved: Callable) -> None:
    """Every one lowers the cost and folds nowhere; here no race is run."""
    truth = _shift_flow(fixed.grid)
    moving = moved(truth, fixed.grid.renamed("moving"))
    seen: list[float] = []
    found = register(
        fixed, moving, initial=IDENTITY, fixed_mask=fixed_mask, deformation=family,
        schedule=QUICK, progress=lambda *now: seen.append(now[2]),
    )  # fmt: skip
    assert min(seen[-5:]) < 0.9 * seen[0]
    assert certificate(found, fixed.grid).is_diffeomorphic


def _shift_flow(grid: ImageGrid) -> Flow:
    coarse = grid.resampled(16.0)
    values = torch.zeros(1, 3, *coarse.shape, dtype=torch.float64)
    values[:, 0], values[:, 2] = 5.0, -3.0
    return Flow(VelocityField(coarse, values * border_window(coarse.shape, 2)), "fixed", "moving")


def test_channels_lesion_and_stiffness(fixed: Image, fixed_mask: Image, moved: Callable) -> None:
    """Two channels with a metric each; a lesion that counts nothing; a stiffer half moves less."""
    truth = _shift_flow(fixed.grid)
    target = fixed.grid.renamed("moving")
    channels = (moved(truth, target), moved(truth, target, "same"))
    both = [(MIND(radius=1, dilation=1), 1.0), (MeanSquares(), 0.5)]

    def run(images: tuple[Image, ...], **options: object) -> torch.Tensor:
        plan = Schedule((Stage(4.0, 16.0, 4),), weight=3.0)
        found = register(
            (fixed, fixed), images, metric=both, initial=IDENTITY, fixed_mask=fixed_mask, schedule=plan, **options
        )  # type: ignore[arg-type]
        points = fixed_mask.grid.centres(torch.float64)[fixed_mask.mask]
        return found.map(points) - points

    free = run(channels)
    points = fixed_mask.grid.centres(torch.float64)[fixed_mask.mask]
    expected = truth.map(points) - points
    assert float((free - expected).norm(dim=-1).mean()) < 0.4 * float(expected.norm(dim=-1).mean())

    damaged = [image.values.clone() for image in channels]
    box = (slice(None), slice(12, 22), slice(18, 30), slice(14, 26))
    for values in damaged:
        values[box] = values.max()
    spoilt = tuple(Image(target, values) for values in damaged)
    spared = torch.ones(1, *target.shape)
    spared[:, 11:23, 17:31, 13:27] = 0.0
    blind, seeing = run(spoilt), run(spoilt, moving_weight=Image(target, spared))
    assert float((seeing - free).norm(dim=-1).mean()) < 0.5 * float((blind - free).norm(dim=-1).mean())

    def stiff(places: torch.Tensor) -> torch.Tensor:
        return 1 + 300 * (places[..., 1] > 0).to(places)

    halved = run(channels, stiffness=stiff)
    front = points[:, 1] > 10
    spread = [float((moved_by[front] - moved_by[front].mean(0)).norm(dim=-1).mean()) for moved_by in (free, halved)]
    assert spread[1] < 0.8 * spread[0]


def test_stationary_velocity_without_smoothing_is_its_parameters() -> None:
    family = StationaryVelocity(nodes(), smoothing=0.0)
    parameters = torch.randn(1, 3, *family.grid.shape)
    assert torch.equal(family.velocity(parameters), parameters)


@pytest.mark.parametrize("signs", [(1.0, 1.0, 1.0), (-1.0, 1.0, 1.0)])
def test_both_ways_from_the_middle_make_the_affine_even_where_it_has_no_half(signs: tuple[float, float, float]) -> None:
    matrix = torch.diag(torch.tensor([*signs, 1.0], dtype=torch.float64))
    matrix[:3, :3] += torch.tensor([[0.0, 0.1, 0.0], [-0.1, 0.1, 0.05], [0.0, -0.05, 0.0]], dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([12.0, -7.0, 30.0], dtype=torch.float64)
    to_fixed, to_moving = halved(Affine(matrix, "fixed", "moving"))
    torch.testing.assert_close(to_moving @ torch.linalg.inv(to_fixed), matrix)
    if signs[0] > 0:
        torch.testing.assert_close(to_moving, torch.linalg.inv(to_fixed))
    else:
        torch.testing.assert_close(to_fixed, torch.eye(4, dtype=torch.float64))
