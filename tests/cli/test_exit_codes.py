"""The exit-code contract, each row that can be provoked, by the app as a program; errors in one line, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tractode.bids.lock import ParticipantLock
from tractode.cli.run import main

pytestmark = pytest.mark.integration

Program = Callable[..., "subprocess.Popen[str]"]
App = Callable[..., tuple[int, str, str]]


def finish(process: subprocess.Popen[str], seconds: float = 90) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert "Traceback" not in err, err
    return process.returncode, out, err


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp-") or path.suffix == ".lock"]


def waited(out: Path, process: subprocess.Popen[str]) -> psutil.Process:
    """The worker of a fake run that sleeps, once it is in the middle of writing."""
    pid_file = out / "pid-01"
    for _ in range(900):
        if pid_file.is_file() and pid_file.read_text():
            return psutil.Process(int(pid_file.read_text()))
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("the worker never began")


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def is_complete(out: Path, label: str) -> bool:
    return json.loads((out / f"logs/sub-{label}/manifest.json").read_text())["complete"]


def test_0_complete_and_a_rerun(bids: Path, tmp_path: Path, app: App) -> None:
    out = tmp_path / "out"
    code, text, err = app({"01": "ok"}, bids, out, "participant", "--participant-label", "sub-01")
    assert (code, err) == (0, "")
    assert "complete" in text
    assert is_complete(out, "01")
    assert (out / "sub-01.html").is_file()
    assert 'participants = [\n    "01",\n]' in (out / "logs/sub-01/settings.toml").read_text()
    assert "tractode" in (out / "logs/CITATION.md").read_text()
    assert (out / "logs/CITATION.bib").is_file()
    assert leftovers(out) == []
    assert not list((tmp_path / "work").glob("run-*")), "the work folder is emptied"
    assert app({"01": "ok"}, bids, out, "participant", "--participant-label", "01")[0] == 0
    (out / "sub-01.html").unlink()
    assert app({}, bids, out, "participant", "--reports-only")[0] == 0
    assert (out / "sub-01.html").is_file()


def test_1_mixed_causes_and_the_good_ones_finish(bids: Path, tmp_path: Path, app: App) -> None:
    out = tmp_path / "out"
    code, text, err = app({"01": "ok", "02": "raise:InputDataError", "03": "kill"}, bids, out, "participant")
    assert code == 1
    assert is_complete(out, "01")
    assert "E-FAKE" in err
    assert "E-MEM-KILLED" in err
    for label in ("01", "02", "03"):
        assert (out / f"sub-{label}.html").is_file()
        assert f"sub-{label}" in text


@pytest.mark.parametrize(
    ("what", "expected"), [("raise:InputDataError", 65), ("kill", 71), ("raise:InputOutputError", 74), ("layout", 69)]
)
def test_one_cause_is_the_code(bids: Path, tmp_path: Path, app: App, what: str, expected: int) -> None:
    out = tmp_path / "out"
    code, _, err = app({"01": "ok", "02": what}, bids, out, "participant", "--participant-label", "01", "02")
    assert code == expected
    assert err.startswith("tractode: [E-")
    assert is_complete(out, "01")


def test_65_for_a_bad_run_among_good_ones(bids: Path, tmp_path: Path, app: App, add_run: Callable[..., Path]) -> None:
    add_run(bids, "01", run="2")
    (bids / "sub-01/dwi/sub-01_run-2_dwi.json").write_text("{")
    code, text, err = app({"01": "ok"}, bids, tmp_path / "out", "participant", "--participant-label", "01")
    assert code == 65
    assert "sub-01_run-2_dwi.json" in err
    assert "complete" in text
    assert "failed" in text


@pytest.mark.parametrize("what", ["bug", "segv", "silent"])
def test_70_leaves_a_crash_bundle(bids: Path, tmp_path: Path, app: App, what: str) -> None:
    out = tmp_path / "out"
    code, _, err = app({"01": what}, bids, out, "participant", "--participant-label", "01")
    assert code == 70
    (bundle,) = (out / "logs").glob("crash-*.zip")
    assert str(bundle) in err
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
        assert "settings.toml" in names
        assert any(name.startswith("logs/run-") for name in names)
        if what == "bug":
            trace = next(name for name in names if name.startswith("traces/01/"))
            assert "KeyError" in archive.read(trace).decode()


def test_75_another_run_has_them(bids: Path, tmp_path: Path, app: App) -> None:
    out = tmp_path / "out"
    with ParticipantLock(out, "01"):
        code, _, err = app({"01": "ok"}, bids, out, "participant", "--participant-label", "01")
        assert code == 75
        assert str(os.getpid()) in err
        steps = {"01": "ok", "02": "ok"}
        code, text, _ = app(steps, bids, out, "participant", "--participant-label", "01", "02")
        assert code == 75
        assert "locked" in text
    assert is_complete(out, "02"), "the others are processed"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_everything_and_leave_nothing_half_written(
    bids: Path, tmp_path: Path, program: Program, app: App, number: int, expected: int
) -> None:
    out = tmp_path / "out"
    process = program({"01": "sleep"}, bids, out, "participant", "--participant-label", "01")
    worker = waited(out, process)
    tree = psutil.Process(process.pid).children(recursive=True)
    assert worker in tree
    os.kill(process.pid, number)
    code, _, err = finish(process, 15)
    assert code == expected
    assert "same command" in err
    psutil.wait_procs(tree, timeout=5)
    assert all(map(has_ended, tree)), "no orphan"
    assert leftovers(out) == []
    assert not (out / "sub-01/dwi/sub-01_fa.txt").exists()
    if number == signal.SIGTERM:
        assert app({"01": "ok"}, bids, out, "participant", "--participant-label", "01")[0] == 0, "resumable"


def test_a_parent_killed_outright_leaves_no_orphan_and_no_lasting_lock(
    bids: Path, tmp_path: Path, program: Program, app: App
) -> None:
    out = tmp_path / "out"
    process = program({"01": "sleep"}, bids, out, "participant", "--participant-label", "01")
    worker = waited(out, process)
    code, _, err = app({"01": "ok"}, bids, out, "participant", "--participant-label", "01")
    assert code == 75
    assert str(process.pid) in err
    process.kill()
    process.wait()
    psutil.wait_procs([worker], timeout=10)
    assert has_ended(worker)
    assert app({"01": "ok"}, bids, out, "participant", "--participant-label", "01")[0] == 0
    assert leftovers(out) == []


def test_validation_of_the_whole_can_be_skipped(bids: Path, tmp_path: Path, app: App) -> None:
    (bids / "dataset_description.json").write_text("{")
    words = [bids, tmp_path / "out", "participant", "--participant-label", "01"]
    assert app({"01": "ok"}, *words)[0] == 65
    assert not (tmp_path / "out").exists()
    assert app({"01": "ok"}, *words, "--skip-bids-validation", "--md-only-boilerplate")[0] == 0
    assert [path.name for path in (tmp_path / "out/logs").glob("CITATION*")] == ["CITATION.md"]


def test_stop_on_first_crash(bids: Path, tmp_path: Path, app: App) -> None:
    words = [bids, tmp_path / "out", "participant", "--participant-label", "01", "--stop-on-first-crash"]
    code, _, err = app({"01": "raise:InputDataError"}, *words)
    assert code == 65
    assert "E-FAKE" in err


def test_stop_on_first_crash_blames_nobody_else(
    bids: Path, tmp_path: Path, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    code, _, err = app(
        {"01": "raise:InputDataError", "02": "sleep", "03": "ok"},
        bids,
        out,
        "participant",
        "--stop-on-first-crash",
        "--nprocs",
        "1",
    )
    assert code == 65
    assert "sub-02 was not finished: another participant failed first" in err
    assert not is_complete(out, "02")
    assert leftovers(out) == []
    assert not list(tmp_path.glob("crash-*")), "nipype's crash files stay in the work folder"


def test_one_process_for_debugging(bids: Path, tmp_path: Path, app: App) -> None:
    words = [bids, tmp_path / "out", "participant", "--participant-label", "01", "--debug", "all"]
    assert app({"01": "ok"}, *words)[0] == 0
    assert list((tmp_path / "work").glob("run-*")), "--debug workdir keeps it"
    assert app({"01": "raise:InputDataError"}, *words)[0] == 65


# What is refused before anything is computed needs no program of its own.


def run(*words: object) -> int:
    return main([str(word) for word in words])


def expect(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    assert run(*words) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.startswith("tractode: [E-")
    return err


def test_help_and_version_are_0(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h", "--version"):
        assert run(word) == 0
        assert "tractode" in capsys.readouterr().out
    done = subprocess.run([sys.executable, "-m", "tractode", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("tractode ")


def test_16_not_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("empty", "file"):
        expect(capsys, 16, tmp_path / name, tmp_path / "out", "participant")
    assert not (tmp_path / "out").exists()


def test_17_unknown_level(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "participant" in expect(capsys, 17, bids, tmp_path / "out", "participants")


def test_18_nothing_matched(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "01" in expect(capsys, 18, bids, tmp_path / "out", "participant", "--participant-label", "1")
    expect(capsys, 18, bids, tmp_path / "out", "participant", "--session-label", "pre")
    filters = tmp_path / "filters.json"
    filters.write_text('{"dwi": {"run": 9}}')
    expect(capsys, 18, bids, tmp_path / "out", "participant", "--bids-filter-file", filters)


def test_64_usage(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect(capsys, 64)
    expect(capsys, 64, bids, tmp_path / "out", "participant", "--frobnicate")
    expect(capsys, 64, bids, tmp_path / "out", "participant", "--participant-label", "../../x")


def test_66_missing(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect(capsys, 66, tmp_path / "none", tmp_path / "out", "participant")
    expect(capsys, 66, bids, tmp_path / "out", "participant", "--config-file", tmp_path / "none.toml")
    expect(capsys, 66, bids, tmp_path / "out", "participant", "--reports-only")
    expect(
        capsys,
        66,
        bids,
        tmp_path / "out",
        "participant",
        "--participant-label",
        "01",
        "--device",
        "cpu",
        "--output-spaces",
        "native",
        "--use-plugin",
        tmp_path / "none.yml",
    )


def test_69_not_to_be_had(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cpu" in expect(capsys, 69, bids, tmp_path / "out", "participant", "--device", "cuda")
    assert not (tmp_path / "out").exists()


def test_71_memory_that_is_surely_lacking(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "GiB" in expect(
        capsys,
        71,
        bids,
        tmp_path / "out",
        "participant",
        "--device",
        "cpu",
        "--output-spaces",
        "native",
        "--mem",
        "100M",
    )


def test_73_output_that_cannot_be(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(bids.rglob("*"))
    (tmp_path / "file").write_text("")
    for out in (bids, bids / "derivatives" / "x"):
        expect(capsys, 73, bids, out, "participant")
    expect(capsys, 73, bids, tmp_path / "out", "participant", "-w", bids / "work")
    expect(capsys, 73, bids, tmp_path / "file", "participant", "--device", "cpu", "--output-spaces", "native")
    assert sorted(bids.rglob("*")) == before


def test_74_disk_that_is_surely_too_small(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    expect(capsys, 74, bids, tmp_path / "out", "participant", "--device", "cpu", "--output-spaces", "native")


def test_78_conflicts(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect(capsys, 78, bids, tmp_path / "out", "participant", "--no-tracking", "--tracking", "sdstream")
    out = tmp_path / "out"
    out.mkdir()
    description = {
        "Name": "tractode",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "tractode", "Version": "0.0.1"}],
    }
    (out / "dataset_description.json").write_text(json.dumps(description))
    expect(capsys, 78, bids, out, "participant", "--device", "cpu", "--output-spaces", "native")


def test_70_in_the_main_process(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tractode.cli.participants._discover", fail)
    err = expect(capsys, 70, bids, tmp_path / "out", "participant")
    (bundle,) = tmp_path.glob("crash-*.zip")
    assert str(bundle) in err
