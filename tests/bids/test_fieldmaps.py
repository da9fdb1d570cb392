"""Which field map corrects which run: every rule of linking and of encoding is a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tractode.bids.found import Correction
from tractode.bids.phase_encoding import NOMINAL_READOUT, encoding_of
from tractode.bids.query import find_participants
from tractode.errors import InputDataError

AP, PA = (
    {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05},
    {"PhaseEncodingDirection": "j", "TotalReadoutTime": 0.04},
)
DIFF = {"EchoTime1": 0.00492, "EchoTime2": 0.00738}
T1W, DWI, EPI = "sub-01/anat/sub-01_T1w", "sub-01/dwi/sub-01_dwi", "sub-01/fmap/sub-01_dir-PA_epi"
DWI_AP, DWI_PA = "sub-01/dwi/sub-01_dir-AP_dwi", "sub-01/dwi/sub-01_dir-PA_dwi"
PHASEDIFF, MAGNITUDE = "sub-01/fmap/sub-01_phasediff", "sub-01/fmap/sub-01_magnitude1"
PHASE1, PHASE2, FIELD = (f"sub-01/fmap/sub-01_{suffix}" for suffix in ("phase1", "phase2", "fieldmap"))
MAP = {PHASEDIFF: DIFF, MAGNITUDE: {}}


def dataset(root: Path, files: dict[str, dict[str, Any]]) -> Path:
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for stem, metadata in files.items():
        path = root / f"{stem}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(metadata))
        if stem.endswith("_dwi"):
            (root / f"{stem}.bval").write_text("0 1000\n")
            (root / f"{stem}.bvec").write_text("0 1\n0 0\n0 0\n")
    return root


def corrections(root: Path, files: dict[str, dict[str, Any]], **request: Any) -> dict[str, Correction]:
    participant = find_participants(dataset(root, files), **request).participants[0]
    assert not participant.failures, participant.failures
    return {correction.run.name: correction for correction in participant.corrections}


def only(root: Path, files: dict[str, dict[str, Any]], **request: Any) -> Correction:
    (correction,) = corrections(root, files, **request).values()
    return correction


def paths(correction: Correction) -> list[str]:
    return [path.name.partition(".")[0] for path in correction.paths]


# What is found → kind, images, words in the reason or the link.
ROWS: dict[str, tuple[dict[str, dict[str, Any]], dict[str, Any], str, list[str], str]] = {
    "nothing at all": ({DWI: AP}, {}, "none", [], "no reversed pair"),
    "anatomy": ({DWI: AP, T1W: {}}, {}, "anatomy", [], "no field was measured"),
    "an epi without a link": ({DWI: AP, EPI: PA}, {}, "reversed", ["sub-01_dwi", "sub-01_dir-PA_epi"], "no link given"),
    "phasediff without a link": ({DWI: AP, **MAP}, {}, "phasediff", ["sub-01_phasediff", "sub-01_magnitude1"], "no link given"),
    "a pair before a field map": ({DWI: AP, EPI: PA, **MAP, T1W: {}}, {}, "reversed", ["sub-01_dwi", "sub-01_dir-PA_epi"], ""),
    "a field map before the anatomy": ({DWI: AP, **MAP, T1W: {}}, {}, "phasediff", ["sub-01_phasediff", "sub-01_magnitude1"], ""),
    "two phases": (
        {DWI: AP, PHASE1: {"EchoTime": 0.005}, PHASE2: {"EchoTime": 0.0075}, MAGNITUDE: {}}, {},
        "phases", ["sub-01_phase1", "sub-01_phase2", "sub-01_magnitude1"], "",
    ),
    "a field in Hz": (
        {DWI: AP, FIELD: {"Units": "Hz"}, "sub-01/fmap/sub-01_magnitude": {}}, {},
        "fieldmap", ["sub-01_fieldmap", "sub-01_magnitude"], "",
    ),
    "phasediff without magnitude": ({DWI: AP, PHASEDIFF: DIFF}, {}, "none", [], ""),
    "phasediff without echo times": ({DWI: AP, PHASEDIFF: {}, MAGNITUDE: {}}, {}, "none", [], ""),
    "M01 no phase encoding": ({DWI: {}, EPI: PA, T1W: {}}, {}, "none", [], "PhaseEncodingDirection"),
    "M01 the epi has none": ({DWI: AP, EPI: {}}, {}, "none", [], ""),
    "a field map without the run's readout": ({DWI: {"PhaseEncodingDirection": "j"}, **MAP}, {}, "none", [], ""),
    "M03 only the axis": ({DWI: {"PhaseEncodingAxis": "j"}, EPI: PA}, {}, "reversed", ["sub-01_dwi", "sub-01_dir-PA_epi"], ""),
    "M04 both alike, but a field map": (
        {"sub-01/dwi/sub-01_dir-AP_dwi": AP, EPI: AP, **MAP}, {}, "phasediff", ["sub-01_phasediff", "sub-01_magnitude1"], ""
    ),
    "M06 IntendedFor, relative": ({DWI: AP, EPI: {**PA, "IntendedFor": "dwi/sub-01_dwi.nii.gz"}}, {}, "reversed", ["sub-01_dwi", "sub-01_dir-PA_epi"], "IntendedFor"),
    "M06 IntendedFor, a URI": ({DWI: AP, EPI: {**PA, "IntendedFor": ["bids::sub-01/dwi/sub-01_dwi.nii.gz"]}}, {}, "reversed", ["sub-01_dwi", "sub-01_dir-PA_epi"], "IntendedFor"),
    "M06 IntendedFor, from the root": ({DWI: AP, EPI: {**PA, "IntendedFor": "sub-01/dwi/sub-01_dwi.nii.gz"}}, {}, "reversed", ["sub-01_dwi", "sub-01_dir-PA_epi"], "IntendedFor"),
    "M06 for another image only": ({DWI: AP, EPI: {**PA, "IntendedFor": "func/sub-01_task-x_bold.nii.gz"}}, {}, "none", [], ""),
    "B0FieldSource": (
        {DWI: {**AP, "B0FieldSource": "b"}, EPI: {**PA, "B0FieldIdentifier": "a"}, PHASEDIFF: {**DIFF, "B0FieldIdentifier": ["b"]}, MAGNITUDE: {"B0FieldIdentifier": "b"}},
        {}, "phasediff", ["sub-01_phasediff", "sub-01_magnitude1"], "B0FieldSource 'b'",
    ),
    "--sdc fieldmap": ({DWI: AP, EPI: PA, **MAP}, {"sdc": "fieldmap"}, "phasediff", ["sub-01_phasediff", "sub-01_magnitude1"], ""),
    "--sdc anatomy": ({DWI: AP, EPI: PA, T1W: {}}, {"sdc": "anatomy"}, "anatomy", [], "--sdc anatomy"),
    "--sdc none": ({DWI: AP, EPI: PA, T1W: {}}, {"sdc": "none"}, "none", [], "--sdc none"),
    "--sdc reversed, none there": ({DWI: AP, **MAP}, {"sdc": "reversed"}, "none", [], "--sdc reversed"),
    "--ignore fieldmaps": ({DWI: AP, EPI: PA, T1W: {}}, {"ignore_fieldmaps": True}, "anatomy", [], ""),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_rules(row: str, tmp_path: Path) -> None:
    files, request, kind, images, said = ROWS[row]
    found = only(tmp_path, files, **request)
    assert (found.kind, paths(found)) == (kind, images)
    assert said in f"{found.reason} {found.link}"


# What contradicts itself → the error and what it names.
FAILURES: dict[str, tuple[dict[str, dict[str, Any]], dict[str, Any], str, str]] = {
    "M04 two runs": ({DWI_AP: PA, DWI_PA: PA}, {}, "E-FMAP-SAMEWAY", r"dir-AP_dwi.nii.gz and sub-01_dir-PA_dwi.nii.gz"),
    "M04 run and epi": ({DWI_AP: PA, EPI: PA}, {}, "E-FMAP-SAMEWAY", r"dir-AP_dwi.nii.gz and sub-01_dir-PA_epi.nii.gz"),
    "M06 stale": ({DWI: AP, EPI: {**PA, "IntendedFor": "dwi/sub-01_acq-old_dwi.nii.gz"}}, {}, "E-FMAP-INTENDED", "dir-PA_epi.nii.gz → dwi/sub-01_acq-old"),
    "B0FieldSource of nothing": ({DWI: {**AP, "B0FieldSource": "x"}, EPI: {**PA, "B0FieldIdentifier": "y"}}, {}, "E-FMAP-SOURCE", "'x'"),
    "--require-sdc": ({DWI: {}}, {"needs_correction": True}, "E-SDC-NONE", "PhaseEncodingDirection"),
}  # fmt: skip


@pytest.mark.parametrize("row", FAILURES)
def test_contradictions_fail_the_run_and_name_the_file(row: str, tmp_path: Path) -> None:
    files, request, id, named = FAILURES[row]
    participant = find_participants(dataset(tmp_path, files), **request).participants[0]
    assert not participant.runs
    for failure in participant.failures:
        assert isinstance(failure.error, InputDataError)
        assert failure.error.id == id
    assert any(named in str(failure.error) for failure in participant.failures), participant.failures


def test_contradictory_links_do_not_matter_without_correction(tmp_path: Path) -> None:
    for number, row in enumerate(("M04 two runs", "M06 stale")):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = corrections(folder, FAILURES[row][0], sdc="none")
        assert {correction.kind for correction in found.values()} == {"none"}


def test_two_runs_of_opposite_encoding_share_one_field(tmp_path: Path) -> None:
    found = corrections(tmp_path, {DWI_AP: AP, DWI_PA: PA, T1W: {}})
    first, second = found["sub-01_dir-AP"], found["sub-01_dir-PA"]
    assert first.kind == second.kind == "reversed"
    assert first.key == second.key
    assert [(scan.encoding.sign, scan.encoding.readout) for scan in first.scans] == [(-1, 0.05), (1, 0.04)]
    assert first.encoding is not None
    assert second.encoding is not None
    assert (first.encoding.sign, second.encoding.sign) == (-1, 1)


def test_m03_runs_that_state_an_axis_only_are_opposite_if_their_labels_are(tmp_path: Path) -> None:
    axis = {"PhaseEncodingAxis": "j"}
    found = corrections(tmp_path, {DWI_AP: axis, DWI_PA: axis})["sub-01_dir-PA"]
    assert [(scan.encoding.sign, scan.encoding.readout) for scan in found.scans] == [
        (1, NOMINAL_READOUT), (-1, NOMINAL_READOUT)
    ]  # fmt: skip
    assert any("sign is tried" in note for note in found.scans[0].encoding.notes)
    (tmp_path / "b").mkdir()
    unlabelled = {f"sub-01/dwi/sub-01_run-{n}_dwi": axis for n in (1, 2)}
    assert {found.kind for found in corrections(tmp_path / "b", unlabelled).values()} == {"none"}


def test_m08_runs_of_another_grid_are_no_pair(tmp_path: Path) -> None:
    import nibabel as nib

    dataset(tmp_path, {DWI_AP: AP, DWI_PA: PA})
    for stem, size in ((DWI_AP, 2.0), (DWI_PA, 2.5)):
        image = nib.Nifti1Image(np.ones((5, 5, 5, 2), np.float32), np.diag([-size, size, size, 1]))
        nib.save(image, tmp_path / f"{stem}.nii.gz")
    participant = find_participants(tmp_path).participants[0]
    assert {correction.kind for correction in participant.corrections} == {"none"}


def test_m11_a_field_map_of_another_session_serves_nobody_unless_it_says_so(tmp_path: Path) -> None:
    one, two = "sub-01/ses-1/dwi/sub-01_ses-1_dwi", "sub-01/ses-2/dwi/sub-01_ses-2_dwi"
    epi = "sub-01/ses-1/fmap/sub-01_ses-1_dir-PA_epi"
    found = corrections(tmp_path, {one: AP, two: AP, epi: PA})
    assert {name: correction.kind for name, correction in found.items()} == {
        "sub-01_ses-1": "reversed", "sub-01_ses-2": "none"
    }  # fmt: skip
    assert found["sub-01_ses-2"].rows == (("sub-01_ses-1_dir-PA_epi.nii.gz", "of another session (1)", "not used"),)
    (tmp_path / "b").mkdir()
    linked = {**PA, "IntendedFor": "ses-2/dwi/sub-01_ses-2_dwi.nii.gz"}
    found = corrections(tmp_path / "b", {one: AP, two: AP, epi: linked})
    assert {name: correction.kind for name, correction in found.items()} == {
        "sub-01_ses-1": "none", "sub-01_ses-2": "reversed"
    }  # fmt: skip


def test_every_field_map_has_a_row_that_says_what_became_of_it(tmp_path: Path) -> None:
    found = only(tmp_path, {DWI: AP, EPI: PA, **MAP})
    rows = {name: (link, use) for name, link, use in found.rows}
    assert rows["sub-01_dir-PA_epi.nii.gz"][1] == "used"
    assert rows["sub-01_phasediff.nii.gz"][1] == "not used: reversed phase encoding is preferred"


@pytest.mark.parametrize(
    ("metadata", "readout", "said"),
    [
        ({"TotalReadoutTime": 0.05}, 0.05, ""),
        ({"EstimatedTotalReadoutTime": 0.03}, 0.03, "EstimatedTotalReadoutTime 0.03 s is used"),
        ({"EffectiveEchoSpacing": 0.0005, "ReconMatrixPE": 101}, 0.05, "EffectiveEchoSpacing × (ReconMatrixPE − 1) = 0.0005 s × 100 = 0.05 s"),
        ({"TotalReadoutTime": 50, "EffectiveEchoSpacing": 0.0005, "ReconMatrixPE": 101}, 0.05, "TotalReadoutTime 50 is not in seconds"),
        ({}, None, "no readout time in the sidecar"),
    ],
)  # fmt: skip
def test_m02_the_readout_time_and_the_formula_it_came_by(metadata: dict, readout: float | None, said: str) -> None:
    encoding = encoding_of({"PhaseEncodingDirection": "i-", **metadata})
    assert encoding is not None
    assert (encoding.axis, encoding.sign) == (0, -1)
    assert encoding.readout == pytest.approx(readout)
    assert said in " ".join(encoding.notes)
