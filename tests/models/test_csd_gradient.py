"""The derivative of the constrained deconvolution with respect to the diffusion signal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tractode.fields import GradientTable, Image, ImageGrid, ShField
from tractode.models.csd import CSD
from tractode.models.deconvolution import TILE, Deconvolution
from tractode.models.response import gaussian_response
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.sdstream import SDStream

B, AXIAL, RADIAL, S0 = 2500.0, 1.7e-3, 0.2e-3, 1.0


def operator(n: int, order: int = 8) -> Deconvolution:
    return Deconvolution(sphere.directions(n).double(), gaussian_response(B, AXIAL, RADIAL, S0).coefficients, order)


def signals(directions: Tensor, n: int) -> Tensor:
    """Two crossing fibres and noise."""
    generator = torch.Generator().manual_seed(5)
    axes = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
    squared = (axes / axes.norm(dim=-1, keepdim=True) @ directions.mT).square()
    each = S0 * (-B * (RADIAL + (AXIAL - RADIAL) * squared)).exp()
    return each.mean(1) + 0.03 * S0 * torch.randn(n, len(directions), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("n_directions", "order"), [(12, 4), (30, 8), (60, 6)])
def test_the_gradient_is_that_of_finite_differences(n_directions: int, order: int) -> None:
    deconvolve = operator(n_directions, order)
    signal = signals(deconvolve.directions, 5).requires_grad_()
    assert bool(deconvolve.active_set(signal.detach()).any())
    assert torch.autograd.gradcheck(deconvolve, (signal,), eps=1e-7, atol=1e-6)


def test_the_solution_is_a_fixed_point_so_its_derivative_is_that_of_the_constrained_problem() -> None:
    """The optimality condition of the whole problem holds at the answer and, to first order, near it."""
    deconvolve = operator(30)
    signal = signals(deconvolve.directions, 20).requires_grad_()
    fod = deconvolve(signal)
    amplitudes = fod @ deconvolve.constraint.mT
    residual = fod @ deconvolve.normal + amplitudes.clamp_max(0) @ deconvolve.constraint - signal @ deconvolve.forward
    assert float(residual.detach().abs().max()) < 1e-9 * float((signal @ deconvolve.forward).detach().abs().max())
    probe = torch.randn(fod.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad((residual * probe).sum(), signal)
    assert float(slope.abs().max()) < 1e-8


def test_the_fit_carries_the_gradient_through_its_tiles() -> None:
    directions = torch.cat([torch.zeros(1, 3), sphere.directions(30)]).double()
    gtab = GradientTable((directions.norm(dim=-1) > 0.5) * B, directions, directions.norm(dim=-1) < 0.5)
    model = CSD(gaussian_response(B, AXIAL, RADIAL, S0))
    few = torch.cat([torch.ones(3, 1, dtype=torch.float64), signals(directions[1:], 3)], dim=1)
    signal = few.repeat(TILE // 3 + 1, 1).float().requires_grad_()
    probe = torch.linspace(-1, 1, 45)
    (grad,) = torch.autograd.grad((model.fit(signal, gtab) * probe).sum(), signal)
    alone = few.clone().requires_grad_()
    (expected,) = torch.autograd.grad((model.fit(alone, gtab) * probe).sum(), alone)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad[-3:].double(), expected.roll(-(len(signal) % 3), 0), rtol=1e-3, atol=1e-4)
    assert float(grad[:, 0].abs().max()) == 0  # the b=0 signal plays no part once the response is known


def test_what_is_kept_for_the_gradient_is_the_active_set() -> None:
    deconvolve = operator(30)
    signal = signals(deconvolve.directions, 64).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        deconvolve(signal)
    assert sum(x.numel() * x.element_size() for x in kept) <= 64 * 300


def test_a_bundles_loss_has_the_slope_of_finite_differences_in_the_signal(oblique_affine: Tensor) -> None:
    """Through deconvolution, interpolation, peaks and steps; every line keeps its number of steps."""
    grid = ImageGrid((6, 5, 5), oblique_affine, "phantom")
    directions = torch.cat([torch.zeros(1, 3), sphere.directions(30)]).double()
    gtab = GradientTable((directions.norm(dim=-1) > 0.5) * B, directions, directions.norm(dim=-1) < 0.5)
    model = CSD(gaussian_response(B, AXIAL, RADIAL, S0))
    p = grid.centres(torch.float64).reshape(-1, 3) - grid.to_world(torch.tensor([2.5, 2, 2], dtype=torch.float64))
    main = torch.stack((torch.ones(len(p)), 0.05 * p[:, 0] + 0.03 * p[:, 2], 0.04 * p[:, 1]), dim=-1)
    degree = sh.degrees(8).double()
    fod = sh.basis(main / main.norm(dim=-1, keepdim=True), 8) * torch.exp(-0.02 * degree * (degree + 1))
    generator = torch.Generator().manual_seed(2)
    signal = model.predict(fod, gtab)
    signal = signal + 0.01 * torch.randn(signal.shape, generator=generator, dtype=torch.float64)
    way = torch.randn(signal.shape, generator=generator, dtype=torch.float64)
    seeds = grid.to_world(torch.tensor([2.5, 2, 2]) + torch.rand(12, 3, generator=generator, dtype=torch.float64) - 0.5)
    start = torch.tensor([[1.0, 0, 0]], dtype=torch.float64).expand(12, 3)
    tracker = SDStream(step_mm=0.4, min_length=0.5, max_length=3.1)
    mask = Image(grid, torch.ones(1, *grid.shape, dtype=torch.bool))

    def lines(values: Tensor) -> tuple[Tensor, Tensor]:
        field = ShField(grid, model.fit(values, gtab).mT.reshape(-1, *grid.shape), 8)
        found = next(tracker.track(field, seeds, mask, directions=start))
        weights = torch.arange(found.points.numel(), dtype=torch.float64).reshape(-1, 3).sin()
        return (found.points * weights).sin().mean(), found.offsets

    signal.requires_grad_()
    loss, offsets = lines(signal)
    (grad,) = torch.autograd.grad(loss, signal)
    size = 1e-7
    with torch.no_grad():
        (ahead, after), (behind, before) = (lines(signal + sign * size * way) for sign in (1, -1))
    assert torch.equal(after, offsets)
    assert torch.equal(before, offsets)
    assert float((grad * way).sum()) == pytest.approx(float(ahead - behind) / (2 * size), rel=1e-5)
    assert bool(torch.isfinite(grad).all())
