"""A tiny BIDS dataset, and the app as a program on it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

FAKE_APP = Path(__file__).with_name("fake_app.py")


def make_run(
    bids: Path, label: str, run: str = "", n_directions: int = 15, shape: tuple[int, int, int] = (6, 5, 4)
) -> Path:
    """A dwi run of noise on an oblique, left-handed grid: enough for whatever looks at headers and tables."""
    folder = bids / f"sub-{label}" / "dwi"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n_directions, 3))
    vectors = np.vstack([np.zeros(3), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)])
    affine = np.array([[-2.0, 0.1, 0, 31], [0.1, 2.0, 0.2, -17], [0, -0.2, 2.0, 4], [0, 0, 0, 1]])
    image = nib.Nifti1Image(rng.integers(1, 500, (*shape, n_directions + 1)).astype(np.int16), affine)
    image.header.set_xyzt_units("mm", "sec")
    stem = folder / f"sub-{label}{run and '_run-' + run}_dwi"
    nib.save(image, f"{stem}.nii.gz")
    np.savetxt(f"{stem}.bval", np.r_[0, np.full(n_directions, 1000)][None], "%d")
    np.savetxt(f"{stem}.bvec", vectors.T, "%.8f")
    Path(f"{stem}.json").write_text('{"PhaseEncodingDirection": "j-"}')
    return Path(f"{stem}.nii.gz")


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    folder = tmp_path / "bids"
    folder.mkdir()
    (folder / "dataset_description.json").write_text('{"Name": "tiny", "BIDSVersion": "1.9.0"}')
    for label in ("01", "02", "03"):
        make_run(folder, label)
    return folder


@pytest.fixture
def add_run() -> Callable[..., Path]:
    return make_run


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """What every run of the fake app is given: small, on the CPU, without templates."""
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin_args:\n  preload: [tractode.bids.manifest]\n")
    resources = ["--device", "cpu", "--nprocs", "2", "--omp-nthreads", "1", "--work-dir", str(tmp_path / "work")]
    return [*resources, "--output-spaces", "native", "--use-plugin", str(plugin)]


@pytest.fixture
def app(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The app with a fake workflow in this process: ``app({"01": "ok"}, bids, out, "participant")`` → code and texts."""
    from tractode.cli.run import main

    specification = importlib.util.spec_from_file_location("fake_app", FAKE_APP)
    assert specification is not None
    assert specification.loader is not None
    fake = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(fake)
    monkeypatch.setitem(sys.modules, "tractode.workflows.participant", fake)

    def run(steps: dict[str, str], *words: object) -> tuple[int, str, str]:
        monkeypatch.setenv("FAKE_STEPS", json.dumps(steps))
        code = main([*map(str, words), *options])
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return code, out, err

    return run


@pytest.fixture
def program(options: list[str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The same as a program of its own, started and not waited for."""
    started: list[subprocess.Popen[str]] = []

    def start(steps: dict[str, str], *words: object) -> subprocess.Popen[str]:
        environ = {**os.environ, "FAKE_STEPS": json.dumps(steps), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(FAKE_APP), *map(str, words), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, env=environ, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
