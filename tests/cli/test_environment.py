"""Environment, folders, verdicts and crash bundles, each on its own."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tractode.cli import environment, folders, verdict
from tractode.cli.crash import traceback_text, write_bundle
from tractode.cli.plugin_file import load_plugin_file
from tractode.errors import ConfigurationError, MissingInputError, OutputError, ResourceUnavailableError, TractodeError
from tractode.settings import Settings
from tractode.workflows.outcome import Outcome


def test_without_home_and_user_heavy_imports_still_work(tmp_path: Path) -> None:
    script = "from tractode.cli import environment; environment.prepare(); import os, getpass; import templateflow.conf, bids, matplotlib.pyplot; print(os.environ['HOME'], os.environ['LOGNAME'], getpass.getuser())"
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**kept, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    home, logname, user = done.stdout.split()
    assert Path(home).parent == tmp_path
    assert logname == user
    assert not Path(home).exists(), "the stand-in home is removed at the end"


def test_a_home_that_cannot_be_written_keeps_its_name_but_not_the_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    environ = {"HOME": str(tmp_path), "TORCH_HOME": "/kept"}
    stand_in = environment.prepare(environ)
    assert environ["HOME"] == str(tmp_path)
    assert environ["TORCH_HOME"] == "/kept"
    assert Path(environ["MPLCONFIGDIR"]).parent == stand_in
    assert environ["NO_ET"] == "1"


def test_a_good_home_is_left_alone(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "USER": "ada"}
    assert environment.prepare(environ) is None
    assert environ["LOGNAME"] == "ada"
    assert "MPLCONFIGDIR" not in environ


def test_memory_limit_is_the_least_of_all(tmp_path: Path) -> None:
    assert environment.memory_limit_gb(0.25, tmp_path) == 0.25
    (tmp_path / "memory.max").write_text(f"{2**29}\n")
    assert environment.memory_limit_gb(None, tmp_path) == 0.5
    (tmp_path / "memory.max").write_text("max\n")
    assert environment.memory_limit_gb(None, tmp_path) > 0.5


def test_cpu_quota(tmp_path: Path) -> None:
    assert environment._cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert environment._cpu_quota(tmp_path) == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert environment._cpu_quota(tmp_path) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_devices_without_a_gpu() -> None:
    assert environment.resolve_device("cpu") == ("cpu", None)
    device, note = environment.resolve_device("auto")
    assert device == "cpu"
    assert note
    assert "CPU" in note
    for asked in ("cuda", "cuda:3"):
        with pytest.raises(ResourceUnavailableError, match="torch"):
            environment.resolve_device(asked)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_devices_with_a_gpu() -> None:
    assert environment.resolve_device("auto") == ("cuda:0", None)
    with pytest.raises(ResourceUnavailableError, match="numbered from 0"):
        environment.resolve_device("cuda:99")


def _settings(bids: Path, out: Path, work: Path) -> Settings:
    return Settings(bids_dir=bids, output_dir=out, work_dir=work)


def test_folders_that_lie_wrong(tmp_path: Path) -> None:
    bids, out, work = tmp_path / "bids", tmp_path / "out", tmp_path / "work"
    bids.mkdir()
    link = tmp_path / "link"
    link.symlink_to(bids)
    folders.check_apart(_settings(bids, out, work))
    wrong = [
        (bids, work), (bids / "derivatives", work), (link, work), (link / "x", work), (bids / ".." / "bids" / "x", work),
        (out, bids), (out, bids / "work"), (out, link), (out, out), (out, out / "." ),
    ]  # fmt: skip
    for output_dir, work_dir in wrong:
        with pytest.raises(OutputError):
            folders.check_apart(_settings(bids, output_dir, work_dir))
    folders.check_apart(_settings(bids, tmp_path / "bids-out", work))  # a common beginning of the name is no parent


def test_work_folder_is_private_marked_and_fresh(tmp_path: Path) -> None:
    work = tmp_path / "deep" / "work"
    first, second = folders.make_run_dir(work), folders.make_run_dir(work)
    assert first != second
    for folder in (work, first):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (folder / folders.MARKER).is_file()
    folders.remove_run_dir(first)
    assert not first.exists()
    assert second.exists()


def test_only_folders_with_our_marker_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    folders.remove_run_dir(tmp_path / "precious")
    assert (tmp_path / "precious").exists()
    run_dir = folders.make_run_dir(tmp_path / "work")
    link = tmp_path / "link"
    link.symlink_to(run_dir)
    folders.remove_run_dir(link)
    assert run_dir.exists()


def test_work_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: work.stat().st_uid + 1)
    with pytest.raises(OutputError, match="another user"):
        folders.make_run_dir(work)
    assert not any(work.iterdir())


def test_work_folder_with_other_files_is_used_but_not_taken_over(tmp_path: Path) -> None:
    work = tmp_path / "scratch"
    work.mkdir()
    (work / "mine.txt").write_text("kept")
    work.chmod(0o750)
    folder = folders.make_run_dir(work)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(work.stat().st_mode) == 0o750
    work.chmod(0o777)
    with pytest.raises(OutputError, match="everybody"):
        folders.make_run_dir(work)


def test_output_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError):
            folders.check_output(path)
    with pytest.raises(OutputError):
        folders.make_run_dir(tmp_path / "file" / "work")


@pytest.mark.parametrize(
    ("codes", "expected"), [([], 0), ([0, 0], 0), ([65], 65), ([65, 65, 0], 65), ([65, 71], 1), ([70, 70], 70)]
)
def test_exit_code_of_several(codes: list[int], expected: int) -> None:
    assert verdict.exit_code(codes) == expected


def test_promises_not_kept_are_never_silent() -> None:
    (record,) = verdict.errors_of(Outcome("01", False, [], ["fit"], {"sub-01": False}))
    assert record["exit_code"] == 70
    assert "fit" in verdict.text_of(record)
    assert verdict.errors_of(Outcome("01", True)) == []


def test_error_records_keep_their_text() -> None:
    error = OutputError("Full stop.", id="E-X", needed="this", fix="that", path="/a/b")
    assert verdict.text_of(error.record()) == str(error)


def test_table_lays_errors_to_their_run(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"step": "sub-01_run-1_fit-csd", **OutputError("x", id="E-X").record()}
    outcome = Outcome("01", False, [error], ["sub-01_run-1_fit-csd"], {"sub-01": True, "sub-01_run-1": False})
    verdict.print_table([outcome], {"02": TractodeError("busy", id="E-LOCK")})
    lines = capsys.readouterr().out.splitlines()
    assert "E-X" in next(line for line in lines if "run-1" in line)
    assert "complete" in next(line for line in lines if "sub-01 " in line and "run-1" not in line)
    assert any("locked" in line for line in lines)


def test_crash_bundle(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("last words")
    try:
        raise KeyError("x")
    except KeyError as error:
        text = traceback_text(error)
    bundle = write_bundle(tmp_path / "logs", {"traceback.txt": text}, [log])
    with zipfile.ZipFile(bundle) as archive:
        assert "KeyError" in archive.read("traceback.txt").decode()
        assert archive.read("logs/run.log") == b"last words"
        machine = json.loads(archive.read("machine.json"))
    assert (
        machine["packages"]["torch"] == torch.__version__.partition("+")[0]
        or machine["packages"]["torch"] == torch.__version__
    )
    (tmp_path / "file").write_text("")
    elsewhere = write_bundle(tmp_path / "file", {})
    assert elsewhere.is_file()
    elsewhere.unlink()


def test_plugin_file(tmp_path: Path) -> None:
    path = tmp_path / "plugin.yml"
    path.write_text("plugin: SLURM\nplugin_args:\n  sbatch_args: --mem=8G\n")
    assert load_plugin_file(path) == {"plugin": "SLURM", "plugin_args": {"sbatch_args": "--mem=8G"}}
    for text in (
        "- a\n",
        "plugin: [",
        "plugins: SLURM\n",
        "plugin_args: 3\n",
        "!!python/object/apply:os.system ['true']",
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError):
            load_plugin_file(path)
    with pytest.raises(MissingInputError):
        load_plugin_file(tmp_path / "none.yml")
