"""Preprocessed scans under BIDS derivatives' names and in two studies' own folders; runs of one session as one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tractode.bids.found import Discovery
from tractode.bids.preprocessed import input_type_of, processed_by
from tractode.bids.query import find_participants
from tractode.errors import InvalidDatasetError, MissingInputError, NoMatchError


def image(path: Path, n: int = 4, shape: tuple[int, int, int] = (3, 4, 5), shift: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-2.0, 2.0, 2.5, 1.0])
    affine[:3, 3] = shift
    header = nib.Nifti1Image(np.ones((*shape, n), np.int16), affine)
    header.header.set_xyzt_units("mm", "sec")
    nib.save(header, path)
    return path


def series(path: Path, bvals: str = "0 1000 1000 1000", names: tuple[str, str] | None = None, **more: float) -> Path:
    image(path, len(bvals.split()), **more)
    stem = path.name.partition(".")[0]
    bval, bvec = names or (f"{stem}.bval", f"{stem}.bvec")
    path.with_name(bval).write_text(bvals + "\n")
    n = len(bvals.split())
    path.with_name(bvec).write_text(
        "\n".join(" ".join("1" if row == k % 3 else "0" for k in range(n)) for row in range(3))
    )
    return path


@pytest.fixture
def derivatives(tmp_path: Path) -> Path:
    generated = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "QSIPrep", "Version": "1.0.2"}]}
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.9.0", **generated}))
    for session in ("1", "2"):
        stem = f"sub-01/ses-{session}/dwi/sub-01_ses-{session}_acq-HASC_space-ACPC_desc"
        series(tmp_path / f"{stem}-preproc_dwi.nii.gz")
        (tmp_path / f"{stem}-preproc_dwi.json").write_text('{"PhaseEncodingDirection": "j"}')
        image(tmp_path / f"{stem}-brain_mask.nii.gz", 1)
    image(tmp_path / "sub-01/anat/sub-01_space-ACPC_desc-preproc_T1w.nii.gz", 1)
    image(tmp_path / "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-preproc_T1w.nii.gz", 1)
    return tmp_path


def hcp(root: Path) -> Path:
    folder = root / "100307" / "T1w"
    series(folder / "Diffusion" / "data.nii.gz", names=("bvals", "bvecs"))
    image(folder / "Diffusion" / "nodif_brain_mask.nii.gz", 1)
    image(folder / "T1w_acpc_dc_restore.nii.gz", 1)
    return root


def ukb(root: Path) -> Path:
    folder = root / "1000001_20250_2_0"
    series(folder / "dMRI" / "dMRI" / "data_ud.nii.gz", names=("bvals", "bvecs"))
    image(folder / "T1" / "T1_unbiased.nii.gz", 1)
    return root


def test_derivatives_are_recognised_and_read(derivatives: Path) -> None:
    assert input_type_of(derivatives) == "qsiprep"
    (participant,) = find_participants(derivatives).participants
    assert [run.name for run in participant.runs] == ["sub-01_ses-1_acq-HASC", "sub-01_ses-2_acq-HASC"]
    run = participant.runs[0]
    assert run.done_by == "QSIPrep 1.0.2"
    assert run.metadata == {"PhaseEncodingDirection": "j"}
    assert run.mask is not None
    assert run.mask.name.endswith("_space-ACPC_desc-brain_mask.nii.gz")
    assert set(run.files) == {run.path, run.bval, run.bvec, run.sidecars[0], run.mask}
    assert {anat.path.name for anat in participant.anats} == {"sub-01_space-ACPC_desc-preproc_T1w.nii.gz"}
    assert participant.corrections == ()


def test_sessions_and_participants_are_chosen(derivatives: Path) -> None:
    found = find_participants(derivatives, participants=["sub-01"], sessions=["ses-2"])
    assert [run.session for run in found.participants[0].runs] == ["2"]
    assert found.ignored[0].reason == "its session was not asked for"
    with pytest.raises(NoMatchError, match="sub-02"):
        find_participants(derivatives, participants=["02"])
    series(derivatives / "sub-03/ses-1/dwi/sub-03_ses-1_space-ACPC_desc-preproc_dwi.nii.gz")
    found = find_participants(derivatives, sessions=["2"], combine_runs=True)
    assert [person.label for person in found.participants] == ["01"]
    assert {note.id for note in found.notes} == {"W-DATA-NODWI", "W-INPUT-UNUSED"}
    found = find_participants(derivatives, participants=["01", "03"], sessions=["2"])
    assert [failure.error.id for failure in found.failures] == ["E-DATA-NODWI"]
    with pytest.raises(NoMatchError, match="session 7"):
        find_participants(derivatives, sessions=["7"])


def test_a_missing_table_is_that_runs_failure(derivatives: Path) -> None:
    next(derivatives.rglob("*ses-1*.bvec")).unlink()
    (participant,) = find_participants(derivatives).participants
    assert [run.session for run in participant.runs] == ["2"]
    assert isinstance(participant.failures[0].error, MissingInputError)


@pytest.mark.parametrize(
    ("make", "kind", "entities", "anat"),
    [
        (hcp, "hcpya", {"sub": "100307"}, "T1w_acpc_dc_restore.nii.gz"),
        (ukb, "ukb", {"sub": "1000001", "ses": "2"}, "T1_unbiased.nii.gz"),
    ],
)
def test_the_folders_of_studies(
    tmp_path: Path, make: Callable[[Path], Path], kind: str, entities: dict[str, str], anat: str
) -> None:
    root = make(tmp_path)
    assert input_type_of(root) == kind
    found: Discovery = find_participants(root)
    (run,) = found.participants[0].runs
    assert run.entities == entities
    assert run.done_by
    assert run.bval.name == "bvals"
    assert found.participants[0].anats[0].path.name == anat
    with pytest.raises(InvalidDatasetError, match="qsiprep"):
        find_participants(root, input_type="qsiprep")


def test_a_raw_dataset_stays_one(tmp_path: Path) -> None:
    series(tmp_path / "sub-01/dwi/sub-01_dwi.nii.gz")
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    assert input_type_of(tmp_path) == "bids"
    (run,) = find_participants(tmp_path).participants[0].runs
    assert run.done_by == ""
    (tmp_path / "sub-01/dwi/sub-01_dwi.json").write_text('{"Sources": ["bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"]}')
    (run,) = find_participants(tmp_path).participants[0].runs
    assert run.done_by == processed_by(run.metadata) != ""


def test_our_own_output_is_preprocessed(derivatives: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("ours")
    series(root / "sub-01/dwi/sub-01_run-1_desc-preproc_dwi.nii.gz")
    shutil.copy(derivatives / "dataset_description.json", root)
    (participant,) = find_participants(root).participants
    assert participant.runs[0].name == "sub-01_run-1"


def test_runs_of_a_session_are_combined(tmp_path: Path) -> None:
    folder = tmp_path / "sub-01" / "dwi"
    for direction, sign in (("AP", "j-"), ("PA", "j")):
        path = series(folder / f"sub-01_acq-x_dir-{direction}_dwi.nii.gz", shift=1.0 if sign == "j" else 0.0)
        path.with_name(f"sub-01_acq-x_dir-{direction}_dwi.json").write_text(
            json.dumps({"PhaseEncodingDirection": sign, "TotalReadoutTime": 0.05, "EchoTime": 0.08})
        )
    series(folder / "sub-01_acq-b0_dwi.nii.gz", "0 0")
    series(folder / "sub-01_acq-coarse_dwi.nii.gz", shape=(3, 3, 3))
    found = find_participants(tmp_path, combine_runs=True)
    (participant,) = found.participants
    assert {run.name for run in participant.runs} == {"sub-01_acq-x", "sub-01_acq-coarse"}
    merged = next(run for run in participant.runs if run.parts)
    assert [part.entities["dir"] for part in merged.scans] == ["AP", "PA"]
    assert merged.metadata == {"TotalReadoutTime": 0.05, "EchoTime": 0.08}
    assert len(merged.files) == 8
    kinds = {correction.run.name: correction.kind for correction in participant.corrections}
    assert kinds["sub-01_acq-x_dir-AP"] == kinds["sub-01_acq-x_dir-PA"] == "reversed"
    assert any("b=0 volumes only" in note.message for note in found.notes)


def test_without_being_asked_runs_stay_apart(tmp_path: Path) -> None:
    for run in ("1", "2"):
        series(tmp_path / "sub-01" / "dwi" / f"sub-01_run-{run}_dwi.nii.gz")
    assert len(find_participants(tmp_path).participants[0].runs) == 2
    (run,) = find_participants(tmp_path, combine_runs=True).participants[0].runs
    assert run.name == "sub-01"
