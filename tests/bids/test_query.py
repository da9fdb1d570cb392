"""Discovery: every row of the dataset table that concerns us ends in the documented answer."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from tests.bids.raw_dataset import SIDECAR, add_run, write

from tractode.bids.query import find_participants
from tractode.errors import (
    InputDataError,
    InvalidDatasetError,
    MissingInputError,
    NoMatchError,
    TractodeError,
)


def _only_failure(dataset: Path, **request) -> TractodeError:
    found = find_participants(dataset, **request)
    assert len(found.failures) == 1
    return found.failures[0].error


def test_runs_have_gradients_metadata_and_names(dataset: Path) -> None:
    found = find_participants(dataset)
    assert [p.label for p in found.participants] == ["01", "02"]
    first, second = found.participants[0].runs
    assert (first.name, second.name) == ("sub-01_dir-AP", "sub-01_dir-PA")
    assert first.path == dataset / "sub-01/dwi/sub-01_dir-AP_dwi.nii.gz"
    assert first.bval.name == "sub-01_dir-AP_dwi.bval"
    assert first.bvec.name == "sub-01_dir-AP_dwi.bvec"
    assert first.entities == {"sub": "01", "dir": "AP"}
    assert first.metadata == SIDECAR
    assert first.sidecars == (dataset / "sub-01/dwi/sub-01_dir-AP_dwi.json",)
    assert first.session is None
    assert not found.ignored
    assert not found.notes


def test_a_discovery_can_be_sent_to_a_worker(dataset: Path) -> None:
    (dataset / "sub-02/dwi/sub-02_dwi.bval").unlink()
    found = find_participants(dataset)
    copy = pickle.loads(pickle.dumps(found))
    assert copy.participants[0] == found.participants[0]
    assert str(copy.failures[0].error) == str(found.failures[0].error)


def test_labels_with_and_without_prefix_in_the_datasets_order(dataset: Path) -> None:
    found = find_participants(dataset, participants=["02", "sub-01", "01"])
    assert [p.label for p in found.participants] == ["01", "02"]


def test_absent_labels_are_all_named_with_the_nearest(dataset: Path) -> None:
    with pytest.raises(NoMatchError, match=r"sub-1, sub-99.*mean 01") as caught:
        find_participants(dataset, participants=["1", "99", "02"])
    assert caught.value.exit_code == 18


def test_no_subjects_names_the_folder_that_has_them(dataset: Path) -> None:
    with pytest.raises(InvalidDatasetError, match=r"a data set") as caught:
        find_participants(dataset.parent)
    assert caught.value.exit_code == 16


def test_absent_folder_and_file_instead_of_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        find_participants(tmp_path / "nowhere")
    with pytest.raises(InvalidDatasetError):
        find_participants(write(tmp_path / "file"))


def test_description_absent_is_a_warning_and_broken_an_error(dataset: Path) -> None:
    description = dataset / "dataset_description.json"
    description.unlink()
    assert [note.id for note in find_participants(dataset).notes] == ["W-BIDS-NODESCRIPTION"]
    write(description, '{\n "Name": "x",\n}')
    with pytest.raises(InputDataError, match=r"line 3, column 1"):
        find_participants(dataset)
    for content in (b"", b"[]", '{"Name": "Zürich"}'.encode("latin-1")):
        write(description, content)
        with pytest.raises(InputDataError, match=r"dataset_description\.json"):
            find_participants(dataset)


def test_inheritance_merges_nearer_fields_over_farther(dataset: Path) -> None:
    write(dataset / "dwi.json", '{"EchoTime": 0.1, "Manufacturer": "A"}')
    write(dataset / "sub-01/sub-01_dwi.json", '{"EchoTime": 0.2}')
    write(dataset / "T1w.json", '{"EchoTime": 0.003}')
    run = find_participants(dataset, participants=["01"]).participants[0].runs[0]
    assert run.metadata == {"EchoTime": 0.2, "Manufacturer": "A", **SIDECAR}
    assert [path.name for path in run.sidecars] == ["dwi.json", "sub-01_dwi.json", "sub-01_dir-AP_dwi.json"]


def test_gradients_are_inherited_and_the_nearest_wins(dataset: Path) -> None:
    for path in (dataset / "sub-02/dwi").glob("*.bv*"):
        path.unlink()
    write(dataset / "dwi.bval", "0 1000")
    write(dataset / "dwi.bvec", "0 1\n0 0\n0 0")
    found = find_participants(dataset)
    assert found.participants[1].runs[0].bval == dataset / "dwi.bval"
    assert found.participants[0].runs[0].bval.parent.name == "dwi"


def test_two_inheritable_files_in_one_folder_contradict_each_other(dataset: Path) -> None:
    (dataset / "sub-01/dwi/sub-01_dir-AP_dwi.bval").unlink()
    write(dataset / "sub-01/sub-01_dwi.bval", "0 1000")
    write(dataset / "sub-01/dir-AP_dwi.bval", "0 1000")
    add_run(dataset, "sub-02_acq-x_dir-AP")
    assert not find_participants(dataset, participants=["02"]).failures
    error = _only_failure(dataset, participants=["01"])
    assert error.id == "E-DATA-AMBIGUOUS"
    assert error.exit_code == 65
    assert "sub-01_dwi.bval" in str(error)
    assert "dir-AP_dwi.bval" in str(error)


def test_a_missing_gradient_table_fails_its_run_only(dataset: Path) -> None:
    (dataset / "sub-01/dwi/sub-01_dir-AP_dwi.bvec").unlink()
    found = find_participants(dataset)
    assert [run.name for run in found.participants[0].runs] == ["sub-01_dir-PA"]
    (failure,) = found.failures
    assert failure.name == "sub-01_dir-AP"
    assert failure.error.exit_code == 66
    assert failure.error.id == "E-DATA-NOBVEC"


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 66, "git-lfs"),
        (b"<!DOCTYPE html><html>404</html>", 66, "HTML"),
        (b"/annex/objects/MD5E-s1--x.nii.gz\n", 66, "annex"),
        (b"", 65, "empty"),
    ],
)
def test_content_that_was_not_fetched_is_named(dataset: Path, content: bytes, code: int, words: str) -> None:
    write(dataset / "sub-02/dwi/sub-02_dwi.nii.gz", content)
    error = _only_failure(dataset)
    assert error.exit_code == code
    assert words in str(error)


def test_dangling_annex_links_count_only_where_needed(dataset: Path) -> None:
    def unfetched(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to("../../.git/annex/objects/xx/yy/MD5E-s1--abc.nii.gz")

    unfetched(dataset / "sub-01/anat/sub-01_acq-nonorm_T1w.nii.gz")  # never chosen, so never needed
    assert not find_participants(dataset).failures
    unfetched(dataset / "sub-02/dwi/sub-02_dwi.json")
    error = _only_failure(dataset)
    assert error.exit_code == 66
    assert "datalad get" in str(error)


def test_an_unfetched_t1w_fails_every_run_that_needs_it(dataset: Path) -> None:
    anat = dataset / "sub-01/anat/sub-01_T1w.nii.gz"
    anat.unlink()
    anat.symlink_to("../../.git/annex/objects/xx/yy/MD5E-s1--abc.nii.gz")
    found = find_participants(dataset)
    assert [failure.name for failure in found.failures] == ["sub-01_dir-AP", "sub-01_dir-PA"]
    assert not find_participants(dataset, anat_modality="none").failures


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"EchoTime": 0.1,}', "line 1, column"),
        (b"[1]", "list"),
        (b'{"TotalReadoutTime": "0.05"}', "TotalReadoutTime"),
        (b'{"PhaseEncodingDirection": ""}', "PhaseEncodingDirection"),
        (b'{"PhaseEncodingDirection": null}', "PhaseEncodingDirection"),
        (b'{"EchoTime": NaN}', "NaN"),
        (b'{"EchoTime": true}', "EchoTime"),
        (b'{"EchoTime": 0.1, "EchoTime": 0.2}', "twice"),
        (b"[" * 100_000, "deep"),
        (b'{"Note": "20 \xb0"}', "byte 13"),
    ],
)
def test_bad_sidecars_name_file_and_place(dataset: Path, content: bytes, words: str) -> None:
    write(dataset / "sub-02/dwi/sub-02_dwi.json", content)
    error = _only_failure(dataset)
    assert error.exit_code == 65
    assert error.path.endswith("sub-02_dwi.json")
    assert words in str(error)


def test_a_byte_order_mark_and_windows_lines_are_accepted(dataset: Path) -> None:
    write(dataset / "sub-02/dwi/sub-02_dwi.json", b'\xef\xbb\xbf{\r\n"EchoTime": 0.1}\r\n')
    write(dataset / "participants.tsv", b"participant_id\tage\r\nsub-01\t3\r\nsub-02\t4\r\n")
    found = find_participants(dataset)
    assert found.participants[1].runs[0].metadata == {"EchoTime": 0.1}
    assert not found.notes


@pytest.mark.parametrize("content", [b"", b"id\nsub-01\n", b"participant_id\nsub-01\nsub-07\n", b"\xff\xfe"])
def test_a_bad_participants_table_is_a_warning(dataset: Path, content: bytes) -> None:
    write(dataset / "participants.tsv", content)
    assert [note.id for note in find_participants(dataset).notes] == ["W-BIDS-PARTICIPANTS"]


def test_others_participants_files_are_not_read(dataset: Path) -> None:
    write(dataset / "sub-02/dwi/sub-02_dwi.json", "not json")
    (dataset / "sub-02/dwi/sub-02_dwi.bval").unlink()
    assert not find_participants(dataset, participants=["01"]).failures


def test_the_same_image_twice(dataset: Path) -> None:
    write(dataset / "sub-02/dwi/sub-02_dwi.nii")
    error = _only_failure(dataset)
    assert (error.id, error.exit_code) == ("E-DATA-DUPLICATE", 65)
    assert "sub-02_dwi.nii," in str(error)


def test_every_file_left_aside_is_listed_with_a_reason(dataset: Path) -> None:
    dwi = dataset / "sub-02/dwi"
    write(dwi / "sub-01_dwi.nii.gz")
    write(dwi / "._sub-02_dwi.nii.gz")
    write(dwi / ".DS_Store")
    write(dwi / "sub-02_dwi (1).nii.gz")
    write(dwi / "sub-02_dwi.nii.gz~")
    write(dwi / "sub-02_sbref.nii.gz")
    write(dwi / "sub-02_part-phase_dwi.nii.gz")
    write(dwi / "sub-02_space-T1w_dwi.nii.gz")
    write(dwi / "sub-02_acq-lost_dwi.bval")
    write(dataset / "sub-02/anat/sub-02_FLAIR.nii.gz")
    write(dataset / "sub-02/func/sub-02_task-rest_bold.nii.gz")
    write(dataset / "sub-02/notes.txt")
    write(dataset / "sub-01_b/dwi/sub-01_b_dwi.nii.gz")
    write(dataset / "Sub-04/dwi/sub-04_dwi.nii.gz")
    os.mkfifo(dwi / "sub-02_acq-pipe_dwi.nii.gz")
    found = find_participants(dataset)
    assert [p.label for p in found.participants] == ["01", "02"]
    assert [run.name for run in found.participants[1].runs] == ["sub-02"]
    assert not found.failures
    expected = {
        "sub-02/dwi/sub-01_dwi.nii.gz": "another participant",
        "sub-02/dwi/._sub-02_dwi.nii.gz": "hidden",
        "sub-02/dwi/.DS_Store": "hidden",
        "sub-02/dwi/sub-02_dwi (1).nii.gz": "not a BIDS name",
        "sub-02/dwi/sub-02_dwi.nii.gz~": "backup",
        "sub-02/dwi/sub-02_sbref.nii.gz": "sbref",
        "sub-02/dwi/sub-02_part-phase_dwi.nii.gz": "magnitude",
        "sub-02/dwi/sub-02_space-T1w_dwi.nii.gz": "derivative",
        "sub-02/dwi/sub-02_acq-lost_dwi.bval": "belongs to no image",
        "sub-02/anat/sub-02_FLAIR.nii.gz": "--anat-modality",
        "sub-02/func/": "another modality",
        "sub-02/notes.txt": "not in a modality folder",
        "sub-01_b/": "participant's folder",
        "Sub-04/": "participant's folder",
        "sub-02/dwi/sub-02_acq-pipe_dwi.nii.gz": "regular file",
    }
    reasons = {file.path: file.reason for file in found.ignored}
    assert set(reasons) == set(expected)
    for path, words in expected.items():
        assert words in reasons[path]


def test_a_loop_of_links_neither_hangs_nor_yields_runs(dataset: Path) -> None:
    (dataset / "sub-02/dwi/loop").symlink_to(dataset / "sub-02")
    (dataset / "sub-02/loop").symlink_to(dataset)
    found = find_participants(dataset)
    assert [run.name for run in found.participants[1].runs] == ["sub-02"]
    assert {file.path for file in found.ignored} == {"sub-02/dwi/loop/", "sub-02/loop/"}
