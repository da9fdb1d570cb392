"""WMTI: a voxel that is what the model assumes, and DIPY."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tractode.models.dki import DKI, _squared
from tractode.models.wmti import WMTI, largest_kurtosis
from tractode.ops import kurtosis, sphere, symmetric

DIPY_ORDER = ("xxxx", "yyyy", "zzzz", "xxxy", "xxxz", "xyyy", "yyyz", "xzzz", "yzzz", "xxyy", "xxzz", "yyzz", "xxyz", "xyyz", "xyzz")  # fmt: skip


def _bundle(fraction: float) -> torch.Tensor:
    """Sticks along an oblique axis and hindered water around them, as D and V of the mixture."""
    axis = torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64)
    frame = sphere.frame_to_z(axis)
    inside, outside = (
        symmetric.from_matrix(frame.mT @ torch.diag(torch.tensor(d, dtype=torch.float64)) @ frame)[None]
        for d in ([0.0, 0.0, 1.0], [0.7, 0.7, 1.9])
    )
    mean = fraction * inside + (1 - fraction) * outside
    product = 3 * (fraction * _squared(inside - mean) + (1 - fraction) * _squared(outside - mean))
    return torch.cat([mean * 1e-3, product, torch.full((1, 1), 5.0, dtype=torch.float64)], -1)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.7])
def test_a_bundle_of_sticks_gets_its_fraction_and_diffusivities(fraction: float) -> None:
    maps = {name: float(value) for name, value in WMTI().to_maps(_bundle(fraction)).items()}
    assert maps["awf"] == pytest.approx(fraction, rel=1e-6)
    # Along the bundle D(g) of both is no longer a square root of the kurtosis of one sign: the tensors are fits (equation 15).
    assert maps["deperp"] == pytest.approx(0.7e-3, rel=0.05)
    assert maps["depar"] == pytest.approx(1.9e-3, rel=0.05)
    assert maps["da"] == pytest.approx(1.0e-3, rel=0.1)
    assert maps["tort"] == pytest.approx(maps["depar"] / maps["deperp"], rel=1e-6)


def test_the_largest_kurtosis_is_that_of_a_dense_search() -> None:
    params = DKI().example(seed=5, n=30)
    tensor, product = params[:, :6] * 1e3, params[:, 6:21]
    g = sphere.directions(20000, hemisphere=True)
    k = (product @ kurtosis.quartic_form(g).mT) / (tensor @ symmetric.quadratic_form(g).mT).square()
    found = largest_kurtosis(tensor, product)
    assert bool((found > k.amax(-1) - 1e-9).all())
    torch.testing.assert_close(found, k.amax(-1), rtol=1e-3, atol=1e-4)


@pytest.mark.reference
def test_maps_equal_those_of_dipy() -> None:
    from dipy.core.gradients import gradient_table
    from dipy.data import get_sphere
    from dipy.reconst.dki_micro import KurtosisMicrostructureModel

    gtab = DKI.example_table(40)
    params = torch.cat([_bundle(f) for f in (0.3, 0.45, 0.6)])
    signal = DKI().predict(params, gtab)
    table = gradient_table(gtab.bvals.numpy(), bvecs=gtab.bvecs.numpy())
    theirs = KurtosisMicrostructureModel(table, fit_method="WLS").fit(
        signal.numpy(), sphere=get_sphere(name="repulsion724")
    )
    ours = {name: value[:, 0].numpy() for name, value in WMTI().to_maps(WMTI().fit(signal, gtab)).items()}
    np.testing.assert_allclose(ours["awf"], theirs.awf, rtol=2e-3)
    np.testing.assert_allclose(ours["da"], theirs.axonal_diffusivity, rtol=0.02)
    np.testing.assert_allclose(ours["depar"], theirs.hindered_ad, rtol=0.02)
    np.testing.assert_allclose(ours["deperp"], theirs.hindered_rd, rtol=0.02)
    np.testing.assert_allclose(ours["tort"], theirs.tortuosity, rtol=0.03)


def test_slopes_are_finite_without_any_kurtosis() -> None:
    gtab = DKI.example_table(20)
    signal = (100 * (-gtab.bvals * 0.8e-3).exp())[None].requires_grad_()
    maps = WMTI(fit_method="wls").to_maps(WMTI(fit_method="wls").fit(signal, gtab))
    (slope,) = torch.autograd.grad(sum(m.sum() for m in maps.values()), signal)
    assert bool(torch.isfinite(slope).all())
