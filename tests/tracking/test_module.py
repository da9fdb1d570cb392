"""Tracking as a layer: a training loop that reaches its target, state, devices, and `torch.compile`."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor, nn

from tractode.errors import ShapeError
from tractode.fields import Image, ImageGrid, ShField
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.module import StreamlineLayer
from tractode.tracking.sdstream import SDStream

DOUBLE = torch.float64


def fibres(directions: Tensor, width: float = 0.03) -> Tensor:
    degree = sh.degrees(8).to(directions)
    unit = directions / directions.norm(dim=-1, keepdim=True)
    return sh.basis(unit, 8) * torch.exp(-width * degree * (degree + 1))


@pytest.fixture
def straight(oblique_affine: Tensor) -> tuple[ShField, Image]:
    grid = ImageGrid((8, 7, 6), oblique_affine, "phantom")
    coeffs = fibres(oblique_affine[:3, 0])[:, None, None, None].expand(-1, *grid.shape).clone()
    return ShField(grid, coeffs, 8), Image(grid, torch.ones(1, *grid.shape, dtype=torch.bool))


def middle(field: ShField, n: int) -> tuple[Tensor, Tensor]:
    """Seeds near the middle, and directions along the fibres."""
    vox = torch.tensor([3.5, 3, 2.5], dtype=DOUBLE) + torch.rand(n, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    axis = field.grid.affine[:3, 0] / field.grid.affine[:3, 0].norm()
    return field.grid.to_world(vox), axis.expand(n, 3)


def tracker() -> SDStream:
    return SDStream(step_mm=0.5, min_length=1.0, max_length=5.1)


def test_a_few_steps_of_adam_bring_a_bundle_to_its_target(straight: tuple[ShField, Image]) -> None:
    field, mask = straight
    seeds, start = middle(field, 6)
    layer = StreamlineLayer(tracker(), mask).double()
    coeffs = nn.Parameter(field.coeffs.clone())
    with torch.no_grad():
        lines = layer(coeffs, seeds, start)
    # A line begins where its first half ended. Its length is given: only what lies across it can be reached.
    wanted = torch.tensor([0.2, -0.3, 0.3], dtype=DOUBLE)
    across = wanted - (wanted @ start[0]) * start[0]
    target = lines.points[lines.offsets[:-1]] + across
    optimiser = torch.optim.Adam([coeffs], lr=0.02)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        moved = layer(coeffs, seeds, start)
        loss = (moved.points[moved.offsets[:-1]] - target).norm(dim=1).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_the_step_can_be_learned_and_is_part_of_the_state(straight: tuple[ShField, Image]) -> None:
    field, mask = straight
    seeds, start = middle(field, 3)
    layer = StreamlineLayer(tracker(), mask, learn_step=True).double()
    # The first half has 13 steps, whatever the step between 0.47 and 0.5 mm; ten of them are to lead 4.8 mm away.
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(15):
        optimiser.zero_grad()
        lines = layer(field, seeds, start)
        at_seed = lines.offsets[:-1] + lines.per_streamline["seed_point"]
        loss = ((lines.points[at_seed - 10] - lines.points[at_seed]).norm(dim=1) - 4.8).square().mean()
        loss.backward()
        optimiser.step()
    assert float(layer.step_mm.detach()) == pytest.approx(0.48, abs=1e-4)
    other = StreamlineLayer(tracker(), Image(mask.grid, ~mask.values), learn_step=True)
    other.load_state_dict(layer.state_dict())
    assert set(layer.state_dict()) == {"mask", "log_step"}
    assert bool(other.mask.all())
    assert float(other.step_mm.detach()) == pytest.approx(float(layer.step_mm.detach()), rel=1e-6)


def test_what_is_given_is_checked(straight: tuple[ShField, Image]) -> None:
    field, mask = straight
    layer = StreamlineLayer(tracker(), mask)
    assert float(layer.step_mm) == 0.5
    assert list(layer.parameters()) == []
    with pytest.raises(ShapeError, match="ShField"):
        layer(field.coeffs[:, 1:], *middle(field, 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_layer_moves_to_a_gpu(straight: tuple[ShField, Image]) -> None:
    field, mask = straight
    seeds, start = middle(field, 4)
    layer = StreamlineLayer(tracker(), mask, learn_step=True).double()
    expected = layer(field.coeffs, seeds, start)
    layer = layer.to("cuda")
    coeffs = field.coeffs.to("cuda").requires_grad_()
    lines = layer(coeffs, seeds.to("cuda"), start.to("cuda"))
    torch.testing.assert_close(lines.points.cpu(), expected.points, rtol=1e-7, atol=1e-7)
    lines.points.square().sum().backward()
    assert bool(torch.isfinite(coeffs.grad).all())
    assert layer.log_step is not None
    assert float(layer.log_step.grad.abs()) > 0


STEP = """
    import math, torch
    from tractode.fields import Image, ImageGrid, ShField
    from tractode.tracking.sampling import ComponentTable
    from tractode.tracking.sdstream import PeakStepper
    from tractode.tracking.stopping import MaskLookup

    grid = ImageGrid((6, 6, 6), torch.diag(torch.tensor([-2.0, 2.3, 2.6, 1.0])), "phantom")
    generator = torch.Generator().manual_seed(0)
    coeffs = 0.1 * torch.randn(15, 6, 6, 6, generator=generator)
    coeffs[0] += 1
    mask = MaskLookup.of(Image(grid, torch.ones(1, 6, 6, 6, dtype=torch.bool)), coeffs.device)
    stepper = PeakStepper(ComponentTable.of(ShField(grid, coeffs, 4)), mask, 0.2, math.cos(1.0), 0.05)
    seeds = grid.to_world(1 + 3 * torch.rand(64, 3, generator=generator)).float().mT.contiguous()
    directions = torch.nn.functional.normalize(torch.randn(3, 64, generator=generator), dim=0)
    number, taken = torch.arange(64), torch.zeros(64, dtype=torch.long)
    state, _ = stepper.start(seeds, directions, number)
    compiled = torch.compile(stepper.advance, fullgraph=True, dynamic=False, backend=BACKEND)
    for one, other in zip(compiled(state, number, taken), stepper.advance(state, number, taken), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
"""
LAYER = """
    import torch
    from torch import nn
    from tractode.fields import Image, ImageGrid
    from tractode.tracking.module import StreamlineLayer
    from tractode.tracking.sdstream import SDStream

    grid = ImageGrid((6, 6, 6), torch.diag(torch.tensor([-2.0, 2.3, 2.6, 1.0])), "phantom")
    mask = Image(grid, torch.ones(1, 6, 6, 6, dtype=torch.bool))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(45, 1, 1, 1, dtype=torch.float64))
            tracker = SDStream(step_mm=0.4, min_length=0.5, max_length=2.1, cutoff=0.01, compiled=False)
            self.lines = StreamlineLayer(tracker, mask)

        def forward(self, coeffs, seeds, start):
            return self.lines(coeffs * self.scale, seeds, start).points.square().mean()

    generator = torch.Generator().manual_seed(0)
    coeffs = 0.1 * torch.randn(45, 6, 6, 6, dtype=torch.float64, generator=generator)
    coeffs[0] += 1
    seeds = grid.to_world(2 + torch.rand(3, 3, dtype=torch.float64, generator=generator))
    start = torch.nn.functional.normalize(torch.randn(3, 3, dtype=torch.float64, generator=generator), dim=1)
    net = Net()
    net(coeffs, seeds, start).backward()
    expected, net.scale.grad = net.scale.grad, None
    torch.compile(net, backend=BACKEND)(coeffs, seeds, start).backward()
    torch.testing.assert_close(net.scale.grad, expected)
    assert float(expected.abs().max()) > 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [STEP, LAYER], ids=["step", "layer"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_torch_compile(script: str, backend: str) -> None:
    """In a process of its own: the checks of array shapes that tests turn on are not meant to be compiled."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    code = f"BACKEND = {backend!r}\n" + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_learned_step_is_positive_whatever_its_parameter(straight: tuple[ShField, Image]) -> None:
    _, mask = straight
    layer = StreamlineLayer(tracker(), mask, learn_step=True)
    assert layer.log_step is not None
    assert float(layer.log_step.detach()) == pytest.approx(math.log(0.5))
    with torch.no_grad():
        layer.log_step.sub_(10)
    assert float(layer.step_mm.detach()) > 0
