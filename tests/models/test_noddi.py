"""NODDI against integrals over the sphere by brute force, closed forms and known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tractode.contracts import table_of_shells
from tractode.models.noddi import NODDI, _axis_and_kappa, _Table
from tractode.ops import sphere, watson
from tractode.ops.levenberg_marquardt import value_and_jacobian

_AXIS = torch.tensor([0.48, -0.6, 0.64], dtype=torch.float64)


def _params(density: float, kappa: float, water: float) -> torch.Tensor:
    spread = 2 / math.pi * math.atan(kappa)
    return torch.cat([torch.tensor([math.log(200.0), density, water]).double(), spread * _AXIS])[None]


@pytest.mark.parametrize("kappa", [0.3, 2.0, 12.0, 60.0])
def test_moments_of_watsons_distribution_have_the_closed_form(kappa: float) -> None:
    from scipy.special import dawsn

    square = float(watson.mean_square(watson.moments(torch.tensor(kappa).double(), 4)))
    assert square == pytest.approx(1 / (2 * dawsn(math.sqrt(kappa)) * math.sqrt(kappa)) - 1 / (2 * kappa), rel=1e-8)


def test_slopes_of_the_moments_are_right() -> None:
    kappa = torch.tensor([0.0, 0.4, 5.0, 80.0], dtype=torch.float64)
    moments, slopes = watson.moments_and_slopes(kappa, 8)
    torch.testing.assert_close(moments, watson.moments(kappa, 8))
    by_forward = torch.func.jvp(lambda k: watson.moments(k, 8), (kappa,), (torch.ones_like(kappa),))[1]
    torch.testing.assert_close(slopes, by_forward)


@pytest.mark.parametrize("kappa", [0.5, 4.0, 16.0])
def test_signal_is_the_integral_over_the_sphere(kappa: float) -> None:
    """Zhang 2012, eqs. 1–8: sticks averaged over Watson's distribution, and the tensor averaged over it outside."""
    gtab, density, water = NODDI.example_table(20), 0.6, 0.15
    axes = sphere.directions(40000)
    weight = (kappa * ((axes @ _AXIS) ** 2 - 1)).exp()
    weight = weight / weight.sum()
    b, d = gtab.bvals, 1.7e-3
    inside = (-b[:, None] * d * (gtab.bvecs @ axes.mT) ** 2).exp() @ weight
    spread = (weight[:, None, None] * axes[:, :, None] * axes[:, None]).sum(0)
    tensor = d * (1 - density) * torch.eye(3).double() + d * density * spread
    outside = (-b * torch.einsum("ni,ij,nj->n", gtab.bvecs, tensor, gtab.bvecs)).exp()
    exact = 200 * ((1 - water) * (density * inside + (1 - density) * outside) + water * (-b * 3e-3).exp())
    torch.testing.assert_close(NODDI().predict(_params(density, kappa, water), gtab)[0], exact, rtol=1e-4, atol=0.0)


def test_without_and_with_complete_order_it_becomes_a_mean_and_a_stick() -> None:
    gtab = table_of_shells((2000.0, 3000.0), 12)
    b, d = gtab.bvals, 1.7e-3
    round_ = NODDI().predict(torch.tensor([[0.0, 1.0, 0, 0, 0, 0]]).double(), gtab)[0]
    from scipy.special import erf

    root = np.sqrt(np.maximum((b * d).numpy(), 1e-12))
    mean = torch.from_numpy(np.sqrt(np.pi) / 2 * erf(root) / root)
    torch.testing.assert_close(round_, mean, rtol=1e-6, atol=0.0)
    sharp = NODDI().predict(torch.cat([torch.tensor([0.0, 1.0, 0]).double(), _AXIS])[None], gtab)[0]
    stick = (-b * d * (gtab.bvecs @ _AXIS) ** 2).exp()
    torch.testing.assert_close(sharp, stick, rtol=0, atol=2e-3)


def test_the_derivative_by_hand_is_that_of_the_signal() -> None:
    model = NODDI()
    gtab = NODDI.example_table(12)
    table = _Table.of(gtab, model)
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[:, 3:] *= 3

    def mixture(x: torch.Tensor) -> torch.Tensor:
        axis, kappa = _axis_and_kappa(x[:, 3:])
        cosines = (axis @ gtab.bvecs.mT).square()
        return x[:, :1].exp() * model._mixture(x[:, 1:2].sin() ** 2, x[:, 2:3].sin() ** 2, kappa, cosines, table)

    for ours, theirs in zip(model._linearised(x, gtab, table), value_and_jacobian(mixture, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_noisy_signals_give_the_truth_back() -> None:
    model, gtab = NODDI(), NODDI.example_table(45)
    truth = model.example(seed=9, n=128)
    clean = model.predict(truth, gtab)
    generator = torch.Generator().manual_seed(9)
    noise = clean[:, :1] / 50 * torch.randn(2, *clean.shape, generator=generator, dtype=torch.float64)
    found, true = model.to_maps(model.fit(torch.hypot(clean + noise[0], noise[1]), gtab)), model.to_maps(truth)
    for name, bias, spread in (("icvf", 0.02, 0.05), ("isovf", 0.02, 0.05), ("odi", 0.02, 0.05)):
        error = found[name] - true[name]
        assert abs(float(error.mean())) < bias, name
        assert float(error.std()) < spread, name
    assert float(torch.rad2deg(sphere.angle(found["direction"], true["direction"])).median()) < 3


def test_extremes_are_found_at_their_bounds() -> None:
    gtab = NODDI.example_table(30)
    water = 100 * (-gtab.bvals * 3e-3).exp()
    coherent = NODDI().predict(_params(0.7, 30.0, 0.0), gtab)[0]
    maps = NODDI().to_maps(NODDI().fit(torch.stack([water, coherent]), gtab))
    assert float(maps["isovf"][0]) > 0.999
    assert float(maps["isovf"][1]) < 1e-3
    assert float(maps["icvf"][1]) == pytest.approx(0.7, abs=2e-3)
    assert float(maps["odi"][1]) == pytest.approx(2 / math.pi * math.atan(1 / 30.0), abs=2e-3)


def test_one_shell_is_refused_with_the_reason() -> None:
    reason = NODDI.why_not(table_of_shells((2000.0,), 60))
    assert reason is not None
    assert "multi-shell" in reason
