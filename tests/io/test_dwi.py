"""A series as a whole: real scans, the brain check, and the rough mask of the head."""

from __future__ import annotations

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import DWI, GradientTable, ImageGrid
from tractode.io.dwi import IngestPolicy, check_brain, head_mask, read_dwi
from tractode.io.gradients import write_gradients
from tractode.io.nifti import read_image, read_volume, write_image

RUNS = {
    "sub-canonA_acq-SAGortho_dir-PA": (1, 12, 1500),
    "sub-canonA_acq-ortho_dir-AP": (1, 12, 1500),
    "sub-canonA_acq-ortho_dir-PA": (1, 12, 1500),
    "sub-ds114": (7, 13, 1000),
    "sub-philipsslab": (5, 12, 1000),
    "sub-prismasag_acq-mosaic_dir-AP": (1, 20, 2000),
    "sub-prismasag_acq-mosaic_dir-HF": (1, 20, 2000),
    "sub-toshiba60": (5, 60, 1500),
    "sub-xa30_dir-AP": (1, 20, 2500),
    "sub-xa30_dir-PA": (1, 20, 2500),
}


@pytest.mark.parametrize("name", RUNS)
def test_real_runs_are_read_without_warnings(test_data, name):
    stem = test_data / "bids_real" / name.split("_")[0] / "dwi" / f"{name}_dwi"
    nii, bval, bvec, sidecar = (stem.with_name(stem.name + suffix) for suffix in (".nii.gz", ".bval", ".bvec", ".json"))
    policy = IngestPolicy(will_track=True)
    dwi, notes = read_dwi(nii, bval, bvec, f"{name}_dwi", policy, metadata=json.loads(sidecar.read_text()))
    n_b0, n_directions, b = RUNS[name]
    assert int(dwi.gtab.is_b0.sum()) == n_b0
    [(mean_b, index)] = dwi.gtab.shells()
    assert (len(index), round(mean_b)) == (n_directions, b)
    assert not [note for note in notes if note.level == "warning"]
    theirs = nib.load(nii)
    volume = np.asarray(theirs.dataobj[..., 1], dtype=np.float32)
    np.testing.assert_allclose(dwi.signal[1].numpy(), volume, rtol=1e-6)
    np.testing.assert_allclose(dwi.grid.affine.numpy(), theirs.affine, atol=1e-5)
    # By another road: DIPY's convention is voxel axes with x turned for det > 0, then out by the affine.
    stored = np.loadtxt(bvec).T
    turned = stored * [-1 if np.linalg.det(theirs.affine[:3, :3]) > 0 else 1, 1, 1]
    expected = turned @ (theirs.affine[:3, :3] / np.linalg.norm(theirs.affine[:3, :3], axis=0)).T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True).clip(1e-9)
    np.testing.assert_allclose(dwi.gtab.bvecs.numpy()[index], expected[index], atol=1e-5)
    share = float(head_mask(dwi.mean_b0().values[0]).float().mean())
    assert 0.08 < share < 0.5


@pytest.mark.parametrize("name", ["sub-xa30_T1w", "sub-xa30_acq-nonorm_T1w"])
def test_real_anatomies(test_data, name):
    image, notes = read_volume(test_data / "bids_real/sub-xa30/anat" / f"{name}.nii.gz", "sub-xa30_T1w")
    assert tuple(image.values.shape) == (1, 96, 128, 128)
    assert notes == []


def test_templates_are_read(test_data):
    folder = test_data / "templateflow" / "tpl-MNI152NLin2009cAsym"
    paths = sorted(folder.glob("*res-02*.nii.gz"))
    assert paths
    for path in paths:
        _, notes = read_image(path, "MNI152NLin2009cAsym")
        assert not [note for note in notes if note.level == "warning"]


def simulated(affine: torch.Tensor, n: int = 10) -> DWI:
    generator = torch.Generator().manual_seed(3)
    grid = ImageGrid((9, 10, 11), affine, "sub-01_dwi")
    vectors = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    vectors[0] = 0
    bvals = torch.tensor([0.0, *[1000] * (n - 1)], dtype=torch.float64)
    head = torch.zeros(9, 10, 11)
    head[2:7, 2:8, 2:9] = 1
    signal = head * (900 * (-bvals * 0.8e-3).exp().float())[:, None, None, None]
    signal = signal + 20 * torch.rand(signal.shape, generator=generator)
    return DWI(grid, signal, GradientTable(bvals, vectors, bvals == 0), torch.ones(9, 10, 11, dtype=torch.bool))


def test_written_series_is_read_back(tmp_path, oblique_affine):
    dwi = simulated(oblique_affine)
    nii, bval, bvec = (tmp_path / f"x{suffix}" for suffix in (".nii.gz", ".bval", ".bvec"))
    from tractode.fields import Image

    write_image(nii, Image(dwi.grid, dwi.signal))
    write_gradients(dwi.gtab, dwi.grid.affine, bval, bvec)
    again, notes = read_dwi(nii, bval, bvec, "sub-01_dwi")
    assert torch.equal(again.signal, dwi.signal)
    torch.testing.assert_close(again.gtab.bvecs, dwi.gtab.bvecs, atol=1e-7, rtol=0)
    assert [note.id for note in notes] == ["N-GRAD-SHELLS"]


def test_head_mask_finds_the_head(oblique_affine):
    dwi = simulated(oblique_affine)
    mask = head_mask(dwi.signal[0])
    expected = torch.zeros_like(mask)
    expected[2:7, 2:8, 2:9] = True
    assert torch.equal(mask, expected)


def test_brain_voxels_without_signal_are_left_out(tmp_path, oblique_affine):
    dwi = simulated(oblique_affine)
    signal = dwi.signal.clone()
    signal[:, 4, 4, 4] = 0
    dwi = dataclasses.replace(dwi, signal=signal)
    checked, notes = check_brain(dwi, tmp_path / "x.nii.gz")
    assert not bool(checked.mask[4, 4, 4])
    assert int(checked.mask.sum()) == dwi.mask.numel() - 1
    assert [note.id for note in notes] == ["W-DWI-HOLES"]
    with pytest.raises(InputDataError, match="E-DWI-NOBRAIN"):
        check_brain(dataclasses.replace(dwi, mask=torch.zeros_like(dwi.mask)), tmp_path / "x.nii.gz")


def test_unweighted_signal_from_two_shells(oblique_affine):
    """exp(−b D) at two b-values extrapolates exactly to b = 0."""
    n = 12
    vectors = torch.nn.functional.normalize(
        torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1
    )
    bvals = torch.tensor([1000.0] * 6 + [2000.0] * 6, dtype=torch.float64)
    grid = ImageGrid((2, 3, 4), oblique_affine, "sub-01_dwi")
    signal = (700 * (-bvals * 0.7e-3).exp())[:, None, None, None].expand(n, 2, 3, 4)
    dwi = DWI(grid, signal, GradientTable(bvals, vectors, bvals == 0), torch.ones(2, 3, 4, dtype=torch.bool))
    torch.testing.assert_close(dwi.mean_b0().values, torch.full((1, 2, 3, 4), 700.0, dtype=torch.float64))
