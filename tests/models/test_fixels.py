"""Fixels of orientation models: integrals of known lobes, exact peaks, and MRtrix3's own."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.models.csd import CSD
from tractode.models.fixels import fixels
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.simulate.signal import watson

ORDER = 8


def _lobes(axes: torch.Tensor, weights: torch.Tensor, kappa: float = 12.0) -> torch.Tensor:
    """Coefficients of Watson lobes (v k 3), which integrate to the weights."""
    factors = watson(torch.full(weights.shape, kappa, dtype=torch.float64), ORDER)[..., sh.degrees(ORDER) // 2]
    return (sh.basis(axes, ORDER) * factors * weights[..., None]).sum(1)


def _scene(n: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    first = first / first.norm(dim=-1, keepdim=True)
    side = torch.linalg.cross(first, torch.randn(n, 3, generator=generator, dtype=torch.float64))
    axes = torch.stack([first, side / side.norm(dim=-1, keepdim=True)], 1)
    weights = torch.tensor([0.7, 0.4], dtype=torch.float64).expand(n, 2)
    return _lobes(axes, weights), axes, weights


def test_two_lobes_have_their_axes_and_integrals() -> None:
    fod, axes, weights = _scene()
    found = fixels(CSD(), fod, n=3, least_peak=0.1)
    assert found.afd.dtype == torch.float64
    for k in range(2):
        assert float(sphere.angle(found.peaks[:, k], axes[:, k]).max()) < math.radians(1)
        assert float(sphere.angle(found.axes[:, k], axes[:, k]).max()) < math.radians(3)
        torch.testing.assert_close(found.afd[:, k], weights[:, k], rtol=0.08, atol=0.0)
    assert not bool(found.afd[:, 2].any())
    assert not bool(found.peaks[:, 2].any())


def test_a_peak_is_a_maximum_and_its_amplitude_that_of_the_distribution() -> None:
    fod, _, _ = _scene()
    found = fixels(CSD(), fod, n=2)
    values = (sh.basis(found.peaks, ORDER) * fod[:, None]).sum(-1)
    torch.testing.assert_close(found.amplitude, values, rtol=1e-6, atol=0.0)
    near = found.peaks + 0.02 * torch.randn(
        found.peaks.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    near = near / near.norm(dim=-1, keepdim=True)
    assert bool(((sh.basis(near, ORDER) * fod[:, None]).sum(-1) <= values).all())


def test_dispersion_grows_as_a_lobe_spreads() -> None:
    axis = torch.tensor([[[0.0, 0.6, 0.8]]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    narrow, wide = (fixels(CSD(), _lobes(axis, one, kappa), 1).dispersion for kappa in (20.0, 4.0))
    assert float(narrow) < float(wide)


def test_nothing_in_a_voxel_without_fibres() -> None:
    found = fixels(CSD(), torch.zeros(3, 45), n=2)
    assert found.afd.dtype == torch.float32
    assert all(not bool(part.any()) for part in (found.axes, found.peaks, found.afd, found.amplitude, found.dispersion))


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("fod2fixel") is None, reason="MRtrix3 is not installed")
def test_the_same_fixels_as_fod2fixel(tmp_path: Path) -> None:
    fod, _, _ = _scene(50)
    image = nib.Nifti1Image(fod.reshape(50, 1, 1, 45).numpy().astype(np.float32), np.eye(4))
    nib.save(image, tmp_path / "fod.nii")
    subprocess.run(
        ["fod2fixel", "fod.nii", "out", "-afd", "afd.nii", "-peak", "peak.nii", "-disp", "disp.nii", "-nii", "-quiet"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    theirs = {
        name: np.asarray(nib.load(tmp_path / "out" / f"{name}.nii").dataobj).ravel() for name in ("afd", "peak", "disp")
    }
    count = np.asarray(nib.load(tmp_path / "out" / "index.nii").dataobj)[..., 0].ravel()
    found = fixels(CSD(), fod, n=2, least_peak=0.1)
    assert set(count.tolist()) == {2}
    for name, ours in (("afd", found.afd), ("peak", found.amplitude), ("disp", found.dispersion)):
        values = np.sort(theirs[name].reshape(50, 2), axis=1)
        np.testing.assert_allclose(np.sort(ours.numpy(), axis=1), values, rtol=0.05, err_msg=name)
