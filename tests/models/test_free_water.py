"""Free water: DIPY on two shells, the prior on one, and the two ends of the range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tractode.contracts import table_of_shells
from tractode.models.free_water import FREE_DIFFUSIVITY, TISSUE_DIFFUSIVITY, FreeWaterDTI
from tractode.ops import symmetric


def _noisy(
    n: int, level: float, bvals: tuple[float, ...] = (600.0, 1500.0)
) -> tuple[torch.Tensor, torch.Tensor, object]:
    gtab = table_of_shells(bvals, 30)
    params = FreeWaterDTI().example(seed=3, n=n)
    signal = FreeWaterDTI().predict(params, gtab)
    generator = torch.Generator().manual_seed(4)
    return (
        params,
        signal + level * signal[:, :1] * torch.randn(signal.shape, generator=generator, dtype=torch.float64),
        gtab,
    )


@pytest.mark.reference
def test_two_shells_are_fitted_as_by_dipy() -> None:
    from dipy.core.gradients import gradient_table
    from dipy.reconst.fwdti import FreeWaterTensorModel

    _, signal, gtab = _noisy(20, 0.01)
    table = gradient_table(gtab.bvals.numpy(), bvecs=gtab.bvecs.numpy())  # type: ignore[attr-defined]
    theirs = FreeWaterTensorModel(table, fit_method="NLS").fit(signal.numpy())
    maps = FreeWaterDTI().to_maps(FreeWaterDTI().fit(signal, gtab))  # type: ignore[arg-type]
    inside = (theirs.f > 0.02) & (theirs.f < 0.98)
    assert inside.mean() > 0.8
    apart = {name: np.abs(maps[name][:, 0].numpy() - getattr(theirs, other))[inside] for name, other in (("fwf", "f"), ("fa", "fa"))}  # fmt: skip
    assert np.median(apart["fwf"]) < 1e-3
    assert np.median(apart["fa"]) < 1e-3


def test_one_shell_gives_back_what_meets_its_prior() -> None:
    params, _, _ = _noisy(12, 0.0)
    gtab = table_of_shells((1000.0,), 30)
    md = symmetric.trace(params[:, :6])[:, None] / 3
    typical = torch.cat([params[:, :6] / md * TISSUE_DIFFUSIVITY, params[:, 6:]], -1)
    found = FreeWaterDTI().fit(FreeWaterDTI().predict(typical, gtab), gtab)
    torch.testing.assert_close(found, typical, rtol=1e-5, atol=1e-7)
    assert FreeWaterDTI.for_data(torch.ones(1, len(gtab)), gtab).facts()["FitMethod"] == "prior"


def test_one_shell_takes_a_faster_tissue_for_water_in_part() -> None:
    """The price of the prior, as the theory page says: a mean diffusivity above it shows up as free water."""
    gtab = table_of_shells((1000.0,), 30)
    d = torch.tensor([[0.7e-3], [0.9e-3]], dtype=torch.float64)
    signal = (-gtab.bvals * d).exp()
    maps = FreeWaterDTI().to_maps(FreeWaterDTI().fit(signal, gtab))
    assert float(maps["fwf"][0]) < 0.01
    assert 0.05 < float(maps["fwf"][1]) < 0.25


def test_mere_water_has_a_fraction_of_one_and_no_tensor() -> None:
    gtab = FreeWaterDTI.example_table(20)
    signal = 500 * (-gtab.bvals * FREE_DIFFUSIVITY).exp()[None]
    maps = FreeWaterDTI().to_maps(FreeWaterDTI().fit(signal, gtab))
    assert float(maps["fwf"]) == 1
    assert float(maps["fa"]) == 0
    assert float(maps["s0"]) == pytest.approx(500, rel=1e-6)


def test_it_undoes_partial_volume_that_biases_the_tensor() -> None:
    from tractode.models.dti import DTI

    params, signal, gtab = _noisy(40, 0.01)
    truth = symmetric.anisotropy(params[:, :6])
    plain = DTI().to_maps(DTI().fit(signal, gtab))["fa"][:, 0]  # type: ignore[arg-type]
    ours = FreeWaterDTI().to_maps(FreeWaterDTI().fit(signal, gtab))["fa"][:, 0]  # type: ignore[arg-type]
    assert float((ours - truth).abs().median()) < 0.3 * float((plain - truth).abs().median())


def test_a_shell_beyond_the_gaussian_range_is_refused() -> None:
    assert "between b=500 and 2100" in str(FreeWaterDTI.why_not(table_of_shells((3000.0,), 30)))


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_the_derivative_by_hand_is_that_of_the_prediction(weight: float) -> None:
    from tractode.models.free_water import _forms, _linearised, _predicted
    from tractode.ops.levenberg_marquardt import value_and_jacobian

    second, b = _forms(table_of_shells((1000.0,), 12))
    q = torch.rand(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = value_and_jacobian(lambda p: _predicted(p, second, b, weight), q)
    for found, wanted in zip(_linearised(q, second, b, weight), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_water_above_a_noise_floor_has_no_tissue() -> None:
    gtab = table_of_shells((1000.0, 2000.0), 20)
    wave = 1 + 0.3 * gtab.bvecs[:, 0] * gtab.bvecs[:, 1]
    floor = torch.where(gtab.is_b0, 1.0, torch.where(gtab.bvals < 1500, 0.0625, 0.018) * wave)[None] * 3000
    params = FreeWaterDTI().fit(floor, gtab)
    assert bool(params.isfinite().all())
    maps = FreeWaterDTI().to_maps(params)
    assert float(maps["fwf"]) == 1
    assert float(maps["md"]) == 0
