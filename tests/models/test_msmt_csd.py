"""Multi-tissue deconvolution against MRtrix3, against its optimality conditions, and on signals of known tissues."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from tractode.contracts import table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.io.response import save_response
from tractode.models.msmt_csd import MSMTCSD
from tractode.models.non_negative import NonNegative
from tractode.models.tissue_response import TissueResponse, tensor_responses
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh

SHELLS = (1000.0, 2000.0, 3000.0)


def voxels(gtab: GradientTable, n: int, snr: float, tissues: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Signals of one or two fibres beside grey matter and CSF, with Gaussian noise; and the shares of the tissues."""
    generator = torch.Generator().manual_seed(7)
    axes = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
    axes = axes / axes.norm(dim=-1, keepdim=True)
    share = torch.rand(n, 1, generator=generator, dtype=torch.float64).clamp(0.3, 1)
    each = (-gtab.bvals * (0.3e-3 + 1.4e-3 * (axes @ gtab.bvecs.mT).square())).exp()
    shares = torch.rand(n, 3, generator=generator, dtype=torch.float64) ** 2
    shares[::3] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    if tissues == 2:
        shares[:, 1] = 0
    shares = shares / shares.sum(-1, keepdim=True)
    white = share * each[:, 0] + (1 - share) * each[:, 1]
    isotropic = [(-gtab.bvals * d).exp().expand(n, -1) for d in (0.8e-3, 3e-3)]
    signal = shares[:, :1] * white + shares[:, 1:2] * isotropic[0] + shares[:, 2:] * isotropic[1]
    return signal + torch.randn(signal.shape, generator=generator, dtype=torch.float64) / snr, shares


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of the coefficients above degree 0."""
    a, b = a[:, 1:], b[:, 1:]
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("dwi2fod") is None, reason="MRtrix3 is not installed")
@pytest.mark.parametrize(("shells", "same_axes"), [(SHELLS, False), (SHELLS, True), ((2500.0,), False)])
def test_fods_and_shares_are_those_of_mrtrix(
    tmp_path: Path, oblique_affine: torch.Tensor, shells: tuple, same_axes: bool
) -> None:
    gtab = table_of_shells(shells, 64)
    n_tissues = 3 if len(shells) > 1 else 2
    signal = voxels(gtab, 60, snr=30, tissues=n_tissues)[0].float()
    responses = tensor_responses([0.0, *shells])
    model = MSMTCSD.with_responses(responses, gtab)
    assert model.responses is not None
    assert len(model.responses) == n_tissues
    nib.save(nib.Nifti1Image(signal.reshape(3, 4, 5, -1).numpy(), oblique_affine.numpy()), tmp_path / "dwi.nii")
    np.savetxt(tmp_path / "grad.b", torch.cat([gtab.bvecs, gtab.bvals[:, None]], -1).numpy(), fmt="%.15g")
    pairs: list[str] = []
    for response in model.responses:
        save_response(response, tmp_path / f"{response.tissue}.txt")
        pairs += [str(tmp_path / f"{response.tissue}.txt"), str(tmp_path / f"{response.tissue}.nii")]
    orders = ",".join(["8"] + ["0"] * (n_tissues - 1))
    command = ["dwi2fod", "-quiet", "msmt_csd", "-nthreads", "0", "-lmax", orders, "-grad", str(tmp_path / "grad.b")]
    if same_axes:
        x, y, z = sphere.directions(300).unbind(-1)
        np.savetxt(tmp_path / "hr.txt", torch.stack([torch.atan2(y, x), torch.acos(z)], -1).numpy(), fmt="%.15g")
        command += ["-directions", str(tmp_path / "hr.txt")]
    subprocess.run([*command, str(tmp_path / "dwi.nii"), *pairs], check=True)

    def theirs(tissue: str) -> torch.Tensor:
        return torch.tensor(np.asarray(nib.load(tmp_path / f"{tissue}.nii").dataobj)).reshape(60, -1).double()

    ours = model.fit(signal.double(), gtab)
    present = ours[:, 0] * math.sqrt(4 * math.pi) > 0.3
    # Their own 300 axes are others than ours.
    assert float(correlation(ours[:, :45], theirs("wm"))[present].min()) > (1 - 1e-9 if same_axes else 0.997)
    assert float(correlation(ours[:, :45], theirs("wm"))[present].median()) > 0.999
    maps = model.to_maps(ours)
    total = sum(theirs(response.tissue)[:, :1] for response in model.responses)
    for response in model.responses:
        shares = theirs(response.tissue)[:, :1] / total
        assert float((maps[f"{response.tissue}vf"] - shares).abs().max()) < 0.01


def test_the_answer_meets_the_conditions_of_a_least_point() -> None:
    gtab = table_of_shells(SHELLS, 45)
    model = MSMTCSD()
    problem = NonNegative(model.forward(gtab), 8)
    signal = voxels(gtab, 24, snr=20)[0]
    point, held = problem.solved(signal, keep=True)
    assert held is not None
    scale = float(point.abs().max())
    slack = point @ problem.constraint.mT
    assert float(slack.min()) > -1e-6 * scale
    slope = point @ problem.quadratic - signal @ problem.forward / problem.size
    for row, amounts, those in zip(slope, slack, held.bool(), strict=True):
        # The slope is a sum, with weights at or above 0, of the constraints that are met with nothing to spare.
        near = amounts < 1e-5 * scale
        assert bool(near[those].all())
        _, rest = nnls(problem.constraint[near].mT.numpy(), row.numpy(), maxiter=10000)
        assert rest < 1e-5 * float(slope.abs().max())


def test_tissues_are_found_in_their_shares_in_spite_of_noise() -> None:
    gtab = table_of_shells(SHELLS, 60)
    model = MSMTCSD.with_responses(tensor_responses([0.0, *SHELLS]), gtab)
    truth = model.example(3, 200)
    generator = torch.Generator().manual_seed(1)
    signal = model.predict(truth, gtab)
    signal = signal + torch.randn(signal.shape, generator=generator, dtype=torch.float64) / 50
    found, expected = model.to_maps(model.fit(signal, gtab)), model.to_maps(truth)
    for name in ("wmvf", "gmvf", "csfvf"):
        error = found[name] - expected[name]
        assert float(error.mean().abs()) < 0.03  # what is held at or above 0 is biased by noise
        assert float(error.abs().max()) < 0.15


def test_the_derivative_is_that_of_finite_differences() -> None:
    gtab = table_of_shells(SHELLS, 45)
    problem = NonNegative(MSMTCSD().forward(gtab), 8)
    signal = voxels(gtab, 3, snr=25)[0].requires_grad_()
    generator = torch.Generator().manual_seed(2)
    way = torch.randn(signal.shape, generator=generator, dtype=torch.float64)
    probe = torch.randn(3, 47, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((problem(signal) * probe).sum(), signal)
    with torch.no_grad():
        step = 1e-6
        ahead, behind = ((problem(signal + sign * step * way) * probe).sum(-1) for sign in (1, -1))
    expected = (ahead - behind) / (2 * step)
    torch.testing.assert_close((slope * way).sum(-1), expected, rtol=2e-3, atol=1e-4)


def test_one_shell_gives_two_tissues_and_a_third_is_refused() -> None:
    gtab = table_of_shells((2500.0,), 45)
    model = MSMTCSD.with_responses(tensor_responses([0.0, 2500.0]), gtab)
    params = model.fit(voxels(gtab, 4, snr=30, tissues=2)[0], gtab)
    assert params.shape == (4, 46)
    assert bool((model.to_maps(params)["gm"] == 0).all())
    with pytest.raises(InputDataError, match="E-MSMTCSD-TISSUES"):
        MSMTCSD(tensor_responses([0.0, 2500.0])).fit(torch.ones(1, len(gtab), dtype=torch.float64), gtab)


def test_a_response_for_other_b_values_is_refused() -> None:
    gtab = table_of_shells((1000.0, 2000.0), 20)
    with pytest.raises(InputDataError, match="E-MSMT-SHELL"):
        MSMTCSD(tensor_responses([0.0, 1000.0, 3000.0])).fit(torch.ones(1, len(gtab), dtype=torch.float64), gtab)
    with pytest.raises(ValueError, match="csf"):
        MSMTCSD.with_responses(tensor_responses([0.0, 1000.0, 2000.0])[:2], gtab)


def test_the_result_does_not_depend_on_threads_or_neighbours() -> None:
    gtab = table_of_shells(SHELLS, 45)
    problem = NonNegative(MSMTCSD().forward(gtab), 8)
    signal = voxels(gtab, 30, snr=25)[0]
    alone = problem(signal[7:8])
    assert torch.equal(problem(signal)[7:8], alone)
    assert torch.equal(problem(signal.repeat(20, 1))[7:8], alone)


def test_peaks_point_along_the_fibre() -> None:
    gtab = table_of_shells(SHELLS, 60)
    axis = torch.tensor([[0.48, -0.6, 0.64]], dtype=torch.float64)
    signal = 0.6 * (-gtab.bvals * (0.3e-3 + 1.4e-3 * (axis @ gtab.bvecs.mT).square())).exp()
    signal = signal + 0.4 * (-gtab.bvals * 0.8e-3).exp()
    fod = MSMTCSD().to_sh(MSMTCSD().fit(signal, gtab), 8)
    probes = sphere.directions(2000)
    best = probes[int((fod @ sh.basis(probes, 8).mT).argmax())]
    assert float(torch.rad2deg(sphere.angle(best, axis[0]))) < 4


def test_responses_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        TissueResponse("wm", torch.zeros(1).double(), -torch.ones(1, 2).double())
