"""The tensor against DIPY and MRtrix3, on noisy signals and an oblique left-handed grid."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.contracts import table_of_shells
from tractode.fields import GradientTable
from tractode.models.dti import DTI
from tractode.models.uncertainty import standard_deviations
from tractode.ops import log_linear, sphere
from tractode.ops.log_linear import METHODS


def _noisy(n_voxels: int = 60, b: float = 1000.0) -> tuple[torch.Tensor, GradientTable]:
    directions = torch.cat([torch.zeros(2, 3), sphere.directions(24)]).double()
    is_b0 = directions.norm(dim=-1) == 0
    gtab = GradientTable(torch.where(is_b0, 0.0, b).double(), directions, is_b0)
    signal = DTI().predict(DTI().example(seed=8, n=n_voxels), gtab)
    generator = torch.Generator().manual_seed(8)
    signal = signal * (1 + 0.03 * torch.randn(signal.shape, generator=generator, dtype=torch.float64))
    return signal, gtab


@pytest.mark.reference
@pytest.mark.parametrize("method", ["ols", "wls", "nlls"])
def test_tensor_equals_that_of_dipy(method: str) -> None:
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    signal, gtab = _noisy()
    theirs = TensorModel(
        gradient_table(gtab.bvals.numpy(), bvecs=gtab.bvecs.numpy()), fit_method=method.upper(), return_S0_hat=True
    ).fit(signal.numpy())
    params = DTI(fit_method=method).fit(signal, gtab)  # type: ignore[arg-type]
    maps = DTI().to_maps(params)
    # DIPY's lower triangle: xx, xy, yy, xz, yz, zz.
    lower = theirs.lower_triangular()[:, [0, 1, 3, 2, 4, 5]]
    loose = 100 if method == "nlls" else 1  # its search stops at 1e-8 of the cost
    np.testing.assert_allclose(maps["diffusivity"].numpy(), lower, atol=1e-9 * loose)
    np.testing.assert_allclose(maps["s0"][:, 0].numpy(), theirs.S0_hat, rtol=1e-6 * loose)
    positive = (theirs.evals > 1e-6).all(-1)
    assert positive.mean() > 0.9
    for ours, name in (("fa", "fa"), ("md", "md"), ("ad", "ad"), ("rd", "rd")):
        np.testing.assert_allclose(
            maps[ours][:, 0].numpy()[positive], getattr(theirs, name)[positive], rtol=1e-6 * loose
        )


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("dwi2tensor") is None, reason="MRtrix3 is not installed")
@pytest.mark.parametrize("method", ["ols", "iwls"])
def test_tensor_equals_that_of_mrtrix(tmp_path: Path, oblique_affine: torch.Tensor, method: str) -> None:
    signal, gtab = _noisy()
    data = signal.reshape(3, 4, 5, -1).to(torch.float32)
    nib.save(nib.Nifti1Image(data.numpy(), oblique_affine.numpy()), tmp_path / "dwi.nii")
    np.savetxt(tmp_path / "grad.b", torch.cat([gtab.bvecs, gtab.bvals[:, None]], -1).numpy())
    options = ["-ols", "-iter", "0"] if method == "ols" else []
    command = ["dwi2tensor", "-quiet", *options, "-grad", tmp_path / "grad.b"]
    subprocess.run([*command, tmp_path / "dwi.nii", tmp_path / "dt.nii"], check=True)
    theirs = np.asarray(nib.load(tmp_path / "dt.nii").dataobj).reshape(60, 6)[:, [0, 3, 4, 1, 5, 2]]
    ours = DTI().to_maps(DTI(fit_method=method).fit(data.reshape(60, -1).double(), gtab))["diffusivity"].numpy()  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_every_fit_recovers_the_tensor_and_has_its_derivative(method: log_linear.Method) -> None:
    signal, gtab = _noisy(3)
    params = DTI().example(seed=4, n=3)
    model = DTI(fit_method=method)
    torch.testing.assert_close(model.fit(DTI().predict(params, gtab), gtab), params, rtol=1e-7, atol=1e-10)
    way = signal * torch.randn(signal.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mix = torch.tensor([1e3, -2e3, 1e3, 3e3, 1e3, 2e3, 1.0], dtype=torch.float64)
    variable = signal.clone().requires_grad_()
    (slope,) = torch.autograd.grad((model.fit(variable, gtab) @ mix).sum(), variable)
    ahead, behind = ((model.fit(signal + h * way, gtab) @ mix).sum() for h in (1e-5, -1e-5))
    assert float((slope * way).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("known", [True, False])
def test_rician_fit_is_of_the_greatest_likelihood(known: bool) -> None:
    from scipy.optimize import minimize
    from scipy.special import ive

    _, gtab = _noisy(1, b=1800.0)
    truth = DTI().example(seed=5, n=4)
    sigma = 15.0
    clean = DTI().predict(truth * torch.tensor([1.0] * 6 + [0.0]), gtab) * 100
    noise = sigma * torch.randn(2, *clean.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    magnitude = ((clean + noise[0]).square() + noise[1].square()).sqrt()
    params = DTI(fit_method="rician", sigma=sigma if known else None).fit(magnitude, gtab).numpy()
    n = magnitude.shape[1]

    def cost(p: np.ndarray, y: np.ndarray) -> float:
        scaled = torch.tensor(np.append(p[:6] * 1e-3, p[6]))[None]
        value = DTI().predict(scaled, gtab)[0].numpy()
        level = sigma if known else np.exp(p[7])
        z = y * value / level**2
        # With the noise unknown, the cost whose minimum has the corrected number of degrees of freedom.
        count = 2 * n if known else 2 * n - 7
        return (((y - value) ** 2) / (2 * level**2) - np.log(ive(0, z))).sum() + count * np.log(level)

    for row, y in zip(params, magnitude.numpy(), strict=True):
        start = np.append(row[:6] * 1e3, row[6])
        start = start if known else np.append(start, np.log(sigma))
        best = minimize(cost, start + 0.02, args=(y,), method="BFGS", options={"gtol": 1e-7})
        np.testing.assert_allclose(np.append(row[:6] * 1e3, row[6]), best.x[:7], rtol=2e-3, atol=2e-4)


def test_rician_fit_has_less_bias_than_least_squares_in_noise() -> None:
    _, gtab = _noisy(1, b=3000.0)
    truth = torch.tensor([[1.7e-3, 0, 0, 0.3e-3, 0, 0.3e-3, 0]], dtype=torch.float64).expand(250, 7)
    clean = 10 * DTI().predict(truth, gtab)  # in units of the noise
    noise = torch.randn(2, *clean.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    magnitude = ((clean + noise[0]).square() + noise[1].square()).sqrt()
    error = {
        method: abs(float(DTI(fit_method=method).fit(magnitude, gtab)[:, 0].median()) - 1.7e-3)
        for method in ("nlls", "rician")
    }
    assert error["rician"] < 0.5 * error["nlls"]


def test_direction_of_a_known_fibre_is_in_the_scanner_frame() -> None:
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    _, gtab = _noisy(1)
    attenuation = 2e-4 + 1.5e-3 * (gtab.bvecs @ axis).square()
    signal = (100 * (-gtab.bvals * attenuation).exp())[None]
    direction = DTI().to_maps(DTI().fit(signal, gtab))["direction"][0]
    assert float(torch.rad2deg(sphere.angle(direction, axis))) < 1e-4


def test_a_zero_among_the_signals_does_not_poison_the_fit() -> None:
    signal, gtab = _noisy(4)
    broken = signal.clone()
    broken[:, 5] = 0
    maps = DTI().to_maps(DTI().fit(broken, gtab))
    assert all(bool(torch.isfinite(m).all()) for m in maps.values())
    assert float(maps["fa"].max()) <= 1


def test_a_scan_of_several_shells_is_fitted_up_to_b_1500() -> None:
    gtab = table_of_shells((1000.0, 1510.0, 3000.0), 20)
    low = gtab[gtab.bvals < 2000]
    signal = DTI().predict(DTI().example(seed=1, n=3), gtab)
    signal[:, gtab.bvals > 2000] *= 2  # what kurtosis does
    model = DTI.for_data(signal, gtab)
    assert model.facts()["LargestB"] == 1510
    torch.testing.assert_close(model.fit(signal, gtab), DTI().fit(signal[:, gtab.bvals < 2000], low))
    errors = standard_deviations(DTI(), signal[:, gtab.bvals < 2000], low)["fa"]
    torch.testing.assert_close(standard_deviations(model, signal, gtab)["fa"], errors)  # what is not fitted is no noise


@pytest.mark.parametrize(
    ("bvals", "largest"),
    [((3000.0,), 3000), ((2000.0, 3000.0), 2000), ((300.0, 2000.0, 3000.0), 2000), ((300.0,), 300)],
)
def test_without_a_shell_that_suits_the_next_one_is_fitted(bvals: tuple[float, ...], largest: int) -> None:
    gtab = table_of_shells(bvals, 20)
    assert DTI.for_data(torch.ones(1, len(gtab)), gtab).facts()["LargestB"] == largest
