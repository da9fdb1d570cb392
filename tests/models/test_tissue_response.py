"""Responses of three tissues: those that made the signals, those that MRtrix3 finds, files, the mean of a group."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.contracts import table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.io.response import load_response, save_response
from tractode.models.csd import CSD
from tractode.models.msmt_csd import MSMTCSD
from tractode.models.tissue_response import (
    TissueResponse,
    estimate_tissue_responses,
    mean_response,
    tensor_responses,
)
from tractode.ops import spherical_harmonics as sh

SHELLS = (1000.0, 2000.0, 3000.0)
GTAB = table_of_shells(SHELLS, 32)
S0 = {"wm": 300.0, "gm": 350.0, "csf": 800.0}


def brain(gtab: GradientTable, n: int = 6000, snr: float = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels of one tissue each, with some mixed and crossing ones; kinds 0 white, 1 grey, 2 CSF, 3 crossing, 4 mixed."""
    generator = torch.Generator().manual_seed(3)
    kind = torch.randint(0, 5, (n,), generator=generator)
    axes = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
    axes = axes / axes.norm(dim=-1, keepdim=True)
    fibres = S0["wm"] * (-gtab.bvals * (0.3e-3 + 1.4e-3 * (axes @ gtab.bvecs.mT).square())).exp()
    grey, fluid = (S0[t] * (-gtab.bvals * d).exp().expand(n, -1) for t, d in (("gm", 0.8e-3), ("csf", 3e-3)))
    share = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    mixed = share * fibres[:, 0] + (1 - share) * torch.where(share > 0.5, grey, fluid)
    every = torch.stack([fibres[:, 0], grey, fluid, fibres.mean(1), mixed], 1)
    signal = every[torch.arange(n), kind]
    noise = torch.randn(2, *signal.shape, generator=generator, dtype=torch.float64) * S0["wm"] / snr
    return ((signal + noise[0]) ** 2 + noise[1] ** 2).sqrt(), kind


def profile(response: TissueResponse, row: int) -> torch.Tensor:
    cosines = torch.linspace(0, 1, 21, dtype=torch.float64)
    coefficients = response.coefficients[row]
    return sh.zonal(2 * (len(coefficients) - 1), cosines) @ coefficients


def test_the_responses_are_those_that_made_the_signals() -> None:
    signal, _ = brain(GTAB)
    found = estimate_tissue_responses(signal, GTAB)
    truth = tensor_responses([0.0, *SHELLS])
    assert [response.tissue for response in found] == ["wm", "gm", "csf"]
    for ours, theirs in zip(found, truth, strict=True):
        assert ours.method == "dhollander"
        for row in range(4):
            expected = profile(theirs, row) * S0[ours.tissue]
            # Noise alone lifts CSF at b = 3000 s/mm².
            floor = 10.0
            assert float((profile(ours, row) - expected).abs().max()) < 0.06 * float(expected.max()) + floor


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("dwi2response") is None, reason="MRtrix3 is not installed")
def test_the_responses_are_near_those_of_mrtrix(tmp_path: Path, oblique_affine: torch.Tensor) -> None:
    signal, kind = brain(GTAB, 8000)
    order = kind.argsort(stable=True)
    data = signal[order].reshape(20, 20, 20, -1)  # tissues in slabs, as the eroded mask needs them
    nib.save(nib.Nifti1Image(data.float().numpy(), oblique_affine.numpy()), tmp_path / "dwi.nii")
    mask = np.ones((20, 20, 20), np.uint8)
    nib.save(nib.Nifti1Image(mask, oblique_affine.numpy()), tmp_path / "mask.nii")
    np.savetxt(tmp_path / "grad.b", torch.cat([GTAB.bvecs, GTAB.bvals[:, None]], -1).numpy(), fmt="%.15g")
    files = [tmp_path / f"{tissue}.txt" for tissue in ("wm", "gm", "csf")]
    command = ["dwi2response", "dhollander", "-quiet", "-erode", "0", "-mask", tmp_path / "mask.nii"]
    command += ["-grad", tmp_path / "grad.b", "-scratch", tmp_path, tmp_path / "dwi.nii"]
    subprocess.run([*command, *files], check=True)
    for ours, path in zip(estimate_tissue_responses(signal, GTAB), files, strict=True):
        theirs = load_response(path, ours.tissue)
        assert torch.allclose(theirs.bvals, ours.bvals, atol=1)
        for row in range(4):
            a, b = profile(ours, row), profile(theirs, row)
            assert float((a - b).abs().max()) < 0.08 * float(b.max()) + 10


def test_where_a_tissue_is_missing_the_error_says_which() -> None:
    signal, kind = brain(GTAB, 1500)
    with pytest.raises(InputDataError, match="E-MSMT-RESPONSE"):
        estimate_tissue_responses(signal[kind == 0], GTAB)


def test_the_model_takes_them_from_the_scan() -> None:
    model = MSMTCSD.for_data(brain(GTAB)[0], GTAB)
    facts = model.facts()["ResponseFunction"]
    assert list(facts) == ["wm", "gm", "csf"]
    assert facts["gm"]["BValue"] == [0, 1000, 2000, 3000]
    assert len(facts["wm"]["Coefficients"]) == 4


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    for response in tensor_responses([0.0, *SHELLS], 250.0):
        save_response(response, tmp_path / "response.txt")
        again = load_response(tmp_path / "response.txt", response.tissue)
        torch.testing.assert_close(again.bvals, response.bvals)
        torch.testing.assert_close(again.coefficients, response.coefficients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("text", ["", "# Shells: 0,1000\n1 2 3\n", "# Shells: 0\nnan 1\n", "a b\n"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "response.txt").write_text(text)
    with pytest.raises(InputDataError, match="E-RESPONSE-FILE"):
        load_response(tmp_path / "response.txt")
    with pytest.raises(InputDataError, match="E-RESPONSE-FILE"):
        load_response(tmp_path / "none.txt")


def test_one_row_serves_single_shell_deconvolution(tmp_path: Path) -> None:
    full = tensor_responses([0.0, *SHELLS], 300.0)[0]
    gtab = table_of_shells((3000.0,), 30)
    numbers = " ".join(f"{float(c):.9g}" for c in full.coefficients[3])
    (tmp_path / "response.txt").write_text(f"{numbers}\n")
    for response in (full, load_response(tmp_path / "response.txt")):
        model = CSD.with_responses([response], gtab)
        assert model.response is not None
        torch.testing.assert_close(model.response.coefficients, full.coefficients[3], rtol=1e-7, atol=1e-6)
        assert model.response.s0 == pytest.approx(300, rel=0.2)


def test_one_row_of_a_known_b_value_serves_no_other(tmp_path: Path) -> None:
    full = tensor_responses([0.0, *SHELLS], 300.0)[0]
    one = TissueResponse("wm", full.bvals[3:], full.coefficients[3:])
    save_response(one, tmp_path / "response.txt")
    response = load_response(tmp_path / "response.txt")
    assert CSD.with_responses([response], table_of_shells((float(full.bvals[3]),), 30)).response is not None
    with pytest.raises(InputDataError, match="E-MSMT-SHELL"):
        CSD.with_responses([response], table_of_shells((1000.0,), 30))


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("responsemean") is None, reason="MRtrix3 is not installed")
def test_the_mean_of_a_group_is_that_of_mrtrix(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    one = tensor_responses([0.0, *SHELLS], 300.0)[0]
    group = []
    for n, size in enumerate((1.0, 1.7, 0.6)):
        change = 1 + 0.1 * torch.randn(one.coefficients.shape, generator=generator, dtype=torch.float64)
        group.append(TissueResponse("wm", one.bvals, size * one.coefficients * change))
        save_response(group[-1], tmp_path / f"{n}.txt")
    files = [tmp_path / f"{n}.txt" for n in range(3)]
    subprocess.run(["responsemean", "-quiet", *files, tmp_path / "mean.txt"], check=True)
    theirs = load_response(tmp_path / "mean.txt")
    # It says nothing of b-values; the order tells.
    torch.testing.assert_close(theirs.placed(GTAB).bvals, one.bvals)
    torch.testing.assert_close(mean_response(group).coefficients, theirs.coefficients, rtol=1e-5, atol=1e-4)


def test_a_mean_of_different_protocols_is_refused() -> None:
    first, second = tensor_responses([0.0, 1000.0])[0], tensor_responses([0.0, 3000.0])[0]
    with pytest.raises(InputDataError, match="E-RESPONSE-GROUP"):
        mean_response([first, second])
    assert mean_response([first]).coefficients.shape == first.coefficients.shape
