"""The flow found between a head and its copy under a known flow; the gate that judges it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tractode.errors import InputDataError
from tractode.evaluate.folding import certificate
from tractode.evaluate.registration_quality import assess
from tractode.fields import Affine, Chain, Flow, Image, ImageGrid, VelocityField
from tractode.registration.optimise import Schedule, Stage, register
from tractode.registration.svf import border_window, exponential

QUICK = Schedule((Stage(8.0, 16.0, 4), Stage(4.0, 8.0, 5)), weight=3.0)
IDENTITY = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")


def known_flow(grid: ImageGrid) -> Flow:
    nodes = grid.resampled(8.0)
    x, y, z = (nodes.centres(torch.float64) / 30).unbind(-1)
    velocity = 4.0 * torch.stack([torch.sin(y + z), torch.cos(x - z), torch.sin(x + 0.5 * y)])
    return Flow(VelocityField(nodes, (velocity * border_window(nodes.shape))[None]), "fixed", "moving")


def error_mm(found: Flow | Chain | Affine, truth: Flow, mask: Image) -> float:
    points = mask.grid.centres(torch.float64)[mask.mask]
    return float((found.map(points) - truth.map(points)).norm(dim=-1).mean())


def test_known_flow_is_found_and_nothing_folds(fixed: Image, fixed_mask: Image, moved: Callable) -> None:
    truth = known_flow(fixed.grid)
    moving = moved(truth, fixed.grid.renamed("moving"))
    start = IDENTITY
    seen: list[tuple[int, int, float]] = []
    found = register(
        fixed, moving, initial=start, fixed_mask=fixed_mask, schedule=QUICK, progress=lambda *now: seen.append(now)
    )
    assert (found.source, found.target) == ("fixed", "moving")
    assert isinstance(found.parts[0], Flow)
    before, after = error_mm(start, truth, fixed_mask), error_mm(found, truth, fixed_mask)
    assert before > 4
    # Few structures and quick settings: most of what is left slides along edges that look alike.
    assert after < 0.5 * before
    assert certificate(found, fixed.grid).is_diffeomorphic
    assert certificate(found.inverse(), fixed.grid).is_diffeomorphic
    assert {stage for stage, _, _ in seen} == {0, 1}
    assert seen[-1][2] < next(cost for stage, _, cost in seen if stage == 1)
    assert found.repeats == 0


def test_a_brain_alone_is_not_drawn_out_to_the_skull(fixed: Image, fixed_mask: Image, moved: Callable) -> None:
    """A template without a skull ends where a head does not: the border of the one is not that of the other."""
    moving = moved(IDENTITY, fixed.grid.renamed("moving"), "same")
    alone = Image(fixed.grid, torch.where(fixed_mask.mask, fixed.values, 0.0))
    found = register(alone, moving, initial=IDENTITY, fixed_mask=fixed_mask, schedule=QUICK)
    points = fixed.grid.centres(torch.float64)[fixed_mask.mask]
    outwards = points - points.mean(0)
    outwards = outwards / outwards.norm(dim=1, keepdim=True)
    assert abs(float(((found.map(points) - points) * outwards).sum(1).mean())) < 0.3
    assert float((found.map(points) - points).norm(dim=1).quantile(0.95)) < 2.0


def test_copy_shifted_by_part_of_a_voxel_needs_no_flow(fixed: Image, fixed_mask: Image, moved: Callable) -> None:
    """Interpolation blurs such a copy; the flow may follow the blur by a tenth of a voxel (0.4 mm), but not slip one way."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([1.3, -0.9, 1.8], dtype=torch.float64)
    truth = Affine(matrix, "fixed", "moving")
    moving = moved(truth, fixed.grid.renamed("moving"), "same")
    quick = Schedule((Stage(4.0, 8.0, 4),))
    found = register(fixed, moving, initial=truth, fixed_mask=fixed_mask, schedule=quick)
    points = fixed_mask.grid.centres(torch.float64)[fixed_mask.mask]
    residual = found.map(points) - truth.map(points)
    assert float(residual.norm(dim=-1).mean()) < 0.4
    assert float(residual.mean(0).norm()) < 0.15


def test_result_that_would_fold_is_repeated_stiffer(fixed: Image, moved: Callable) -> None:
    """No smoothness asked for: the certificate, not luck, must bring it back, and says how often it had to."""
    coarse = fixed.grid.resampled(8.0)
    head, moving = moved(IDENTITY, coarse, "same"), moved(known_flow(coarse), coarse.renamed("moving"))
    wild = Schedule((Stage(8.0, 8.0, 3),), weight=0.0)
    found = register(head, moving, initial=IDENTITY, schedule=wild)
    assert certificate(found, coarse).is_diffeomorphic
    assert found.repeats >= 1
    with pytest.raises(InputDataError, match="E-REG-FOLDS"):
        register(head, moving, initial=IDENTITY, schedule=replace(wild, repeats=0))


@pytest.mark.parametrize("squarings", [6, 8])
def test_exponential_of_a_linear_velocity(squarings: int) -> None:
    """Scaling and squaring against the matrix exponential, near the middle of the grid."""
    n = 25
    axes = [torch.arange(n, dtype=torch.float64) - n // 2] * 3
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    generator = torch.tensor([[0.1, -0.2, 0.0], [0.2, -0.1, 0.1], [0.0, 0.1, 0.15]], dtype=torch.float64)
    displacement = exponential((points @ generator.mT).movedim(-1, 0), squarings).movedim(0, -1)
    middle = (slice(8, 17),) * 3
    expected = points @ (torch.linalg.matrix_exp(generator) - torch.eye(3).double()).mT
    # Euler's first step leaves an error of order 2^-squarings.
    assert float((displacement - expected)[middle].abs().max()) < 8 / 2**squarings


def test_swapping_the_images_gives_the_inverse(fixed: Image, fixed_mask: Image, moved: Callable) -> None:
    """Composed, both ways come back to 0.1 voxel, with an affine between the images that is no identity."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] += torch.tensor([[0.02, 0.06, 0], [-0.05, -0.03, 0.01], [0.0, 0.02, 0.04]]).double()
    matrix[:3, 3] = torch.tensor([3.0, -5.0, 2.0])
    affine = Affine(matrix, "shaped", "moving")
    flow = replace(known_flow(fixed.grid), target="shaped")
    moving = moved(flow.then(affine), fixed.grid.renamed("moving"))
    start = Affine(matrix, "fixed", "moving")
    forward = register(fixed, moving, initial=start, fixed_mask=fixed_mask, schedule=QUICK)
    back = register(moving, fixed, initial=start.inverse(), moving_mask=fixed_mask, schedule=QUICK)
    points = fixed_mask.grid.centres(torch.float64)[fixed_mask.mask]
    assert float((forward.map(points) - start.map(points)).norm(dim=-1).mean()) > 2
    apart = (back.map(forward.map(points)) - points).norm(dim=-1)
    assert float(apart.quantile(0.99)) < 0.1 * 4.0


@pytest.mark.parametrize(
    ("shift", "passes"),
    [((0.0, 0, 0), True), ((0.0, 0.0, 45.0), False), ((12.0, 0.0, 0.0), False), ((400.0, 0, 0), False)],
)
def test_gate(
    fixed: Image, fixed_mask: Image, moved: Callable, moved_mask: Callable, shift: tuple, passes: bool
) -> None:
    """The truth passes; brains apart, a wrong peak with much overlap, and nothing in view do not, and each says why."""
    truth = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")
    target = fixed.grid.renamed("moving")
    moving, mask = moved(truth, target), moved_mask(truth, target)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor(shift)
    verdict = assess(fixed, moving, Affine(matrix, "fixed", "moving"), fixed_mask, mask)
    assert verdict.passed is passes
    assert verdict.reason
    assert verdict.record()["dice"] is not None
    if passes:
        assert verdict.dice > 0.98
        assert verdict.difference < verdict.difference_disturbed


@pytest.mark.parametrize("wrong", ["shift of 10 mm", "turn of 12°", "back to front"])
def test_gate_refuses_wrong_poses(
    fixed: Image, fixed_mask: Image, moved: Callable, moved_mask: Callable, wrong: str
) -> None:
    identity = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")
    target = fixed.grid.renamed("moving")
    centre = fixed_mask.grid.centres(torch.float64)[fixed_mask.mask].mean(0)
    matrix = torch.eye(4, dtype=torch.float64)
    if wrong == "shift of 10 mm":
        matrix[1, 3] = 10.0
    else:
        angle = torch.tensor(torch.pi if wrong == "back to front" else torch.pi / 15, dtype=torch.float64)
        matrix[:2, :2] = torch.stack(
            [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
        )
        matrix[:3, 3] = centre - matrix[:3, :3] @ centre
    moving, mask = moved(identity, target), moved_mask(identity, target)
    assert not assess(fixed, moving, Affine(matrix, "fixed", "moving"), fixed_mask, mask).passed
