"""The signal against closed forms and against direct integration over the sphere."""

from __future__ import annotations

import math

import pytest
import torch

from tractode.fields import GradientTable
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.simulate import signal
from tractode.simulate.signal import TissueModel

MODEL = TissueModel()


def table(bvals: list[float], seed: int = 0) -> GradientTable:
    b = torch.tensor(bvals, dtype=torch.float64)
    g = torch.randn(len(b), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return GradientTable(b, torch.where(b[:, None] > 0, g / g.norm(dim=-1, keepdim=True), 0.0), b == 0)


def fod(axis: torch.Tensor, kappa: float, fraction: float, order: int = 8) -> torch.Tensor:
    factors = signal.watson(torch.tensor([kappa], dtype=torch.float64), order)
    return fraction * factors[:, sh.degrees(order) // 2] * sh.basis(axis[None], order)


def test_isotropic_fibres_have_the_powder_average_of_the_closed_form() -> None:
    b = 2500.0
    signals = signal.predict(
        fod(torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64), 0.0, 1.0),
        torch.tensor([[0.0, 1.0, 0.0]]),
        table([b] * 5),
        MODEL,
    )

    def powder(difference: float, base: float) -> float:
        root = math.sqrt(b * difference)
        return math.exp(-b * base) * math.sqrt(math.pi) / 2 * math.erf(root) / root

    expected = MODEL.restricted_fraction * powder(MODEL.parallel, 0) + (1 - MODEL.restricted_fraction) * powder(
        MODEL.parallel - MODEL.perpendicular, MODEL.perpendicular
    )
    assert torch.allclose(signals, torch.full_like(signals, expected), atol=1e-12)


def test_dispersed_fibres_agree_with_summing_many_fibres() -> None:
    axis = torch.tensor([0.36, -0.48, 0.8], dtype=torch.float64)
    kappa, gtab = 6.0, table([0, 1000, 1000, 1000, 3000, 3000, 3000])
    directions = sphere.directions(4000, hemisphere=False)
    weights = torch.exp(kappa * ((directions @ axis) ** 2 - 1))
    cosine = (gtab.bvecs @ directions.mT) ** 2
    b = gtab.bvals[:, None]
    stick = torch.exp(-b * MODEL.parallel * cosine)
    hindered = torch.exp(-b * (MODEL.perpendicular + (MODEL.parallel - MODEL.perpendicular) * cosine))
    single = MODEL.restricted_fraction * stick + (1 - MODEL.restricted_fraction) * hindered
    expected = (single * weights).sum(-1) / weights.sum()
    got = signal.predict(fod(axis, kappa, 1.0), torch.tensor([[0.0, 1.0, 0.0]]), gtab, MODEL)[0]
    assert (got - expected).abs().max() < 2e-3


def test_grey_matter_and_csf_decay_with_their_diffusivities() -> None:
    gtab = table([0, 1000, 2000])
    nothing = torch.zeros(2, 45, dtype=torch.float64)
    got = signal.predict(nothing, torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), gtab, MODEL)
    adc = -(got[:, 1:] / got[:, :1]).log() / gtab.bvals[1:]
    assert torch.allclose(adc, torch.tensor([[MODEL.grey] * 2, [MODEL.csf] * 2], dtype=torch.float64), rtol=1e-9)
    assert got[0, 0] > MODEL.s0_white
    assert got[1, 0] > got[0, 0]


@pytest.mark.parametrize("value", [1 / 3 + 1e-4, 0.5, 0.8, 0.95])
def test_concentration_undoes_mean_square(value: float) -> None:
    mean_square = torch.tensor([value], dtype=torch.float64)
    assert torch.allclose(signal.watson_mean_square(signal.concentration(mean_square)), mean_square, atol=2e-4)


def test_rician_noise_has_the_moments_of_its_distribution(generator: torch.Generator) -> None:
    n, sigma = 200_000, 2.0
    noise = signal.rician(torch.zeros(n, dtype=torch.float64), sigma, generator)
    assert abs(float(noise.mean()) - sigma * math.sqrt(math.pi / 2)) < 0.01 * sigma
    assert abs(float(noise.square().mean()) - 2 * sigma**2) < 0.03 * sigma**2
    level = torch.full((n,), 6.0, dtype=torch.float64)
    assert abs(float(signal.rician(level, sigma, generator).square().mean()) - 44.0) < 0.3
    assert torch.equal(signal.rician(level, 0.0, generator), level)
