"""Every bad input of the corpus through the whole app: its documented code and message, no traceback, nothing half-written.

One participant a row, many rows a run of the app: a bad run never keeps another from its own verdict.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.bad_inputs import corpus

from tractode.io.atomic import sha256_of

pytestmark = pytest.mark.integration

App = Callable[..., tuple[int, str, str]]
UNPREPARED = (
    "--denoise", "none", "--unring", "none", "--motion", "none", "--outliers", "none", "--bias", "none",
    "--dwi-mask", "threshold",
)  # fmt: skip
FAST = ("--models", "dti", "--no-tracking", "--output-spaces", "native")
# What the search for files finds before the reader is asked has names of its own.
FOUND_EARLIER = {
    "G01-bvec_missing": ("E-DATA-NOBVEC", r"sub-01_dwi\.bvec"),
    "G01-bval_missing": ("E-DATA-NOBVAL", r"sub-01_dwi\.bval"),
}
REPRESENTATIVE = (
    "D11-dangling_link", "D12-lfs_pointer_for_bvec", "I01-gzip_cut_in_half", "I13-one_empty_volume",
    "I20-qform_and_sform_differ_by_rotation", "G01-bvec_missing", "G04-both_files_one_short", "G12-only_b0",
    "G20-utf_16",
)  # fmt: skip

REFUSED = [row for row in corpus.ROWS if row.code]


def label_of(row: Any) -> str:
    """A row's name as a participant's label: letters and digits only."""
    return "".join(part.capitalize() for part in re.split("[-_]", row.name))


def add_participant(bids: Path, label: str) -> Any:
    """A good run under a participant's own name."""
    folder = bids / f"sub-{label}" / "dwi"
    folder.mkdir(parents=True)
    run = corpus.good_run(folder)
    for path in (run.nii, run.bval, run.bvec):
        path.unlink()
    run.stem = f"sub-{label}_dwi"
    run.save()
    return run


def _enlarge(run: Any) -> None:
    """A head of the corpus is too small for a brain."""
    run.affine[:3, :3] *= 3
    run.save()


def make_dataset(bids: Path, rows: Iterable[Any] = (), good: Iterable[str] = ()) -> Path:
    bids.mkdir(parents=True, exist_ok=True)
    (bids / "dataset_description.json").write_text('{"Name": "bad inputs", "BIDSVersion": "1.9.0"}')
    for label in good:
        run = add_participant(bids, label)
        _enlarge(run)
    for row in rows:
        run = add_participant(bids, label_of(row))
        if row.anatomy:
            _enlarge(run)
            folder = bids / f"sub-{label_of(row)}" / "anat"
            folder.mkdir()
            run = corpus.good_run(folder)
            for path in (run.nii, run.bval, run.bvec):
                path.unlink()
            run.stem = f"sub-{label_of(row)}_T1w"
        row.spoil(run)
        if row.anatomy:
            for path in (run.bval, run.bvec):
                path.unlink(missing_ok=True)
    return bids


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def errors_of(out: Path, label: str) -> list[dict[str, Any]]:
    folder = out / "logs" / f"sub-{label}" / "errors"
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def manifest_of(out: Path, label: str) -> dict[str, Any]:
    return json.loads((out / "logs" / f"sub-{label}" / "manifest.json").read_text(encoding="utf-8"))


def misfits(out: Path, row: Any, err: str) -> list[str]:
    """What about a refused row's outcome is not as documented."""
    label = label_of(row)
    expected_id, says = FOUND_EARLIER.get(row.name, (row.id, row.says))
    says = says.replace("sub-01", f"sub-{label}").replace("_dwi", "_T1w" if row.anatomy else "_dwi")
    wrong = []
    errors = errors_of(out, label)
    found = [(error["id"], error["exit_code"]) for error in errors]
    if found == [("E-INPUT-SEVERAL", row.code)] and f"[{expected_id}]" in errors[0]["found"]:
        found = [(expected_id, row.code)]
    if found != [(expected_id, row.code)]:
        wrong.append(f"{row.name}: errors {found}, not {(expected_id, row.code)}")
    lines = [line for line in err.splitlines() if f"[{expected_id}]" in line and f"sub-{label}" in line]
    if not any(re.search(says, line) for line in lines):
        wrong.append(f"{row.name}: no line of stderr says {says!r}: {lines or [error['found'] for error in errors]}")
    if any("Needed: " not in line or "To do: " not in line for line in lines):
        wrong.append(f"{row.name}: {lines} lacks what is needed or what to do")
    manifest = manifest_of(out, label)
    if manifest["complete"]:
        wrong.append(f"{row.name}: its manifest says complete")
    images = {str(path.relative_to(out)) for path in (out / f"sub-{label}").rglob("*.nii.gz")}
    if unlisted := images - set(manifest["outputs"]):
        wrong.append(f"{row.name}: images without a record: {sorted(unlisted)}")
    if not (out / f"sub-{label}.html").is_file():
        wrong.append(f"{row.name}: no report")
    return wrong


def leftovers(*folders: Path) -> list[Path]:
    return [
        path for folder in folders for path in folder.rglob("*")
        if path.name.startswith((".tmp-", "crash-")) or path.name == "lock.json"
    ]  # fmt: skip


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """The app as a program of its own in an empty folder: ``app(bids, out, "participant", …)`` → code, stdout, stderr."""
    home = tmp_path / "cwd"
    home.mkdir()
    resources = ["--device", "cpu", "--nprocs", "2", "--omp-nthreads", "1", "--work-dir", str(tmp_path / "work")]

    def run(*words: object, seconds: float = 600) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "tractode", *map(str, words), *resources]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=home, timeout=seconds, check=False)
        assert "Traceback" not in ended.stderr, ended.stderr
        assert not list(home.iterdir()), "nothing is left in the current folder"
        return ended.returncode, ended.stdout, ended.stderr

    return run


def refuse_all(app: App, tmp_path: Path, rows: list[Any], *options: str, seconds: float = 600) -> None:
    """One run of the app over rows that must be refused and one participant that must not."""
    bids, out = make_dataset(tmp_path / "sp ace é", rows, good=["good"]), tmp_path / "out"
    before = snapshot(bids)
    code, stdout, err = app(bids, out, "participant", *options, seconds=seconds)
    wrong = [misfit for row in rows for misfit in misfits(out, row, err)]
    assert not wrong, "\n".join(wrong)
    codes = {row.code for row in rows}
    assert code == (codes.pop() if len(codes) == 1 else 1)
    assert "[E-BUG" not in err
    assert manifest_of(out, "good")["complete"], stdout
    assert errors_of(out, "good") == []
    assert leftovers(out, tmp_path / "work") == []
    assert snapshot(bids) == before, "the input is only read"


def test_representative_rows(app: App, tmp_path: Path) -> None:
    rows = [row for row in REFUSED if row.name in REPRESENTATIVE]
    assert len(rows) == len(REPRESENTATIVE)
    refuse_all(app, tmp_path, rows, *FAST, *UNPREPARED)


@pytest.mark.slow
def test_every_refused_row(app: App, tmp_path: Path) -> None:
    refuse_all(app, tmp_path, [row for row in REFUSED if not row.allow and not row.anatomy], *FAST, seconds=1200)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("permission", "options"),
    [
        ("estimate_s0", [*FAST, "--estimate-s0"]),
        ("will_track", ["--models", "dti", "csd", "--n-streamlines", "10", "--output-spaces", "native"]),
    ],
)
def test_rows_that_a_permission_does_not_save(app: App, tmp_path: Path, permission: str, options: list[str]) -> None:
    rows = [row for row in REFUSED if permission in row.allow]
    assert rows
    refuse_all(app, tmp_path, rows, *options, seconds=600)


@pytest.mark.slow
def test_bad_anatomy(app: App, tmp_path: Path) -> None:
    rows = [row for row in REFUSED if row.anatomy]
    options = ["--models", "dti", "--no-tracking", "--output-spaces", "MNI152NLin2009aSym"]
    refuse_all(app, tmp_path, rows, *options, seconds=1200)


@pytest.mark.slow
def test_killed_damaged_and_without_a_figure(app: App, tmp_path: Path) -> None:
    bids, out, killed = make_dataset(tmp_path / "bids", good=["good"]), tmp_path / "out", tmp_path / "killed"
    assert app(bids, out, "participant", *FAST)[0] == 0
    expected = manifest_of(out, "good")["outputs"]

    words = [sys.executable, "-m", "tractode", str(bids), str(killed), "participant", *FAST, "--device", "cpu"]
    process = subprocess.Popen([*words, "--work-dir", str(tmp_path / "w")], stdout=subprocess.DEVNULL, cwd=tmp_path)
    while process.poll() is None and not list(killed.glob("sub-good/dwi/*.nii.gz")):
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    assert not (killed / "logs/sub-good/manifest.json").exists()
    assert app(bids, killed, "participant", *FAST)[0] == 0
    assert manifest_of(killed, "good")["outputs"] == expected, "the same bytes as without the kill"
    assert leftovers(killed) == []

    (killed / "sub-good/dwi/sub-good_model-tensor_param-fa_dwimap.nii.gz").write_bytes(b"damaged")
    figure = next(path for path in (killed / "sub-good/figures").iterdir() if path.suffix != ".json")
    figure.unlink()
    assert app(bids, killed, "participant", "--reports-only")[0] == 0, "the rest of the page is still made"
    assert app(bids, killed, "participant", *FAST)[0] == 0
    assert manifest_of(killed, "good")["outputs"] == expected
    assert figure.is_file()
    for path, digest in expected.items():
        assert sha256_of(killed / path) == digest
