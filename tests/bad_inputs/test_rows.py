"""Every bad or odd input of the corpus ends in its documented code and message, or is read right with its note."""

from __future__ import annotations

import pickle
import re

import pytest
from tests.bad_inputs import corpus

from tractode.errors import TractodeError
from tractode.io.dwi import IngestPolicy, read_dwi
from tractode.io.nifti import read_volume

# G21 itself is the gradient check's, G25 the motion correction's; the provenance stage of G22 is tested in tests/io.
ELSEWHERE = {"G22", "G25"}


def read(run, row):
    if row.anatomy:
        return read_volume(run.nii, "sub-01_T1w", **row.allow)
    return read_dwi(run.nii, run.bval, run.bvec, "sub-01_dwi", IngestPolicy(**row.allow))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    run = corpus.good_run(tmp_path_factory.mktemp("good"))
    dwi, notes = read_dwi(run.nii, run.bval, run.bvec, "sub-01_dwi")
    assert [note.id for note in notes] == ["N-GRAD-SHELLS"]
    return dwi


@pytest.mark.parametrize("row", [row for row in corpus.ROWS if row.code], ids=lambda row: row.name)
def test_refused(row, tmp_path):
    folder = tmp_path / "sp ace é"
    folder.mkdir()
    run = corpus.good_run(folder)
    row.spoil(run)
    before = {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(TractodeError) as caught:
        read(run, row)
    error, text = caught.value, str(caught.value)
    assert error.exit_code == row.code
    assert f"[{row.id}]" in text
    assert re.search(row.says, text)
    assert run.stem in error.path or error.id == "E-INPUT-SEVERAL"
    assert "Needed: " in text
    assert "To do: " in text
    assert "\n" not in text
    assert str(pickle.loads(pickle.dumps(error))) == text
    assert {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("row", [row for row in corpus.ROWS if not row.code], ids=lambda row: row.name)
def test_accepted(row, tmp_path, good):
    run = corpus.good_run(tmp_path)
    check = row.spoil(run)
    result, notes = read(run, row)
    if row.id:
        assert any(note.id == row.id and re.search(row.says, note.message) for note in notes), notes
    else:
        assert not [note for note in notes if note.level == "warning"]
    if check is not None:
        check(result, good)


def test_every_row_is_covered():
    rows = {row.row for row in corpus.ROWS}
    expected = {f"I{n:02}" for n in range(1, 33)} | {f"G{n:02}" for n in range(1, 27)}
    assert expected - rows == ELSEWHERE


def test_names_are_unique():
    names = [row.name for row in corpus.ROWS]
    assert len(names) == len(set(names))


def test_all_problems_of_a_run_are_told_at_once(tmp_path):
    run = corpus.good_run(tmp_path)
    corpus.geometry.no_orientation(run)
    corpus.gradient_text.semicolons(run)
    with pytest.raises(TractodeError) as caught:
        read_dwi(run.nii, run.bval, run.bvec, "sub-01_dwi")
    assert caught.value.exit_code == 65
    text = str(caught.value)
    assert text.startswith("[E-INPUT-SEVERAL] 3 problems")
    assert text.count("[E-GRAD-TEXT]") == 2
    assert "[E-IMG-ORIENTATION]" in text


def test_missing_alone_is_66_and_with_invalid_65(tmp_path):
    run = corpus.good_run(tmp_path)
    run.bvec.unlink()
    run.bval.unlink()
    with pytest.raises(TractodeError) as caught:
        read_dwi(run.nii, run.bval, run.bvec, "sub-01_dwi")
    assert caught.value.exit_code == 66
    corpus.voxels.all_zero(run)
    corpus.geometry.no_orientation(run)
    with pytest.raises(TractodeError) as caught:
        read_dwi(run.nii, run.bval, run.bvec, "sub-01_dwi")
    assert caught.value.exit_code == 65
