"""Speed of `gentract.py`: one whole process of ours and one of `tckgen` iFOD2 for as many accepted streamlines, 2 threads each.

Ours loads the shipped weights, encodes one subject, draws and writes lines of 64 points; its field is on the training grid
already (registration is the app's, for every tracker alike). `tckgen` reads the subject's FOD and writes at its defaults.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import psutil
from gentract_lines import Case
from gentract_scores import Record
from measure import watch

from tractode.fields import Image
from tractode.io.nifti import write_image

HERE = Path(__file__).parent


def speed(case: Case, weights: Path, n: int, repeats: int = 1) -> Record:
    """The fastest of ``repeats`` runs of each; ``load`` is the machine's load average before, to judge them by."""
    with tempfile.TemporaryDirectory(prefix="gentract-speed-") as temporary:
        folder = Path(temporary)
        entry = _ours(case, weights, n, repeats, folder)
        if shutil.which("tckgen"):
            entry |= _peer(case, n, repeats, folder)
    return entry


def _ours(case: Case, weights: Path, n: int, repeats: int, folder: Path) -> Record:
    write_image(folder / "field.nii", Image(case.field.grid, case.field.coeffs.float()))
    command = [
        sys.executable, str(HERE / "gentract_run.py"), str(folder / "field.nii"), str(folder / "ours.tck"),
        "--weights", str(weights), "--select", str(n), "--threads", "2",
    ]  # fmt: skip
    load = psutil.getloadavg()[0]
    runs = [watch(command, {"OMP_NUM_THREADS": "2"}) for _ in range(repeats)]
    for run in runs:
        if run.exit_code:
            raise RuntimeError(run.output[-2000:])
    best = min(runs, key=lambda run: run.seconds)
    printed = json.loads(best.output.splitlines()[-1])
    return {
        "streamlines_per_s": round(printed["n"] / best.seconds, 1),
        "peak_rss_mb": best.peak_rss_mb,
        "seconds": best.seconds,
        "n": printed["n"],
        "points_per_line": round(printed["n_points"] / max(printed["n"], 1), 1),
        "parts": printed["seconds"],
        "processor_s": printed["processor_s"],
        "threads": 2,
        "load_before": round(load, 2),
    }


def _peer(case: Case, n: int, repeats: int, folder: Path) -> Record:
    write_image(folder / "fod.nii", Image(case.fod.grid, case.fod.coeffs.float()))
    for stem, least in (("mask", 0.2), ("seeds", 0.5)):
        write_image(folder / f"{stem}.nii", Image(case.white.grid, (case.white.values[:1] > least).float()))
    command = [
        "tckgen", str(folder / "fod.nii"), str(folder / "peer.tck"), "-algorithm", "iFOD2",
        "-seed_image", str(folder / "seeds.nii"), "-mask", str(folder / "mask.nii"),
        "-select", str(n), "-nthreads", "2", "-quiet", "-force",
    ]  # fmt: skip
    best = min((watch(command) for _ in range(repeats)), key=lambda run: run.seconds)
    return {
        "peer": "MRtrix3 tckgen iFOD2",
        "peer_per_s": round(n / max(best.seconds, 0.1), 1),
        "peer_peak_rss_mb": best.peak_rss_mb,
        "peer_seconds": best.seconds,
    }
