"""Unringing: images cut off in k-space beside the truth, partial Fourier, and MRtrix3's mrdegibbs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from tests.conftest import needs

from tractode.errors import InputDataError
from tractode.preprocess.unring import UnringSettings, fraction_of, unring, unring_lines, zero_filled_axes

N = 48
FINE = 8


def _object() -> torch.Tensor:
    """Two ellipses, ten times as fine as the scan."""
    at = (torch.arange(N * FINE, dtype=torch.float64) + 0.5) / FINE - N / 2
    x, y = torch.meshgrid(at, at, indexing="ij")
    return ((x / 17.3) ** 2 + (y / 14.1) ** 2 < 1).double() + 0.8 * (((x - 3) / 6.2) ** 2 + ((y + 2) / 4.7) ** 2 < 1)


def _scanned(fraction: float = 1.0, filled: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """The magnitude image of the measured part of k-space (``fraction`` of the lines along the second axis), and the voxels' means."""
    fine = _object()
    spectrum = torch.fft.fftshift(torch.fft.fft2(fine))
    middle, half = N * FINE // 2, N // 2
    part = spectrum[middle - half : middle + half, middle - half : middle + half].clone()
    part[:, : round(N * (1 - fraction))] = 0
    more = (filled - N) // 2
    part = torch.nn.functional.pad(part, (more, more, more, more))
    image = torch.fft.ifft2(torch.fft.ifftshift(part)).abs() / FINE**2 * (filled / N) ** 2
    # The voxel's centre of the coarse grid is the first fine sample of it.
    truth = torch.fft.ifft2(torch.fft.fft2(fine) * _mean_over_voxel()).real[::FINE, ::FINE]
    return image, truth


def _mean_over_voxel() -> torch.Tensor:
    k = torch.fft.fftfreq(N * FINE, dtype=torch.float64) * FINE
    one = torch.sinc(k)
    return one[:, None] * one


def _stack(image: torch.Tensor) -> torch.Tensor:
    return image[None, :, :, None].repeat(2, 1, 1, 3).float()


def _interior(image: torch.Tensor, truth: torch.Tensor) -> float:
    """Root mean square oscillation where the object is flat."""
    flat = torch.nn.functional.max_pool2d(truth[None, None], 5, 1, 2)[0, 0] - 1e-3
    low = -torch.nn.functional.max_pool2d(-truth[None, None], 5, 1, 2)[0, 0] + 1e-3
    same = flat < low
    return float((image - truth)[same].square().mean().sqrt())


def _far(image: torch.Tensor, truth: torch.Tensor) -> float:
    return float((image - truth).square().mean().sqrt())


def test_the_image_comes_nearer_to_the_truth() -> None:
    image, truth = _scanned()
    found = unring(_stack(image))[0, :, :, 0].double()
    assert _interior(found, truth) < 0.85 * _interior(image, truth)
    assert _far(found, truth) < 0.85 * _far(image, truth)


def test_an_axis_that_does_not_ring_is_left_alone() -> None:
    """A stripe whose edges lie across the first axis only."""
    k = torch.fft.fftfreq(N, 1 / N, dtype=torch.float64)
    line = torch.fft.ifft(torch.fft.fft((torch.arange(N) // 3 % 8 < 4).double()) * (k.abs() < N / 3)).real
    image = line[:, None].expand(N, N)
    only = unring(_stack(image), axes=(1,))[0, :, :, 0].double()
    assert torch.allclose(only, image, atol=1e-5)
    both = unring(_stack(image))[0, :, :, 0].double()
    assert _far(both, image) > 1e-3


@pytest.mark.parametrize("fraction", [0.875, 0.75, 0.625])
def test_partial_fourier_rings_less_when_it_is_known(fraction: float) -> None:
    image, truth = _scanned(fraction)
    plain = unring(_stack(image))[0, :, :, 0].double()
    known = unring(_stack(image), fraction=fraction, encoding_axis=1)[0, :, :, 0].double()
    assert _interior(known, truth) < _interior(plain, truth) < _interior(image, truth)


def test_a_smooth_line_is_left_alone() -> None:
    line = 5 + torch.sin(2 * torch.pi * torch.arange(N, dtype=torch.float64) / N)
    assert torch.allclose(unring_lines(line[None], UnringSettings())[0], line, atol=0.02)


def test_the_slices_may_lie_along_any_axis() -> None:
    image, _ = _scanned()
    plain = unring(_stack(image))
    for axis in (0, 1):
        turned = unring(_stack(image).movedim(3, axis + 1).contiguous(), slice_axis=axis)
        assert torch.allclose(turned.movedim(axis + 1, 3), plain, atol=1e-5)


def test_finer_by_zero_filling_is_told_for_each_axis() -> None:
    plain, _ = _scanned()
    assert zero_filled_axes(_stack(plain)) == ()
    spectrum = torch.fft.fftshift(torch.fft.fft2(plain))
    spectrum[:, :9] = 0
    spectrum[:, -8:] = 0
    finer = torch.fft.ifft2(torch.fft.ifftshift(spectrum)).real
    assert zero_filled_axes(_stack(finer)) == (1,)
    assert zero_filled_axes(_stack(finer).movedim(3, 1).contiguous(), slice_axis=0) == (2,)


def test_shares_that_sidecars_state() -> None:
    assert fraction_of({"PartialFourier": 0.75}) == 0.75
    assert fraction_of({"PartialFourier": 1}) == 1.0
    assert fraction_of({"PartialFourier": "6/8"}) == fraction_of({}) == 1.0


def test_a_share_without_an_axis_in_the_plane_is_refused() -> None:
    with pytest.raises(InputDataError, match="E-UNRING-PARTIAL"):
        unring(torch.rand(1, 8, 8, 8), fraction=0.75, encoding_axis=2)


@pytest.mark.reference
@needs("mrdegibbs")
def test_it_agrees_with_mrdegibbs(oblique_affine: torch.Tensor, tmp_path: Path) -> None:
    image, truth = _scanned()
    stack = _stack(image)
    nibabel.Nifti1Image(stack.movedim(0, -1).numpy(), oblique_affine.numpy()).to_filename(tmp_path / "in.nii")
    subprocess.run(
        ["mrdegibbs", "in.nii", "out.nii", "-axes", "0,1", "-quiet", "-nthreads", "0"], cwd=tmp_path, check=True
    )
    theirs = torch.from_numpy(np.moveaxis(nibabel.load(tmp_path / "out.nii").get_fdata(), -1, 0))[0, :, :, 0]
    ours = unring(stack)[0, :, :, 0].double()
    # Where two shifts ring equally little, one or the other is taken: the two programs agree in what they achieve.
    assert _interior(ours, truth) == pytest.approx(_interior(theirs, truth), rel=0.05)
    assert _far(ours, truth) < 1.02 * _far(theirs, truth)
    assert _far(ours, theirs) < 0.4 * _far(image, theirs)
