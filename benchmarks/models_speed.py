"""Voxels a second, whole process, files in and files out: ours beside MRtrix3 and DIPY on a simulated brain of 2 mm.

    python benchmarks/models_speed.py [--output benchmarks/results/models_speed.json] [--work FOLDER] [--repeats 3]

Every entry is the command of ours (`models_fit.py`) and the peer's on the same uncompressed image, table, mask and responses,
two threads each, in turn; medians of ``--repeats`` pairs. Each is one process; memory is its largest resident size. ``ours_vox_per_s`` has start-up (about 1.6 s of imports) and a warm
cache of compiled code; ``cold_seconds`` an empty one. ``fit_vox_per_s`` is the fit alone. ``msmt_csd`` of the peer is timed on a slab
of its slices (start-up is 0.1 s) because the whole brain takes it minutes. ``dti`` is the ordinary fit alone on one thread, DIPY's and
ours, because that is what DIPY's rate means; whole processes (files in, files out, two threads) stand below it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models_subjects
from measure import Measured, meta
from models_subjects import Scan
from tracking_subjects import call

HERE = Path(__file__).parent
Entry = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--work", type=Path, help="folder that keeps the subject between runs; a temporary one by default"
    )
    parser.add_argument("--only", nargs="*", default=["csd", "msmt_csd", "dki", "dti"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slices", type=int, default=6, help="of the slab for the peer's msmt_csd")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="speed-"))
    result: Entry = {"meta": meta(" ".join(["python benchmarks/models_speed.py", *sys.argv[1:]]))}
    result["meta"]["mrtrix3"] = call("dwi2fod", "-version").splitlines()[0].strip("= ")
    multi = models_subjects.simulated(work)
    bench = Bench(work, multi, arguments.repeats, arguments.slices)
    for name in arguments.only:
        result[name] = getattr(bench, name)()
        print(name, json.dumps(result[name]), file=sys.stderr)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


class Bench:
    """The commands of every model, ours and theirs."""

    def __init__(self, work: Path, multi: Scan, repeats: int, n_slices: int) -> None:
        self.work, self.multi, self.repeats, self.n_slices = work, multi, repeats, n_slices
        self.kept = work / "kernels"
        self.responses = {name: work / f"response_{name}.txt" for name in ("wm", "gm", "csf", "single")}
        if not self.responses["csf"].exists():
            tissues = [self.responses[name] for name in ("wm", "gm", "csf")]
            call("dwi2response", "dhollander", multi.dwi, *tissues, *self._given(multi), "-scratch", work)

    def csd(self) -> Entry:
        scan = models_subjects.shell_of(self.multi, self.work, 2500)
        response = self.responses["single"]
        if not response.exists():
            call("dwi2response", "fa", scan.dwi, response, *self._given(scan), "-scratch", self.work)
        peer = ["dwi2fod", "csd", scan.dwi, response, self.work / "peer.nii", "-lmax", "8", *self._given(scan)]
        return self._paired("csd", scan, lambda: self._timed([*peer, "-nthreads", "2"]), [response])

    def msmt_csd(self) -> Entry:
        responses = [self.responses[name] for name in ("wm", "gm", "csf")]
        slab = models_subjects.slab_of(self.multi, self.work, f"slab{self.n_slices}", self.n_slices)
        outs = [item for path in responses for item in (path, self.work / f"peer_{path.stem}.nii")]
        peer = ["dwi2fod", "msmt_csd", slab.dwi, *outs, *self._given(slab), "-nthreads", "2"]
        return self._paired("msmt_csd", self.multi, lambda: self._timed(peer), responses, peer_voxels=count(slab.mask))

    def dki(self) -> Entry:
        peer = ["dwi2tensor", self.multi.dwi, self.work / "peer.nii", "-dkt", self.work / "peer_kurtosis.nii"]
        command = [*peer, *self._given(self.multi), "-nthreads", "2"]
        # The same algorithm: MRtrix3's default weights the fit by the signal, then twice by the fit before.
        return self._paired("dki", self.multi, lambda: self._timed(command), options=("--fit-method", "iwls"))

    def dti(self) -> Entry:
        scan = models_subjects.shell_of(self.multi, self.work, 1000)
        fit_alone: list[float] = []

        def dipy() -> Measured:
            done = self._timed([sys.executable, HERE / "models_fit_dipy.py", scan.dwi, scan.bval, scan.bvec, scan.mask, self.work / "peer.nii"])  # fmt: skip
            fit_alone.append(json.loads(done.output.splitlines()[-1])["seconds"]["fit"])
            return done

        options = ("--fit-method", "ols")
        whole = self._paired("dti", scan, dipy, options=options)
        mrtrix = self._timed(["dwi2tensor", scan.dwi, self.work / "peer.nii", *self._given(scan), "-nthreads", "2"])
        whole["dwi2tensor_vox_per_s"] = round(whole["n"] / mrtrix.seconds)
        alone = [self._ours("dti", scan, (), options, threads=1)[1]["seconds"]["fit"] for _ in range(self.repeats)]
        ours, theirs = statistics.median(alone), statistics.median(fit_alone)
        return {
            "ours_vox_per_s": round(whole["n"] / ours),
            "peer_vox_per_s": round(whole["n"] / theirs),
            "ratio": round(theirs / ours, 3),
            "peak_rss_mb": whole["peak_rss_mb"],
            "n": whole["n"],
            "repeats": self.repeats,
            "whole_process": whole,
        }

    def _paired(
        self,
        model: str,
        scan: Scan,
        peer: Callable[[], Measured],
        responses: list[Path] | tuple[()] = (),
        options: tuple[str, ...] = (),
        peer_voxels: int | None = None,
    ) -> Entry:
        """Ours and theirs in turn, after one run of ours that fills the cache of compiled code."""
        cold, printed = self._ours(model, scan, responses, options, cache=self.work / f"cold-{time.time_ns()}")
        self._ours(model, scan, responses, options)
        ours, theirs, parts = [], [], []
        for _ in range(self.repeats):
            done, printed = self._ours(model, scan, responses, options)
            ours.append(done)
            parts.append(printed["seconds"])
            theirs.append(peer())
        n = printed["n"]
        mine, other = (statistics.median(run.seconds for run in runs) for runs in (ours, theirs))
        rate, peer_rate = n / mine, (peer_voxels or n) / other
        return {
            "ours_vox_per_s": round(rate),
            "peer_vox_per_s": round(peer_rate),
            "ratio": round(rate / peer_rate, 3),
            "peak_rss_mb": max(run.peak_rss_mb for run in ours),
            "peer_peak_rss_mb": max(run.peak_rss_mb for run in theirs),
            "n": n,
            "peer_n": peer_voxels or n,
            "repeats": self.repeats,
            "seconds": mine,
            "peer_seconds": other,
            "cold_seconds": cold.seconds,
            "fit_vox_per_s": round(n / statistics.median(part["fit"] for part in parts)),
            "parts": {name: round(statistics.median(part[name] for part in parts), 3) for name in parts[0]},
        }

    def _ours(
        self,
        model: str,
        scan: Scan,
        responses: list[Path] | tuple[()],
        options: tuple[str, ...],
        threads: int = 2,
        cache: Path | None = None,
    ) -> tuple[Measured, Entry]:
        given = ("--responses", *responses) if responses else ()
        files = (scan.dwi, scan.bval, scan.bvec, scan.mask, self.work / "ours.nii")
        command = [sys.executable, HERE / "models_fit.py", model, *files, *given, *options]
        environment = {"NUMBA_CACHE_DIR": str(cache or self.kept), "OMP_NUM_THREADS": str(threads)}
        done = self._timed(command, environment)
        return done, json.loads(done.output.splitlines()[-1])

    def _given(self, scan: Scan) -> list[Any]:
        return ["-mask", scan.mask, *scan.mrtrix, "-force", "-quiet"]

    def _timed(self, command: list[Any], environment: dict[str, str] | None = None) -> Measured:
        """Nothing looks at the process while it runs: the kernel tells its largest resident size afterwards."""
        words, started = [str(part) for part in command], time.monotonic()
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                words, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            printed = output.read()
        if process.returncode:
            raise RuntimeError(f"{' '.join(words)} exited with {process.returncode}: {printed[-2000:]}")
        return Measured(round(seconds, 2), round(usage.ru_maxrss / 1024, 1), process.returncode, printed)


def count(mask: Path) -> int:
    import nibabel
    import numpy as np

    return int((np.asanyarray(nibabel.load(mask).dataobj) > 0).sum())


if __name__ == "__main__":
    raise SystemExit(main())
