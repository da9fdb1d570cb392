"""Peaks of every voxel: found, ordered, thinned out, differentiable, and those of MRtrix3."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from tractode.fields import ImageGrid, ShField
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.peak_field import peak_field
from tractode.tracking.seeds import random_directions

DOUBLE = torch.float64


def fibres(directions: Tensor) -> Tensor:
    degree = sh.degrees(8).to(directions)
    return sh.basis(directions, 8) * torch.exp(-0.015 * degree * (degree + 1))


def field_of(coeffs: Tensor, affine: Tensor) -> ShField:
    """Coefficients ``(v, l)`` as a row of voxels."""
    grid = ImageGrid((len(coeffs), 1, 1), affine, "phantom")
    return ShField(grid, coeffs.mT.reshape(-1, len(coeffs), 1, 1).contiguous(), 8)


def test_crossing_fibres_are_found_largest_first(oblique_affine: Tensor) -> None:
    axes = torch.linalg.qr(torch.randn(50, 3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))[0]
    parts = torch.stack([fibres(axes[..., k]) for k in range(3)], dim=-1)
    coeffs = parts @ torch.tensor([0.3, 0.5, 0.2], dtype=DOUBLE)
    coeffs[7] = 0
    found = peak_field(field_of(coeffs, oblique_affine), 5)
    amplitudes, directions = found.amplitudes[:, :, 0, 0], found.directions[:, :, :, 0, 0]
    counted = torch.arange(50) != 7
    assert ((amplitudes > 0).sum(0)[counted] == 3).all()
    assert (amplitudes[:, 7] == 0).all()
    assert (amplitudes.diff(dim=0) <= 0).all()
    assert (directions[3:] == 0).all()
    assert (directions[:, 2] >= 0).all()
    for rank, truth in enumerate((1, 0, 2)):
        angle = sphere.angle(directions[rank].mT[counted], axes[counted, :, truth])
        assert float(angle.max()) < math.radians(1)  # right angles: the other fibres do not pull


def test_no_larger_amplitude_is_anywhere_and_amplitudes_are_the_functions(oblique_affine: Tensor) -> None:
    generator = torch.Generator().manual_seed(2)
    coeffs = fibres(random_directions(300, generator)) + 0.7 * fibres(random_directions(300, generator))
    coeffs = coeffs + 0.01 * torch.randn(300, 45, dtype=DOUBLE, generator=generator)
    found = peak_field(field_of(coeffs, oblique_affine), 3)
    largest = (sh.basis(sphere.directions(2000), 8) @ coeffs.mT).amax(0)
    assert (found.amplitudes[0, :, 0, 0] >= largest - 1e-9).all()
    for rank in range(3):
        there = found.amplitudes[rank, :, 0, 0] > 0
        directions = found.directions[rank, :, :, 0, 0].mT[there]
        values = (sh.basis(directions, 8) * coeffs[there]).sum(-1)
        torch.testing.assert_close(found.amplitudes[rank, there, 0, 0], values, rtol=1e-6, atol=1e-6)


def test_thresholds_and_separation_leave_peaks_out(oblique_affine: Tensor) -> None:
    x, y = torch.eye(3, dtype=DOUBLE)[:2]
    field = field_of((fibres(x) + 0.3 * fibres(y))[None], oblique_affine)

    def count(**options) -> int:
        return int((peak_field(field, 3, **options).amplitudes > 0).sum())

    smaller = float(peak_field(field).amplitudes[1])
    assert count() == 2
    assert count(relative_threshold=0.5) == 1
    assert count(threshold=1.01 * smaller) == 1
    assert count(threshold=0.99 * smaller) == 2
    assert count(separation=math.radians(89)) == 2
    assert count(separation=math.radians(91)) == 1


def test_peaks_are_differentiable_in_the_coefficients(oblique_affine: Tensor) -> None:
    generator = torch.Generator().manual_seed(3)
    coeffs = (fibres(random_directions(3, generator)) + 0.6 * fibres(random_directions(3, generator))).requires_grad_()

    def peaks(values: Tensor) -> tuple[Tensor, Tensor]:
        found = peak_field(field_of(values, oblique_affine), 2)
        return found.directions, found.amplitudes

    assert torch.autograd.gradcheck(peaks, (coeffs,), atol=1e-5, fast_mode=True)


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("sh2peaks") is None, reason="MRtrix3 is not installed")
def test_peaks_are_those_of_mrtrix(tmp_path: Path, oblique_affine: Tensor) -> None:
    """Every peak of ``sh2peaks`` above a fifth of the voxel's largest, and 30° from larger ones, is one of ours."""
    generator = torch.Generator().manual_seed(5)
    n = 500
    coeffs = sum(w * fibres(random_directions(n, generator)) for w in (0.5, 0.35, 0.25))
    field = field_of(coeffs.float(), oblique_affine)
    image = nibabel.Nifti1Image(field.coeffs.permute(1, 2, 3, 0).numpy(), oblique_affine.numpy())
    nibabel.save(image, tmp_path / "sh.nii")
    command = ["sh2peaks", tmp_path / "sh.nii", tmp_path / "peaks.nii", "-num", "3", "-quiet"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=120)
    theirs = torch.from_numpy(np.nan_to_num(nibabel.load(tmp_path / "peaks.nii").get_fdata())).reshape(n, 3, 3)
    size = theirs.norm(dim=-1)
    unit = theirs / size.clamp_min(1e-9)[..., None]
    ours = peak_field(field, 5).directions[:, :, :, 0, 0].permute(2, 0, 1).double()
    between = sphere.angle(*torch.broadcast_tensors(unit[:, :, None], unit[:, None]))
    far = torch.stack([(between[:, r, :r] > math.radians(30)).all(-1) for r in range(3)], dim=1)
    counted = (size > 0.2 * size.amax(1, keepdim=True)) & far
    off = sphere.angle(*torch.broadcast_tensors(unit[:, :, None], ours[:, None])).amin(-1)[counted]
    assert int(counted.sum()) > 700
    share = float((off < math.radians(0.5)).double().mean())
    print(f"{len(off)} peaks, {share:.4f} within 0.5°, median {math.degrees(float(off.median())):.4f}°")
    assert share > 0.99
