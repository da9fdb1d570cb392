"""Mean-signal kurtosis against DIPY and a closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tractode.contracts import table_of_shells
from tractode.models.msdki import MSDKI


@pytest.mark.reference
def test_maps_equal_those_of_dipy() -> None:
    from dipy.core.gradients import gradient_table
    from dipy.reconst.msdki import MeanDiffusionKurtosisModel

    gtab = table_of_shells((1000.0, 1500.0, 2500.0), 20)
    signal = MSDKI().predict(MSDKI().example(seed=2, n=30), gtab)
    generator = torch.Generator().manual_seed(1)
    signal = signal * (1 + 0.05 * torch.randn(signal.shape, generator=generator, dtype=torch.float64))
    table = gradient_table(gtab.bvals.numpy(), bvecs=gtab.bvecs.numpy())
    theirs = MeanDiffusionKurtosisModel(table, return_S0_hat=True).fit(signal.numpy())
    ours = {name: values[:, 0].numpy() for name, values in MSDKI().to_maps(MSDKI().fit(signal, gtab)).items()}
    np.testing.assert_allclose(ours["msd"], theirs.msd, rtol=1e-6)
    np.testing.assert_allclose(ours["msk"], theirs.msk, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours["s0"], theirs.S0_hat, rtol=1e-6)


def test_dispersion_of_tensors_changes_nothing() -> None:
    """The mean over directions of an axial tensor's signal is the same however the tensor is turned."""
    gtab = table_of_shells((1000.0, 2000.0), 120)
    axes = torch.tensor([[0, 0, 1.0], [0.6, 0, 0.8], [0.6, 0.64, 0.48]], dtype=torch.float64)
    signal = (-gtab.bvals * (0.3e-3 + 1.2e-3 * (axes @ gtab.bvecs.mT).square())).exp()
    maps = MSDKI().to_maps(MSDKI().fit(signal, gtab))
    torch.testing.assert_close(maps["msk"], maps["msk"][:1].expand(3, 1), rtol=2e-3, atol=1e-3)
    # The kurtosis of one axial tensor's signal mean: 12/5 of the squared ratio of its spread (2 D_Δ D)²; 0.7 within the series' reach.
    assert 0.4 < float(maps["msk"][0]) < 1.0


def test_one_shell_is_refused() -> None:
    assert "2 shells" in str(MSDKI.why_not(table_of_shells((2000.0,), 30)))
