"""Orientation-field refinement: its parts against direct sums and finite differences, and what it does to noisy data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField
from tractode.models.csd import CSD
from tractode.models.response import gaussian_response
from tractode.ops import fibre_continuity, smooth, sphere
from tractode.ops import spherical_harmonics as sh
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import PhantomSettings, phantom
from tractode.tracking.refinement import RefinementSettings, StreamlineCost, noise_level, refine
from tractode.tracking.sdstream import SDStream
from tractode.tracking.survival import SoftTermination

DOUBLE = torch.float64


def test_a_field_that_is_the_same_everywhere_is_continuous(oblique_affine: Tensor) -> None:
    grid = ImageGrid((5, 4, 6), oblique_affine, "w")
    axes = sphere.directions(12, hemisphere=True).double()
    taps = fibre_continuity.taps_of((axes * 2.0) @ grid.inverse_affine[:3, :3].mT)
    amplitudes = torch.arange(12, dtype=DOUBLE)[:, None, None, None].expand(-1, 5, 4, 6).contiguous()
    mask = torch.ones(5, 4, 6, dtype=torch.bool)
    assert float(fibre_continuity.discontinuity(amplitudes, taps, fibre_continuity.pairs_of(mask, taps))) < 1e-20


def test_discontinuity_is_the_squared_slope_along_each_direction(oblique_affine: Tensor) -> None:
    """In a field whose amplitudes rise linearly through the world, a step of 2 mm along u changes them by 2 g·u."""
    grid = ImageGrid((6, 5, 7), oblique_affine, "w")
    axes = sphere.directions(12, hemisphere=True).double()
    slope = torch.tensor([0.3, -0.2, 0.5], dtype=DOUBLE)
    values = (grid.centres(DOUBLE) @ slope).expand(12, -1, -1, -1).contiguous()
    taps = fibre_continuity.taps_of((axes * 2.0) @ grid.inverse_affine[:3, :3].mT)
    mask = torch.ones(6, 5, 7, dtype=torch.bool)
    for axis, steps in zip(axes, taps, strict=True):
        moved = fibre_continuity.shifted(values[0], steps)[2:-2, 2:-2, 2:-2] - values[0, 2:-2, 2:-2, 2:-2]
        torch.testing.assert_close(moved, torch.full_like(moved, 2 * float(slope @ axis)))
    assert float(fibre_continuity.discontinuity(values, taps, fibre_continuity.pairs_of(mask, taps))) > 0


def test_discontinuity_has_the_gradient_of_finite_differences(
    oblique_affine: Tensor, generator: torch.Generator
) -> None:
    grid = ImageGrid((4, 3, 4), oblique_affine, "w")
    axes = sphere.directions(6, hemisphere=True).double()
    taps = fibre_continuity.taps_of((axes * 2.0) @ grid.inverse_affine[:3, :3].mT)
    mask = torch.rand(4, 3, 4, generator=generator) > 0.2
    pairs = fibre_continuity.pairs_of(mask, taps)
    values = torch.rand(6, 4, 3, 4, generator=generator, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: fibre_continuity.discontinuity(v, taps, pairs), (values,))
    outside = values.detach().clone()
    outside[:, ~mask] += 1
    cost = [float(fibre_continuity.discontinuity(v, taps, pairs)) for v in (values.detach(), outside)]
    assert cost[0] == pytest.approx(cost[1])


def test_steps_of_more_than_a_voxel_are_refused() -> None:
    with pytest.raises(ValueError, match="one voxel"):
        fibre_continuity.taps_of(torch.tensor([[1.5, 0.0, 0.0]]))


def test_noise_is_found_whatever_the_anatomy(generator: torch.Generator) -> None:
    gtab = multi_shell(((2500.0, 45),), 3)
    model = CSD(gaussian_response(2500.0, 1.9e-3, 0.3e-3, 100.0), order=4)
    clean = model.predict(model.example(0, 400)[:, :15], gtab)
    noisy = clean + 7.0 * torch.randn(clean.shape, generator=generator, dtype=DOUBLE)
    assert noise_level(noisy, gtab) == pytest.approx(7.0, rel=0.1)


def scene(snr: float) -> tuple:
    gtab = multi_shell(((2500.0, 45),), 2)
    truth = phantom(gtab, PhantomSettings(regions=("crossing",), size=15, voxel_mm=4.0, snr=snr))
    mask = smooth.dilate(truth.white_matter.mask, (1, 1, 1)) & truth.dwi.mask
    model = CSD(gaussian_response(2500.0, 1.9e-3, 0.3e-3, 1000.0))
    signal = truth.dwi.signal[:, mask].mT
    return truth, mask, model, signal, model.fit(signal, gtab), gtab


def peak_error(truth: Tensor, given: Tensor) -> float:
    """The mean angle (degrees) between the largest lobes of two sets of coefficients."""
    axes = sphere.directions(724, hemisphere=True)
    basis = sh.basis(axes, 8).float()
    one, two = (axes[(c.float() @ basis.mT).argmax(-1)] for c in (truth, given))
    return math.degrees(float(sphere.angle(one, two).mean()))


def test_refinement_brings_noisy_orientations_nearer_to_the_truth_and_still_explains_the_signal() -> None:
    truth, mask, model, signal, params, gtab = scene(snr=10.0)
    found = refine(model, params, signal, gtab, truth.dwi.grid, mask, RefinementSettings(iterations=20))
    assert found.noise == pytest.approx(0.1, rel=0.3)
    single = (truth.fibres.single & truth.white_matter.mask)[mask]
    wanted = truth.fibres.fod.coeffs[:, mask].mT[single]
    assert peak_error(wanted, found.params[single]) < 0.8 * peak_error(wanted, params[single])
    assert found.after["continuity"] < 0.7 * found.before["continuity"]
    # It explains the signal nearly as well as the fit without the prior.
    assert found.after["signal"] < 1.5 * found.before["signal"]
    assert sum(found.after.values()) < sum(found.before.values())


def test_without_the_prior_the_signal_is_explained_no_worse() -> None:
    truth, mask, model, signal, params, gtab = scene(snr=20.0)
    found = refine(
        model,
        params,
        signal,
        gtab,
        truth.dwi.grid,
        mask,
        RefinementSettings(continuity=0.0, negative=0.0, iterations=5),
    )
    assert found.after["signal"] <= found.before["signal"]
    assert found.after["continuity"] == 0


def test_the_cost_of_streamlines_has_the_gradient_of_finite_differences(oblique_affine: Tensor) -> None:
    grid = ImageGrid((7, 6, 6), oblique_affine, "w")
    p = grid.centres(DOUBLE) - grid.to_world(torch.tensor([3.0, 3, 3], dtype=DOUBLE))
    main = torch.stack((torch.ones_like(p[..., 0]), 0.05 * p[..., 0], 0.04 * p[..., 1]), dim=-1)
    degree = sh.degrees(8).double()
    lobes = sh.basis(main / main.norm(dim=-1, keepdim=True), 8) * torch.exp(-0.02 * degree * (degree + 1))
    coeffs = lobes.permute(3, 0, 1, 2).contiguous().requires_grad_()
    everywhere = Image(grid, torch.ones(1, 7, 6, 6, dtype=torch.bool))
    white = Image(grid, torch.rand(1, 7, 6, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))
    seeds = grid.to_world(torch.tensor([[3.1, 3.2, 2.9], [2.6, 3.4, 3.1]], dtype=DOUBLE))
    cost = StreamlineCost(
        SDStream(step_mm=0.5, min_length=0.5, max_length=4.0, compiled=False), seeds,
        torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=DOUBLE), everywhere, white,
        SoftTermination(0.6, 0.1), turning=5.0, ending=2.0,
    )  # fmt: skip
    assert torch.autograd.gradcheck(
        lambda c: cost(ShField(grid, c, 8)), (coeffs,), fast_mode=True, atol=1e-5, rtol=1e-4
    )
    assert float(cost(ShField(grid, coeffs.detach(), 8))) > 0.01
