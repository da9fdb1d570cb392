"""The whole command: same seed same bytes, a valid BIDS dataset, read back as it was meant, and scored as perfect."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tractode.cli.score import main as score
from tractode.cli.simulate import main as simulate
from tractode.fields import Streamlines
from tractode.io.dwi import IngestPolicy, read_dwi
from tractode.io.nifti import read_image
from tractode.io.tractogram import read_tractogram, write_tractogram
from tractode.models.dti import DTI
from tractode.ops import sphere

pytestmark = pytest.mark.integration
COARSE = ["--resolution", "5", "--t1w-resolution", "5", "--shells", "1000:12", "--b0s", "2", "--fibres", "60"]
FEW = ["--bundles", "CCBody", "CSTL", "SLFR", "AFL"]
TURNED = ["--orientation", "PSR", "--oblique", "17", "--snr", "inf"]


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "bids"
    threads = torch.get_num_threads()
    assert simulate([str(out), "--seed", "7", *COARSE, *FEW, *TURNED]) == 0
    torch.set_num_threads(threads)
    return out


def test_same_seed_same_bytes(dataset: Path, tmp_path: Path) -> None:
    assert simulate([str(tmp_path / "again"), "--seed", "7", *COARSE, *FEW, *TURNED]) == 0
    again = hashes(tmp_path / "again")
    assert again == hashes(dataset)
    assert "sub-01/dwi/sub-01_dwi.nii.gz" in again


BESIDE = Path(sys.executable).with_name("bids-validator-deno")
VALIDATOR = str(BESIDE) if BESIDE.exists() else shutil.which("bids-validator-deno")


@pytest.mark.reference
@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
def test_raw_dataset_is_valid_bids(dataset: Path) -> None:
    run = subprocess.run(
        [VALIDATOR or "", "--format", "json", str(dataset)], capture_output=True, text=True, check=False
    )
    issues = json.loads(run.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_stored_table_and_image_give_back_the_direction_of_the_bundles(dataset: Path) -> None:
    """bvecs of an oblique PSR image, read by the ingest, must show the callosum left–right and every bundle along itself."""
    stem = dataset / "sub-01" / "dwi" / "sub-01_dwi"
    dwi, _ = read_dwi(
        stem.with_suffix(".nii.gz"), Path(f"{stem}.bval"), Path(f"{stem}.bvec"), "sub-01_dwi", IngestPolicy()
    )
    truth = dataset / "derivatives" / "truth" / "sub-01" / "dwi"
    single = read_image(truth / "sub-01_desc-singlefibre_mask.nii.gz", "sub-01_dwi")[0].mask
    model = DTI()
    direction = model.to_maps(model.fit(dwi.signal[:, single].mT.double(), dwi.gtab))["direction"]
    centres = dwi.grid.centres(torch.float64)[single]
    for name in ("CCBody", "CSTL", "SLFR"):
        lines, _ = read_tractogram(truth / f"sub-01_tract-{name}_tractogram.trx", "sub-01_dwi")
        along, at = lines.points.double().diff(dim=0), lines.points.double()[:-1]
        inside = torch.cdist(centres, at)
        near = inside.amin(1) < 1.5
        wanted = along[inside.argmin(1)][near]
        angle = sphere.angle(direction[near], wanted / wanted.norm(dim=-1, keepdim=True))
        assert near.sum() > 10
        assert torch.rad2deg(angle).median() < 8


@pytest.fixture
def perfect(dataset: Path, tmp_path: Path) -> Path:
    """Derivatives as the app names them, made of the truth itself."""
    truth, out = dataset / "derivatives" / "truth" / "sub-01", tmp_path / "derivatives" / "sub-01"
    (out / "dwi").mkdir(parents=True)
    (out / "anat").mkdir()
    for path in [*truth.glob("dwi/*model-tensor*.nii.gz"), *truth.glob("anat/*xfm.h5")]:
        shutil.copy(path, out / path.parent.name / path.name)
    parts = [read_tractogram(path, "sub-01_dwi")[0] for path in sorted(truth.glob("dwi/*_tractogram.trx"))]
    grid = read_image(truth / "dwi" / "sub-01_desc-brain_mask.nii.gz", "sub-01_dwi")[0].grid
    write_tractogram(
        out / "dwi" / "sub-01_track-sdstream_tractogram.trx", Streamlines.concatenate(parts, "sub-01_dwi"), grid
    )
    return tmp_path / "derivatives"


def test_truth_scored_against_itself_is_perfect(
    dataset: Path, perfect: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(["all", str(perfect), str(dataset / "derivatives" / "truth"), "--participant-label", "sub-01"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["fa_bias"] == 0
    assert got["fa_mae"] == 0
    assert got["v1_error_deg"] < 0.1
    assert got["valid_rate"] > 0.95
    assert got["warp_epe_mm"] < 0.1
    assert got["participants"]["01"]["warp"]["mean_before"] > 2
    assert got["n_participants"] == 1
    assert min(got["n"].values()) > 100


def test_errors_have_their_codes(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate([str(dataset)]) == 73  # not empty
    assert simulate([str(tmp_path / "x"), "--orientation", "RRS"]) == 64
    assert simulate([str(tmp_path / "x"), "--bundles", "Nowhere"]) == 64
    assert simulate([str(tmp_path / "x"), "--shells", "1000"]) == 64
    assert simulate([str(tmp_path / "x"), "--unknown"]) == 64
    assert score(["all", str(tmp_path / "x"), str(dataset)]) == 66
    assert score(["all", str(dataset), str(dataset / "derivatives" / "truth"), "--participant-label", "09"]) == 18
    assert score(["dti", str(tmp_path), str(dataset / "derivatives" / "truth")]) == 66
    assert not (tmp_path / "x").exists()
    assert "Traceback" not in capsys.readouterr().err
