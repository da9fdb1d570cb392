"""MP-PCA: noise of known size, signals of known rank, and MRtrix3's dwidenoise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from tests.conftest import needs

from tractode.errors import InputDataError
from tractode.preprocess.denoise import DenoiseSettings, denoise, extents, noise_components, patch_pca

SIGMA = 7.0


def _series(generator: torch.Generator, n: int = 24, rank: int = 3) -> torch.Tensor:
    """A smooth signal of few components, on a grid of unequal sides."""
    shape = (13, 11, 12)
    weights = torch.randn(n, rank, generator=generator)
    axes = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, size) for size in shape), indexing="ij"))
    maps = torch.stack([torch.sin(2 * axes[r % 3] + r) for r in range(rank)])
    return 300 + 40 * torch.einsum("nr,rijk->nijk", weights, maps)


def _noisy(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return clean + SIGMA * torch.randn(clean.shape, generator=generator)


def test_pure_noise_has_no_component_and_its_own_size(generator: torch.Generator) -> None:
    patches = SIGMA * torch.randn(200, 125, 60, generator=generator)
    clean, sigma, rank = patch_pca(patches)
    assert float(sigma.mean()) == pytest.approx(SIGMA, rel=0.02)
    assert float(rank.mean()) < 2
    assert float(clean.square().mean()) < 0.1 * SIGMA**2


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_left_of_the_noise(generator: torch.Generator, stride: int) -> None:
    """Of white noise on r components out of n, about the share r / n + r / m stays; overlapping patches leave less."""
    clean = _series(generator)
    found = denoise(_noisy(clean, generator), settings=DenoiseSettings(stride=stride, extent=5))
    left = float((found.signal - clean).square().mean()) / SIGMA**2
    assert left < 0.35
    assert float(found.noise.median()) == pytest.approx(SIGMA, rel=0.05)
    assert 3 <= float(found.rank.median()) <= 5


def test_it_stays_within_its_mask_and_leaves_the_rest(generator: torch.Generator) -> None:
    noisy = _noisy(_series(generator), generator)
    mask = torch.zeros(13, 11, 12, dtype=torch.bool)
    mask[3:9, 2:8, 4:10] = True
    before = noisy.clone()
    found = denoise(noisy, mask)
    assert torch.equal(noisy, before)
    assert torch.equal(found.signal[:, ~mask], noisy[:, ~mask])
    assert bool((found.noise[mask] > 0).all())
    assert bool((found.noise[~mask] == 0).all())


def test_slabs_and_place_do_not_matter(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = _noisy(_series(generator), generator)
    mask = noisy[0] > 290
    whole = denoise(noisy, mask)
    for n_bytes in (1, 3 * noisy[:, :1].numel() * 4):  # slabs of one plane, and of three
        monkeypatch.setattr("tractode.preprocess.denoise._SLAB", n_bytes)
        own = noisy.clone()
        found = denoise(own, mask, out=own)
        assert found.signal is own
        for name in ("signal", "noise", "rank"):
            assert torch.equal(getattr(found, name), getattr(whole, name))


def test_a_series_without_noise_is_left_as_it_is(generator: torch.Generator) -> None:
    clean = _series(generator)
    assert torch.allclose(denoise(clean).signal, clean, atol=0.02)


def test_patches_are_the_smallest_that_hold_enough_and_never_leave_the_image() -> None:
    assert extents(27, (20, 20, 20), None) == (3, 3, 3)
    assert extents(28, (20, 20, 20), None) == (5, 5, 5)
    assert extents(200, (20, 20, 4), None) == (7, 7, 4)


def test_the_threshold_of_each_estimator() -> None:
    """A spectrum by hand: eight eigenvalues of noise of variance 1, and one of signal."""
    values = torch.tensor([[60.0, 70, 80, 90, 100, 110, 120, 130, 5000]], dtype=torch.float64)
    for estimator in ("exp1", "exp2"):
        count, variance = noise_components(values, 95, estimator)  # type: ignore[arg-type]
        assert int(count) == 8
        assert float(variance) == pytest.approx(1.0, abs=1e-6)


def test_too_few_volumes_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(InputDataError, match="E-DENOISE-FEW"):
        denoise(torch.rand(5, 8, 8, 8, generator=generator))


@pytest.mark.reference
@needs("dwidenoise")
@pytest.mark.parametrize("estimator", ["Exp1", "Exp2"])
def test_it_agrees_with_dwidenoise(
    generator: torch.Generator, oblique_affine: torch.Tensor, tmp_path: Path, estimator: str
) -> None:
    noisy = _noisy(_series(generator), generator)
    nibabel.Nifti1Image(noisy.movedim(0, -1).numpy(), oblique_affine.numpy()).to_filename(tmp_path / "in.nii")
    subprocess.run(
        ["dwidenoise", "in.nii", "out.nii", "-noise", "noise.nii", "-estimator", estimator, "-quiet", "-nthreads", "0"],
        cwd=tmp_path,
        check=True,
    )
    settings = DenoiseSettings(estimator=estimator.lower(), stride=1, joined="centre")  # type: ignore[arg-type]
    found = denoise(noisy, settings=settings)
    theirs = np.moveaxis(nibabel.load(tmp_path / "out.nii").get_fdata(), -1, 0)
    noise = nibabel.load(tmp_path / "noise.nii").get_fdata()
    apart = np.abs(found.signal.numpy() - theirs).max(0)
    # Where the threshold falls between two eigenvalues that are nearly equal, rounding decides.
    assert np.mean(apart < 0.01 * SIGMA) > 0.99
    assert np.median(np.abs(found.noise.numpy() / noise - 1)) < 1e-4
