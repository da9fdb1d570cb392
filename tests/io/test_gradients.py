"""Gradient tables in the scanner frame: agreement with MRtrix3, the round trip, b=0, shells and provenance."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tractode.errors import InputDataError
from tractode.fields import GradientTable, ImageGrid
from tractode.fields.scheme import scheme_of
from tractode.io.gradient_checks import check_models, provenance_notes
from tractode.io.gradient_scheme import count_axes, design_condition, find_b0
from tractode.io.gradients import GradientPolicy, read_gradients, write_gradients, write_mrtrix_gradients
from tractode.models import MODELS

SHAPE = (3, 4, 5)
needs_mrtrix = pytest.mark.skipif(shutil.which("mrinfo") is None, reason="MRtrix3 is not installed")


def table(n: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0
    return np.array([0.0, *[1000] * (n - 1)]), vectors


def save(folder: Path, bvals: np.ndarray, vectors: np.ndarray) -> tuple[Path, Path]:
    bval, bvec = folder / "x.bval", folder / "x.bvec"
    bval.write_text(" ".join(f"{b:g}" for b in bvals))
    bvec.write_text("\n".join(" ".join(f"{c:.10f}" for c in row) for row in vectors.T))
    return bval, bvec


def storage_affines(n_obliques: int) -> list[np.ndarray]:
    """48 storage orientations × obliques from 0° to beyond 45°, anisotropic, off-origin."""
    rng = np.random.default_rng(7)
    affines = []
    for n in range(n_obliques):
        turn = Rotation.from_rotvec(rng.normal(size=3) * np.radians(3 * n) / 1.7).as_matrix()
        for order in itertools.permutations(range(3)):
            for signs in itertools.product((1, -1), repeat=3):
                axes = np.eye(3)[:, order] * signs
                affine = np.eye(4)
                affine[:3, :3] = turn @ axes @ np.diag([2.0, 2.3, 2.9])
                affine[:3, 3] = [-31, 17, 44]
                affines.append(affine)
    return affines


def save_images(folder: Path, affines: list[np.ndarray], n_volumes: int) -> list[Path]:
    paths = []
    for n, affine in enumerate(affines):
        image = nib.Nifti1Image(np.ones((*SHAPE, n_volumes), np.uint8), affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        paths.append(folder / f"{n:04}.nii")
        image.to_filename(paths[-1])
    return paths


def mrtrix_tables(arguments: list[str], n_volumes: int) -> np.ndarray:
    done = subprocess.run(["mrinfo", "-quiet", *arguments, "-dwgrad"], capture_output=True, text=True, check=True)
    return np.array(done.stdout.split(), float).reshape(-1, n_volumes, 4)


def largest_angle(first: np.ndarray, second: np.ndarray) -> float:
    """Degrees between unit vectors, signs counted; by chords, for the cosine is blind to small angles."""
    return float(np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(first - second, axis=-1) / 2, 0, 1))).max())


@needs_mrtrix
@pytest.mark.reference
def test_48_orientations_by_20_obliques_agree_with_mrtrix(tmp_path):
    bvals, vectors = table()
    bval, bvec = save(tmp_path, bvals, vectors)
    affines = storage_affines(20)
    paths = save_images(tmp_path, affines, len(bvals))
    assert len(paths) == 960
    theirs = mrtrix_tables([*map(str, paths), "-fslgrad", str(bvec), str(bval)], len(bvals))
    stored = [nib.load(path).affine for path in paths]
    ours = [read_gradients(bval, bvec, torch.tensor(affine), len(bvals))[0] for affine in stored]
    angles = [largest_angle(o.bvecs[1:].numpy(), t[1:, :3]) for o, t in zip(ours, theirs, strict=True)]
    assert max(angles) < 0.01
    np.testing.assert_allclose(theirs[0, :, 3], bvals)
    # The affines are not all alike: one of the other storages would be far off.
    assert largest_angle(ours[0].bvecs[1:].numpy(), theirs[1][1:, :3]) > 20


@needs_mrtrix
@pytest.mark.reference
def test_what_we_write_mrtrix_reads_as_the_same_directions(tmp_path):
    bvals, vectors = table()
    gtab = GradientTable(torch.tensor(bvals), torch.tensor(vectors), torch.tensor(bvals == 0))
    affines = storage_affines(4)[::4]
    for n, path in enumerate(save_images(tmp_path, affines, len(bvals))):
        bval, bvec = tmp_path / "w.bval", tmp_path / "w.bvec"
        write_gradients(gtab, torch.tensor(affines[n]), bval, bvec)
        theirs = mrtrix_tables([str(path), "-fslgrad", str(bvec), str(bval)], len(bvals))[0]
        assert largest_angle(theirs[1:, :3], vectors[1:]) < 0.01


@needs_mrtrix
@pytest.mark.reference
@pytest.mark.parametrize(
    "name", ["sub-xa30_dir-PA", "sub-prismasag_acq-mosaic_dir-HF", "sub-canonA_acq-SAGortho_dir-PA", "sub-philipsslab"]
)
def test_real_tables_agree_with_mrtrix(test_data, name):
    stem = test_data / "bids_real" / name.split("_")[0] / "dwi" / f"{name}_dwi"
    nii, bval, bvec = (stem.with_name(stem.name + suffix) for suffix in (".nii.gz", ".bval", ".bvec"))
    affine = torch.tensor(nib.load(nii).affine)
    gtab, _ = read_gradients(bval, bvec, affine)
    theirs = mrtrix_tables([str(nii), "-fslgrad", str(bvec), str(bval)], len(gtab))[0]
    weighted = ~gtab.is_b0.numpy()
    # A norm of 0.9995 is left as it is there; ours are unit.
    expected = theirs[weighted, :3] / np.linalg.norm(theirs[weighted, :3], axis=1, keepdims=True)
    assert largest_angle(gtab.bvecs.numpy()[weighted], expected) < 0.01


@needs_mrtrix
@pytest.mark.reference
def test_mrtrix_reads_our_mrtrix_table(tmp_path, oblique_affine):
    bvals, vectors = table()
    gtab = GradientTable(torch.tensor(bvals), torch.tensor(vectors), torch.tensor(bvals == 0))
    write_mrtrix_gradients(gtab, tmp_path / "x.b")
    [path] = save_images(tmp_path, [oblique_affine.numpy()], len(bvals))
    theirs = mrtrix_tables([str(path), "-grad", str(tmp_path / "x.b")], len(bvals))[0]
    assert largest_angle(theirs[1:, :3], vectors[1:]) < 0.01
    np.testing.assert_allclose(theirs[:, 3], bvals)


def test_known_answers_by_hand(tmp_path):
    """Stored x in a left-handed LAS image points left; in a right-handed RAS image it is turned, and points left too."""
    bval, bvec = save(tmp_path, np.array([0.0, 1000, 1000]), np.array([[0.0, 0, 0], [1, 0, 0], [0, 0.6, 0.8]]))
    for sign in (-1.0, 1.0):
        gtab, _ = read_gradients(bval, bvec, torch.diag(torch.tensor([sign * 2, 2, 2, 1], dtype=torch.float64)), 3)
        np.testing.assert_allclose(gtab.bvecs.numpy(), [[0, 0, 0], [-1, 0, 0], [0, 0.6, 0.8]], atol=1e-12)


@pytest.mark.parametrize("index", range(0, 96, 5))
def test_write_then_read_is_identity(tmp_path, index):
    bvals, vectors = table(seed=index)
    affine = torch.tensor(storage_affines(2)[index])
    gtab = GradientTable(torch.tensor(bvals), torch.tensor(vectors), torch.tensor(bvals == 0))
    bval, bvec = tmp_path / "x.bval", tmp_path / "x.bvec"
    write_gradients(gtab, affine, bval, bvec)
    again, notes = read_gradients(bval, bvec, affine, len(bvals))
    np.testing.assert_allclose(again.bvecs.numpy(), vectors, atol=1e-8)
    np.testing.assert_allclose(again.bvals.numpy(), bvals)
    assert again.is_b0.tolist() == gtab.is_b0.tolist()
    assert not notes
    assert "-0 " not in bvec.read_text()


def test_without_signal_a_weighted_volume_needs_its_direction(tmp_path):
    bvals, vectors = table()
    vectors[4] = 0
    with pytest.raises(InputDataError, match=r"E-GRAD-NODIRECTION.*no signal to tell"):
        read_gradients(*save(tmp_path, bvals, vectors), torch.eye(4), 12)


@pytest.mark.parametrize(
    ("bvals", "expected"),
    [
        ([0, 1000], [1, 0]),
        ([5, 1000], [1, 0]),
        ([0, 45, 1000], [1, 1, 0]),
        ([60, 1000], [1, 0]),
        ([100, 1000], [1, 0]),
        ([110, 1000], [0, 0]),
        ([0, 90, 1000], [1, 0, 0]),
        ([0, 10, 20, 30, 50, 80, 100, 200, 500], [1, 1, 1, 1, 1, 0, 0, 0, 0]),
        ([60, 100, 200, 1000], [0, 0, 0, 0]),
        ([0.001, 0.004, 1000], [1, 1, 0]),
    ],
)
def test_b0_is_the_lowest_cluster(bvals, expected):
    assert find_b0(np.array(bvals, float)).tolist() == [bool(e) for e in expected]


def sphere_table(n: int, bvals: np.ndarray) -> GradientTable:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(n, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return GradientTable(torch.tensor(bvals, dtype=torch.float64), torch.tensor(vectors), torch.tensor(bvals < 50))


def grid_table(turn: np.ndarray) -> GradientTable:
    q = np.array([s for s in itertools.product(range(-4, 5), repeat=3) if sum(c * c for c in s) <= 16], float)
    squares = (q**2).sum(1)
    directions = (q / np.sqrt(squares.clip(1))[:, None]) @ turn.T
    return GradientTable(torch.tensor(squares * 250), torch.tensor(directions), torch.tensor(squares == 0))


def test_schemes_are_told_apart():
    rng = np.random.default_rng(4)
    assert scheme_of(sphere_table(30, np.full(30, 1000.0) + rng.uniform(-15, 15, 30))) == "single-shell"
    assert scheme_of(sphere_table(90, np.repeat([1000.0, 2000, 3000], 30))) == "multi-shell"
    assert scheme_of(sphere_table(120, np.repeat([300.0, 700, 1500, 2800], 30))) == "multi-shell"
    assert scheme_of(grid_table(np.eye(3))) == "grid"
    assert scheme_of(grid_table(Rotation.from_euler("xyz", [20, 35, -50], degrees=True).as_matrix())) == "grid"
    assert scheme_of(sphere_table(100, rng.uniform(200, 8000, 100))) == "scattered"


def test_design_condition_against_the_normal_equations():
    directions = sphere_table(20, np.full(20, 1000.0)).bvecs.numpy()
    design = np.array([[x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z] for x, y, z in directions])
    assert design_condition(directions) == pytest.approx(np.sqrt(np.linalg.cond(design.T @ design)))
    assert np.isinf(design_condition(directions[:5]))
    assert count_axes(np.concatenate([directions, -directions])) == 20


def test_models_are_refused_where_the_scheme_does_not_fit(tmp_path):
    """A grid or scattered table feeds a tensor, but no deconvolution of a shell."""
    bval, scattered = tmp_path / "x.bval", np.random.default_rng(4).uniform(200, 8000, 100)
    for gtab, scheme in ((grid_table(np.eye(3)), "grid"), (sphere_table(100, scattered), "scattered")):
        refused = check_models(gtab, ["dti", "csd"], MODELS, bval)
        assert list(refused) == ["csd"]
        assert f"CSD needs a single-shell or multi-shell scheme; this table is a {scheme} scheme" in refused["csd"]
        with pytest.raises(InputDataError, match=r"E-GRAD-MODELS.*csd: .*choose with --models among dti, "):
            check_models(gtab, ["csd"], MODELS, bval)
    bvals = np.array([0.0, *[1000] * 29])
    assert check_models(sphere_table(30, bvals), ["dti", "csd"], MODELS, bval) == {}


def test_policy_by_threshold(tmp_path):
    bvals, vectors = table()
    bvals[1] = 200
    gtab, _ = read_gradients(
        *save(tmp_path, bvals, vectors), torch.eye(4), 12, policy=GradientPolicy(b0_threshold=200.0)
    )
    assert gtab.is_b0.tolist() == [True, True] + [False] * 10


def lps_orientation(affine: torch.Tensor) -> list[float]:
    axes = (affine[:3, :3] / affine[:3, :3].norm(dim=0)).numpy()
    return [*(axes[:, 0] * [-1, -1, 1]), *(axes[:, 1] * [-1, -1, 1])]


def test_provenance_of_the_frame(oblique_affine):
    grid, bvec = ImageGrid((8, 8, 8), oblique_affine, "sub-01_dwi"), Path("x.bvec")
    dcm2niix = {"ConversionSoftware": "dcm2niix", "ConversionSoftwareVersion": "v1.0"}
    scanned = {"ImageOrientationPatientDICOM": lps_orientation(oblique_affine)}
    assert [note.id for note in provenance_notes({}, grid, bvec)] == ["W-GRAD-CONVERTER"]
    assert [note.id for note in provenance_notes({**dcm2niix, **scanned}, grid, bvec)] == ["N-GRAD-CONVERTER"]
    turned = oblique_affine.clone()
    turned[:3, :3] = torch.tensor(Rotation.from_euler("x", 6, degrees=True).as_matrix()) @ turned[:3, :3]
    notes = provenance_notes({**dcm2niix, "ImageOrientationPatientDICOM": lps_orientation(turned)}, grid, bvec)
    assert [note.id for note in notes] == ["N-GRAD-CONVERTER", "W-GRAD-FRAME"]
    assert "6.0°" in notes[1].message
    straight = ImageGrid((8, 8, 8), torch.diag(torch.tensor([2.0, 2, 2, 1])), "sub-01_dwi")
    assert provenance_notes({}, straight, bvec) == []


def test_no_text_makes_the_reader_crash(tmp_path):
    """Bytes of a good table changed at random: read, or refused with an error of ours; never another exception."""
    bvals, vectors = table()
    bval, bvec = save(tmp_path, bvals, vectors)
    whole, rng, refused = bvec.read_bytes(), np.random.default_rng(8), 0
    for _ in range(120):
        raw = bytearray(whole)
        for position in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[position] = rng.choice(np.frombuffer(b" ,;.-+e\n\r\t#0123456789nN\0\xef\xbb", np.uint8))
        bvec.write_bytes(raw)
        try:
            gtab, _ = read_gradients(bval, bvec, torch.eye(4), len(bvals))
        except InputDataError:
            refused += 1
            continue
        norms = gtab.bvecs[1:].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    assert 20 < refused < 120
