"""Discovery: what sessions, filters and labels choose, and which anatomical image goes with a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.bids.raw_dataset import SIDECAR, add_run, write

from tractode.bids.query import choose_anat, explain_anat, find_participants
from tractode.errors import (
    ConfigurationError,
    MissingInputError,
    NoMatchError,
)


def _reasons(dataset: Path, **request) -> dict[str, str]:
    return {file.path: file.reason for file in find_participants(dataset, **request).ignored}


def test_sessions(dataset: Path) -> None:
    add_run(dataset, "sub-03_ses-a")
    add_run(dataset, "sub-03_ses-b")
    found = find_participants(dataset, participants=["03"])
    assert found.participants[0].sessions == ("a", "b")
    found = find_participants(dataset, participants=["03"], sessions=["ses-b"])
    assert [run.name for run in found.participants[0].runs] == ["sub-03_ses-b"]
    assert (
        _reasons(dataset, sessions=["b"])["sub-03/ses-a/dwi/sub-03_ses-a_dwi.nii.gz"] == "its session was not asked for"
    )
    with pytest.raises(NoMatchError, match="a, b"):
        find_participants(dataset, sessions=["c"])


def test_runs_in_and_outside_sessions_need_a_choice(dataset: Path) -> None:
    add_run(dataset, "sub-02_ses-a")
    (failure,) = find_participants(dataset).failures
    assert (failure.error.id, failure.error.exit_code) == ("E-DATA-SESSIONS", 65)
    found = find_participants(dataset, participants=["02"], sessions=["a"])
    assert [run.name for run in found.participants[0].runs] == ["sub-02_ses-a"]


def test_filters_select_with_null_and_any(dataset: Path) -> None:
    found = find_participants(
        dataset, participants=["01"], filters={"dwi": {"direction": "PA"}, "t1w": {"acquisition": None}}
    )
    assert [run.name for run in found.participants[0].runs] == ["sub-01_dir-PA"]
    assert [anat.path.name for anat in found.participants[0].anats] == ["sub-01_T1w.nii.gz"]
    found = find_participants(
        dataset, filters={"T1w": {"acquisition": "*"}, "dwi": {"direction": ["AP", None]}, "bold": {"task": "x"}}
    )
    assert [anat.path.name for anat in found.participants[0].anats] == ["sub-01_acq-nonorm_T1w.nii.gz"]
    assert [run.name for p in found.participants for run in p.runs] == ["sub-01_dir-AP", "sub-02"]
    assert {file.reason for file in found.ignored} == {"left out by --bids-filter-file"}


def test_filters_that_match_nothing_or_make_no_sense(dataset: Path) -> None:
    with pytest.raises(NoMatchError) as caught:
        find_participants(dataset, filters={"dwi": {"direction": "LR"}})
    assert caught.value.exit_code == 18
    for filters in ({"dwi": {"nonsense": 1}}, {"dvi": {"direction": "AP"}}):
        with pytest.raises(ConfigurationError):
            find_participants(dataset, filters=filters)


def test_a_participant_without_dwi_among_others(dataset: Path) -> None:
    (dataset / "sub-09" / "anat").mkdir(parents=True)
    found = find_participants(dataset)
    assert "09" not in [participant.label for participant in found.participants]
    assert [note.message for note in found.notes if note.id == "W-DATA-NODWI"] == [
        "1 participant(s) without a dwi image are left out: sub-09"
    ]
    (failure,) = find_participants(dataset, participants=["01", "09"]).failures
    assert (failure.name, failure.error.id, failure.error.exit_code) == ("sub-09", "E-DATA-NODWI", 66)


def test_a_folder_in_place_of_a_run(dataset: Path) -> None:
    (dataset / "sub-09/dwi/sub-09_dwi.nii.gz").mkdir(parents=True)
    (failure,) = find_participants(dataset, participants=["09"]).failures
    assert (failure.name, failure.error.id) == ("sub-09", "E-FILE-KIND")


def test_no_dwi_at_all(dataset: Path) -> None:
    write(dataset / "sub-05/anat/sub-05_T1w.nii.gz")
    with pytest.raises(MissingInputError) as caught:
        find_participants(dataset, participants=["05"])
    assert caught.value.exit_code == 66
    assert len(find_participants(dataset).participants) == 2


def test_anatomy_is_chosen_by_a_stated_rule(dataset: Path) -> None:
    participant = find_participants(dataset).participants[0]
    chosen = choose_anat(participant, None)
    assert chosen is not None
    assert chosen.path.name == "sub-01_T1w.nii.gz"
    assert "rather than sub-01_acq-nonorm_T1w.nii.gz" in explain_anat(participant, None)
    # Without the normalised one, the other is used; plain names and first runs come before others.
    for name in ("run-02_T1w", "run-01_T1w", "acq-x_run-01_T1w"):
        write(dataset / f"sub-01/anat/sub-01_{name}.nii.gz")
    (dataset / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    chosen = choose_anat(find_participants(dataset).participants[0], None)
    assert chosen is not None
    assert chosen.path.name == "sub-01_run-01_T1w.nii.gz"
    assert choose_anat(find_participants(dataset).participants[1], None) is None


def test_anatomy_of_the_same_session_comes_first(dataset: Path) -> None:
    for session in ("a", "b"):
        add_run(dataset, f"sub-03_ses-{session}")
    add_run(dataset, "sub-03_ses-c")
    for session in ("b", "c"):
        write(dataset / f"sub-03/ses-{session}/anat/sub-03_ses-{session}_T1w.nii.gz")
    participant = find_participants(dataset, participants=["03"]).participants[0]
    chosen = {session: choose_anat(participant, session) for session in "abc"}
    assert {session: anat.session for session, anat in chosen.items() if anat} == {"a": "b", "b": "b", "c": "c"}
    assert "another session" in explain_anat(participant, "a")


def test_t2w_is_taken_when_asked_for(dataset: Path) -> None:
    write(dataset / "sub-01/anat/sub-01_T2w.nii.gz")
    anats = find_participants(dataset, participants=["01"], anat_modality="T2w").participants[0].anats
    assert [anat.modality for anat in anats] == ["T2w"]


def test_opposite_names_with_the_same_phase_encoding_are_reported(dataset: Path) -> None:
    write(dataset / "sub-01/dwi/sub-01_dir-PA_dwi.json", json.dumps(SIDECAR))
    assert [note.id for note in find_participants(dataset).notes] == ["W-DATA-PHASE"]


def test_derivatives_inside_the_dataset_are_not_input(dataset: Path) -> None:
    add_run(dataset / "derivatives/other", "sub-01_acq-inside")
    add_run(dataset / "sourcedata", "sub-06")
    found = find_participants(dataset)
    assert [run.name for p in found.participants for run in p.runs] == ["sub-01_dir-AP", "sub-01_dir-PA", "sub-02"]


def test_real_dataset(test_data: Path) -> None:
    found = find_participants(test_data / "bids_real")
    runs = {p.label: len(p.runs) for p in found.participants}
    assert runs == {"canonA": 3, "ds114": 1, "philipsslab": 1, "prismasag": 2, "toshiba60": 1, "xa30": 2}
    assert not found.failures
    assert not found.ignored
    xa30 = found.participants[-1]
    chosen = choose_anat(xa30, None)
    assert chosen is not None
    assert chosen.path.name == "sub-xa30_T1w.nii.gz"
    assert {run.metadata["PhaseEncodingDirection"] for run in xa30.runs} == {"j", "j-"}
    assert len(xa30.fmaps) == 3
