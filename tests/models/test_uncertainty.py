"""Uncertainty: exact for a linear model, true to repeated measurements for others, and the same for every voxel order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tractode.contracts import SignalModel, table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.models import MODELS
from tractode.models.bootstrap import bootstrap
from tractode.models.csd import CSD
from tractode.models.dti import DTI
from tractode.models.laplace import laplace
from tractode.models.noise import noise_of
from tractode.models.readouts import PEAK, read
from tractode.models.uncertainty import calibrated, errors, intervals, specs, standard_deviations, why_not
from tractode.ops import sphere
from tractode.simulate.signal import rician

REAL_TABLE = table_of_shells((1000.0,), 40)


def _tensors(n: int) -> Tensor:
    """Parameters of white matter: FA about 0.7, S0 = 1."""
    generator = torch.Generator().manual_seed(3)
    axis = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    outer = axis[:, :, None] * axis[:, None]
    matrix = 0.4e-3 * torch.eye(3, dtype=torch.float64) + 1.2e-3 * outer
    rows, columns = torch.triu_indices(3, 3)
    return torch.cat([matrix[:, rows, columns], torch.zeros(n, 1, dtype=torch.float64)], -1)


def _measured(n: int, snr: float, repeats: int = 1) -> tuple[Tensor, Tensor]:
    clean = DTI().predict(_tensors(n), REAL_TABLE)
    return clean, rician(clean.repeat(repeats, 1), 1 / snr, torch.Generator().manual_seed(1))


def test_laplace_of_a_linear_model_is_the_textbooks_covariance() -> None:
    """Ordinary least squares of logs: σ² (XᵀX)⁻¹ Xᵀ diag(1/S²) X (XᵀX)⁻¹."""
    model, measured = DTI("ols"), _measured(3, 50)[1]
    params = model.fit(measured, REAL_TABLE)
    found = laplace(model, measured, params, REAL_TABLE)
    design = torch.stack([
        model.predict(unit, REAL_TABLE).log().ravel()
        for unit in torch.eye(7, dtype=torch.float64)[:, None] * torch.tensor([1e-3] * 6 + [1.0], dtype=torch.float64)
    ], -1)  # fmt: skip
    inverse = torch.linalg.pinv(design) * torch.tensor([1e-3] * 6 + [1.0], dtype=torch.float64)[:, None]
    spread = found.noise.spread / measured
    expected = (inverse * spread[:, None].square()) @ inverse.mT
    torch.testing.assert_close(found.matrix, expected, rtol=1e-6, atol=1e-18)
    torch.testing.assert_close(found.deviations, expected.diagonal(dim1=-2, dim2=-1).sqrt(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("method", ["laplace", "bootstrap"])
def test_stated_deviations_are_those_of_repeated_measurements(method: str) -> None:
    model, repeats = DTI(), 60
    _, measured = _measured(8, 20, repeats)
    found = errors(model, measured, REAL_TABLE, method, 40)
    for name in ("fa", "md", "ad", "rd", "s0"):
        true = found.values[name].reshape(repeats, 8).var(0).mean().sqrt()
        stated = found.deviations[name].square().mean().sqrt()
        assert float(stated / true) == pytest.approx(1.0, abs=0.12), name
    truth = read(model, _tensors(8)).axes["direction"].repeat(repeats, 1)
    angle = sphere.angle(found.axes["direction"], truth)
    assert float((angle <= found.cones["direction"][:, 0]).double().mean()) == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("method", ["laplace", "bootstrap"])
def test_intervals_hold_the_truth_as_often_as_they_say(method: str) -> None:
    model = DTI()
    _, measured = _measured(150, 20)
    found = intervals(model, measured, REAL_TABLE, method, n=40)
    truth = read(model, _tensors(150)).scalars
    for name in ("fa", "md", "ad", "rd"):
        low, high = found[name]
        held = (truth[name] >= low) & (truth[name] <= high)
        assert 0.82 < float(held.double().mean()) < 0.98, name


def test_the_noise_level_is_that_of_the_channels_also_near_the_floor() -> None:
    model, table = DTI(), table_of_shells((2500.0,), 60)
    clean = model.predict(_tensors(200), table)
    measured = rician(clean, 0.2, torch.Generator().manual_seed(2))
    noise = noise_of(model, measured, table, model.fit(measured, table))
    assert float(noise.sigma.square().mean().sqrt()) == pytest.approx(0.2, rel=0.03)
    assert float((clean.mean()) / 0.2) < 2  # half of the volumes are at the floor


def test_bootstrap_scatters_about_the_fit_and_less_with_less_noise() -> None:
    model = DTI()
    spreads = []
    for snr in (20, 40):
        _, measured = _measured(20, snr)
        found = bootstrap(model, measured, REAL_TABLE, 40)
        assert found.samples.shape == (40, 20, 7)
        off = (found.samples.mean(0) - found.params).abs() / found.samples.std(0)
        assert float(off.median()) < 0.4
        spreads.append(float(found.samples[..., 0].std(0).mean()))
    assert spreads[0] / spreads[1] == pytest.approx(2.0, rel=0.25)


@pytest.mark.parametrize("method", ["laplace", "bootstrap"])
def test_neither_order_nor_company_of_voxels_matters(method: str) -> None:
    _, measured = _measured(12, 20)
    whole = standard_deviations(DTI(), measured, REAL_TABLE, method, 10)
    back = standard_deviations(DTI(), measured.flip(0)[:5], REAL_TABLE, method, 10)
    for name, values in whole.items():
        torch.testing.assert_close(back[name], values.flip(0)[:5], rtol=1e-7, atol=1e-15)


def test_wild_and_residual_agree() -> None:
    _, measured = _measured(60, 20)
    residual, wild = (
        standard_deviations(DTI(), measured, REAL_TABLE, "bootstrap", 40, kind=kind)["fa"].mean()
        for kind in ("residual", "wild")
    )
    assert float(wild / residual) == pytest.approx(1.0, abs=0.1)


def test_a_known_noise_level_is_used() -> None:
    _, measured = _measured(4, 20)
    one, two = (
        standard_deviations(DTI(), measured, REAL_TABLE, sigma=torch.full((4, 1), s, dtype=torch.float64))["md"]
        for s in (0.06, 0.12)
    )
    assert float((two / one).mean()) == pytest.approx(2.0, rel=0.05)


def test_peaks_of_crossing_fibres_have_cones_in_degrees_not_radians_of_a_circle() -> None:
    model, table = CSD(), table_of_shells((3000.0,), 60)
    axis = torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64)
    shell = (-3.0 * (0.3 + 1.4 * (table.bvecs @ axis.mT).square()))[:, 0]
    clean = torch.where(table.is_b0, 1.0, shell.exp())[None].repeat(20, 1)
    measured = rician(clean, 0.02, torch.Generator().manual_seed(0))
    for method in ("laplace", "bootstrap"):
        found = errors(model, measured, table, method, 20)
        angle = sphere.angle(found.axes[PEAK], axis.expand(20, 3))
        assert float(found.cones[PEAK].max()) < 0.2
        assert float((angle <= found.cones[PEAK][:, 0]).double().mean()) >= 0.7


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_has_finite_errors_of_every_readout(name: str) -> None:
    model: SignalModel = MODELS[name]()
    table = model.example_table(45)
    clean = model.predict(model.example(2, 3), table)
    scale = clean[:, table.is_b0].mean() / 50
    measured = torch.cat([rician(clean, float(scale), torch.Generator().manual_seed(0)), torch.zeros_like(clean[:1])])
    assert why_not(type(model), table) is None
    for method in ("laplace", "bootstrap"):
        found = standard_deviations(model, measured, table, method, 3)
        assert list(found) == [spec.param for spec in specs(type(model))]
        for param, values in found.items():
            assert values.shape == (4, 1), param
            assert bool(torch.isfinite(values).all()), (method, param)
            assert bool((values >= 0).all())
            # A model that chooses among forms may stand still under small changes; none does in every readout.
    assert any(bool((values[:3] > 0).all()) for values in found.values())


def test_nothing_left_over_is_refused_with_the_reason() -> None:
    full = table_of_shells((1000.0,), 20)
    few = full[torch.tensor([0, *range(1, 7)])]
    directions = sphere.directions(6)
    few = GradientTable(few.bvals, torch.cat([directions.new_zeros(1, 3), directions]), few.is_b0)
    assert "more volumes than unknowns" in (why_not(DTI, few) or "")
    signal = DTI().predict(_tensors(1), few)
    with pytest.raises(InputDataError, match="E-UNCERTAINTY-TABLE"):
        standard_deviations(DTI(), signal, few)


def test_dtype_follows_and_inputs_stay() -> None:
    _, measured = _measured(3, 20)
    signal = measured.float()
    before = signal.clone()
    found = standard_deviations(DTI(), signal, REAL_TABLE)
    assert all(values.dtype == torch.float32 for values in found.values())
    assert torch.equal(signal, before)
    assert not signal.requires_grad


def test_one_repetition_has_no_spread() -> None:
    _, measured = _measured(1, 20)
    with pytest.raises(ValueError, match="at least 2"):
        standard_deviations(DTI(), measured, REAL_TABLE, "bootstrap", 1)


def test_a_calibration_makes_biased_maps_hold_the_truth() -> None:
    """FA of nearly isotropic voxels at SNR 10 is noise: its plain deviation holds the truth nowhere."""
    model = DTI()
    params = _tensors(150)
    params[:, :6] = torch.tensor([0.8e-3, 0, 0, 0.75e-3, 0, 0.7e-3]).double()
    measured = rician(model.predict(params, REAL_TABLE), 0.1, torch.Generator().manual_seed(4))
    truth = read(model, params).scalars["fa"]
    held = []
    for rule in (None, calibrated(model, REAL_TABLE)):
        found = errors(model, measured, REAL_TABLE, calibration=rule)
        held.append(float(((found.values["fa"] - truth).abs() <= 1.645 * found.deviations["fa"]).double().mean()))
    assert held[0] < 0.7
    assert held[1] > 0.8


def test_calibrated_errors_scale_with_the_signal_and_not_with_company() -> None:
    _, measured = _measured(5, 20)
    rule = calibrated(DTI(), REAL_TABLE)
    one = standard_deviations(DTI(), measured, REAL_TABLE, calibration=rule)
    loud = standard_deviations(DTI(), 300 * measured[1:3], REAL_TABLE, calibration=rule)
    for name, values in one.items():
        factor = 300 if name == "s0" else 1
        torch.testing.assert_close(loud[name], factor * values[1:3], rtol=1e-5, atol=1e-12)


def test_without_b0_errors_are_those_of_the_brightness_that_the_lowest_shell_tells() -> None:
    model, with_b0 = DTI(), table_of_shells((300.0, 1000.0), 30)
    truth = model.example(4, 24)
    stated = {}
    for name, gtab in (("with", with_b0), ("without", with_b0[~with_b0.is_b0])):
        clean = model.predict(truth, gtab)
        unit = clean.amax(-1, keepdim=True)
        signal = unit * rician(clean / unit, 0.04, torch.Generator().manual_seed(5))
        rule = calibrated(model, gtab, "bootstrap", 10)
        found = errors(model, signal, gtab, "bootstrap", 10, torch.Generator().manual_seed(6), calibration=rule)
        stated[name] = found.deviations
    for name in ("fa", "md"):
        assert bool((stated["without"][name] > 0).all())
        assert float((stated["without"][name] / stated["with"][name]).median()) == pytest.approx(1.4, abs=0.6)


def test_a_failed_derivative_is_bootstrapped_and_said() -> None:
    class Broken(DTI):
        def fit(self, signal: Tensor, gtab: GradientTable) -> Tensor:
            params = super().fit(signal, gtab)
            return torch.cat([params[:1], params[1:2] + 0 * (0 * signal[1:2].sum()).sqrt(), params[2:]])

    _, measured = _measured(3, 20)
    found = errors(Broken(), measured, REAL_TABLE)
    assert found.by_bootstrap.tolist() == [False, True, False]
    expected = errors(DTI(), measured, REAL_TABLE, "bootstrap").deviations["fa"]
    torch.testing.assert_close(found.deviations["fa"][1], expected[1])


def test_a_known_level_gives_way_to_residuals_that_are_too_large_for_it() -> None:
    _, measured = _measured(3, 20)
    level = torch.tensor([[0.05], [0.01], [0.0]], dtype=torch.float64)
    found = noise_of(DTI(), measured, REAL_TABLE, DTI().fit(measured, REAL_TABLE), sigma=level).sigma
    own = noise_of(DTI(), measured, REAL_TABLE, DTI().fit(measured, REAL_TABLE)).sigma
    assert float(found[0]) == 0.05
    torch.testing.assert_close(found[1:], own[1:])


def test_residuals_of_a_small_table_are_drawn_from_without_regard_to_other_voxels() -> None:
    """Without smooth shells leverages are the voxel's own: one with none left must not take volumes from the others."""
    full = table_of_shells((1000.0,), 20)
    table = full[torch.tensor([0, *range(1, 11)])]
    clean = DTI().predict(_tensors(4), table)
    measured = rician(clean, 0.03, torch.Generator().manual_seed(1))
    whole = standard_deviations(DTI(), torch.cat([measured, 1e-9 * measured]), table, "bootstrap", 10)["fa"][:4]
    torch.testing.assert_close(standard_deviations(DTI(), measured, table, "bootstrap", 10)["fa"], whole)


def test_several_axes_are_matched_as_a_whole() -> None:
    model = MODELS["ballsticks"]()
    params = model.example(3, 4)
    read_as = read(model, params).axes
    turned = {
        "direction1": read_as["direction2"],
        "direction2": read_as["direction3"],
        "direction3": read_as["direction1"],
    }
    found = read(model, params, turned).axes
    for name, axis in turned.items():
        torch.testing.assert_close(found[name], axis)
