"""Ball and sticks against DIPY's simulation, closed forms and known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tractode.contracts import table_of_shells
from tractode.models.ball_and_sticks import BallAndSticks, _searched, _signal
from tractode.ops import sphere
from tractode.ops.levenberg_marquardt import levenberg_marquardt

_AXES = torch.tensor([[0.48, -0.6, 0.64], [0.8, 0.6, 0.0], [-0.36, 0.48, 0.8]], dtype=torch.float64)


def _params(fractions: list[float], s0: float = 300.0, d: float = 1.5, r: float = 0.0) -> torch.Tensor:
    sticks = torch.zeros(3, 3).double()
    sticks[: len(fractions)] = torch.tensor(fractions).double()[:, None] * _AXES[: len(fractions)]
    return torch.cat([torch.tensor([math.log(s0), d, r]).double(), sticks.ravel()])[None]


@pytest.mark.reference
@pytest.mark.parametrize("fractions", [[0.6], [0.35, 0.25], [0.3, 0.25, 0.2]])
def test_predicted_signals_equal_those_that_dipy_simulates(fractions: list[float]) -> None:
    from dipy.core.gradients import gradient_table
    from dipy.sims.voxel import sticks_and_ball

    gtab = table_of_shells((1000.0, 2500.0), 20)
    table = gradient_table(gtab.bvals.numpy(), bvecs=gtab.bvecs.numpy())
    theirs, _ = sticks_and_ball(
        table,
        d=1.5e-3,
        S0=300.0,
        angles=[tuple(axis) for axis in _AXES[: len(fractions)].tolist()],
        fractions=[100 * f for f in fractions],
        snr=None,
    )
    np.testing.assert_allclose(BallAndSticks().predict(_params(fractions), gtab)[0].numpy(), theirs, rtol=1e-6)


def test_a_stick_averaged_over_the_sphere_has_the_closed_form() -> None:
    gtab = table_of_shells((2000.0,), 300)
    signal = BallAndSticks().predict(_params([1.0], s0=1.0), gtab)[0]
    bd = 2000.0 * 1.5e-3
    assert float(signal[~gtab.is_b0].mean()) == pytest.approx(
        math.sqrt(math.pi / (4 * bd)) * math.erf(math.sqrt(bd)), rel=2e-4
    )


@pytest.mark.parametrize("fractions", [[], [0.6], [0.35, 0.25]])
def test_no_more_sticks_are_found_than_there_are(fractions: list[float]) -> None:
    gtab = table_of_shells((1000.0, 2500.0), 40)
    truth = _params(fractions)
    maps = BallAndSticks().to_maps(BallAndSticks().fit(BallAndSticks().predict(truth, gtab), gtab))
    found = torch.cat([maps[f"stick{k}vf"] for k in (1, 2, 3)], dim=-1)[0]
    torch.testing.assert_close(
        found, torch.tensor(fractions + [0.0] * (3 - len(fractions))).double(), rtol=0, atol=1e-6
    )
    assert float(maps["d"]) == pytest.approx(1.5e-3, rel=1e-6)
    assert float(maps["ballvf"]) == pytest.approx(1 - sum(fractions), abs=1e-6)
    for k in range(len(fractions)):
        assert float(torch.rad2deg(sphere.angle(maps[f"direction{k + 1}"][0], _AXES[k]))) < 1e-3


def test_noise_brings_few_false_sticks_and_loses_few() -> None:
    gtab = table_of_shells((1000.0, 2500.0), 40)
    truth = torch.cat([_params([0.6]), _params([0.35, 0.3])]).repeat_interleave(60, 0)
    clean = BallAndSticks().predict(truth, gtab)
    generator = torch.Generator().manual_seed(7)
    noisy = clean + 10 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    sticks = BallAndSticks().fit(noisy, gtab)[:, 3:].reshape(120, 3, 3)
    n_found = (sticks.norm(dim=-1) > 0).sum(-1)
    assert float((n_found[:60] == 1).double().mean()) > 0.9
    assert float((n_found[60:] == 2).double().mean()) > 0.9
    axis = sticks[:60, 0] / sticks[:60, 0].norm(dim=-1, keepdim=True)
    assert float(torch.rad2deg(sphere.angle(axis, _AXES[:1].expand(60, 3))).mean()) < 3


@pytest.mark.parametrize("n_unknowns", [8, 9])
def test_the_compiled_search_ends_where_the_other_does(n_unknowns: int) -> None:
    gtab = table_of_shells((1000.0, 2500.0), 20)
    b = gtab.bvals / 1000
    generator = torch.Generator().manual_seed(n_unknowns)
    middle = torch.cat(
        [torch.tensor([0.3, 0.6]).double(), 0.5 * _AXES[0], 0.4 * _AXES[1], torch.tensor([0.5]).double()]
    )
    truth = middle[:n_unknowns] + 0.05 * torch.randn(20, n_unknowns, generator=generator, dtype=torch.float64)
    clean = _signal(truth, b, gtab.bvecs)
    data = clean + 0.01 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    start = truth + 0.02 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    ours = _searched(data, start, b, gtab.bvecs)
    theirs = levenberg_marquardt(lambda x: _signal(x, b, gtab.bvecs), data, start, n_iterations=25)

    def cost(x: torch.Tensor) -> torch.Tensor:
        return (data - _signal(x, b, gtab.bvecs)).square().sum(-1)

    torch.testing.assert_close(cost(ours), cost(theirs), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(_signal(ours, b, gtab.bvecs), _signal(theirs, b, gtab.bvecs), rtol=0, atol=1e-3)


def test_spread_diffusivities_are_the_mean_over_a_gamma_distribution() -> None:
    from scipy.stats import gamma

    gtab = table_of_shells((1000.0, 3000.0), 20)
    d, r = 1.5, 0.4
    quantiles = gamma.ppf((np.arange(200000) + 0.5) / 200000, d / r, scale=r)
    ball = np.exp(-np.outer(gtab.bvals.numpy() / 1000, quantiles)).mean(-1)
    ours = BallAndSticks().predict(_params([], s0=1.0, d=d, r=r), gtab)[0].numpy()
    np.testing.assert_allclose(ours, ball, rtol=1e-5)
    fitted = BallAndSticks().to_maps(BallAndSticks().fit(BallAndSticks().predict(_params([0.5], d=d, r=r), gtab), gtab))
    assert float(fitted["d"]) == pytest.approx(d * 1e-3, rel=1e-5)
    assert float(fitted["dspread"]) == pytest.approx(math.sqrt(r / d), rel=1e-5)


def test_fewer_sticks_may_be_asked_for() -> None:
    gtab = table_of_shells((1000.0, 2500.0), 40)
    model = BallAndSticks(n_sticks=1)
    params = model.fit(BallAndSticks().predict(_params([0.35, 0.25]), gtab), gtab)
    assert params.shape[1] == 6
    assert float(model.to_maps(params)["stick2vf"]) == 0
