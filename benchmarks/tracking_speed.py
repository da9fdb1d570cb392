"""Streamlines a second, whole process, file written: ours beside MRtrix3 and DIPY on a simulated 2 mm participant.

    python benchmarks/tracking_speed.py [--output benchmarks/results/tracking_speed.json] [--work FOLDER] [--million]

Every entry is one command of ours (`track_file.py`) and one of the peer's on the same FOD (order 8), the same masks (white
matter to seed and to track in), the same limits (20–250 mm, 30°, cutoff 0.1) and 2 threads each; both write a .tck and are
matched on the streamlines accepted. ``ours_per_s`` has start-up and a warm cache of compiled code; ``cold_per_s`` an empty
one. MRtrix3's SD_STREAM is its fastest, with tabulated Legendre functions. ``eudx`` starts from the same peaks
(`peak_field`) in both programs: peak images for ours, what DIPY makes of them for DIPY.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import Measured, meta, watch
from tracking_subjects import call, simulated

HERE = Path(__file__).parent
LIMITS = ("--angle", "30", "--cutoff", "0.1", "--min-length", "20", "--max-length", "250")
PEER_LIMITS = ("-angle", "30", "-cutoff", "0.1", "-minlength", "20", "-maxlength", "250")
# name: tracker, streamlines, step in mm (None: the method's default), what MRtrix3 calls it
TASKS: dict[str, tuple[str, int, float | None, str]] = {
    "sdstream": ("sdstream", 100_000, 1.0, "SD_STREAM"),
    "sdstream_default_step": ("sdstream", 100_000, None, "SD_STREAM"),
    "ifod2": ("ifod2", 100_000, 1.0, "iFOD2"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--work", type=Path, help="folder that keeps the subject between runs; a temporary one by default"
    )
    parser.add_argument("--only", nargs="*", default=[*TASKS, "eudx", "million"])
    parser.add_argument("--scale", type=float, default=1.0, help="a fraction of the streamlines, to try the script")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="speed-"))
    command = " ".join(["python benchmarks/tracking_speed.py", *sys.argv[1:]])
    result: dict[str, Any] = {"meta": meta(command)}
    result["meta"]["mrtrix3"] = call("tckgen", "--version").splitlines()[0].strip("= ")
    fod, _, white = simulated(work / "simulated")
    out = work / "lines"
    out.mkdir(exist_ok=True)
    kept = out / "kernels"  # compiled code of this run
    for name in arguments.only:
        if name in TASKS:
            tracker, n, step, peer = TASKS[name]
            result[name] = against_mrtrix(fod, white, out, kept, tracker, int(arguments.scale * n), step, peer)
        elif name == "eudx":
            result[name] = against_dipy(fod, white, out, kept, int(arguments.scale * 100_000))
        else:
            result[name] = million(fod, white, out, kept, int(arguments.scale * 1_000_000))
        print(name, json.dumps(result[name]), file=sys.stderr)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


def ours(fod: Path, mask: Path, out: Path, cache: Path, *options: object) -> tuple[Measured, dict[str, Any]]:
    """One run of `track_file.py`, and what it printed."""
    command = [sys.executable, str(HERE / "track_file.py"), str(fod), str(mask), str(out), *map(str, options)]
    measured = timed(command, {"NUMBA_CACHE_DIR": str(cache)})
    return measured, json.loads(measured.output.splitlines()[-1])


def timed(command: list[str], environment: dict[str, str] | None = None) -> Measured:
    """`watch`, with the wall time to the hundredth: it polls four times a second."""
    measured = watch(command, environment)
    if measured.exit_code:
        raise RuntimeError(f"{' '.join(command)} exited with {measured.exit_code}: {measured.output[-2000:]}")
    return measured


def rates(warm: Measured, cold: Measured | None, printed: dict[str, Any], peer: Measured, n: int) -> dict[str, Any]:
    entry = {
        "ours_per_s": round(n / warm.seconds, 1),
        "peer_per_s": round(n / peer.seconds, 1),
        "ratio": round(peer.seconds / warm.seconds, 3),
        "peak_rss_mb": warm.peak_rss_mb,
        "peer_peak_rss_mb": peer.peak_rss_mb,
        "n": n,
        "seconds": warm.seconds,
        "peer_seconds": peer.seconds,
        "parts": printed["seconds"],
        "n_points": printed["n_points"],
    }
    if cold is not None:
        entry |= {"cold_per_s": round(n / cold.seconds, 1), "cold_ratio": round(peer.seconds / cold.seconds, 3)}
    return entry


def against_mrtrix(
    fod: Path, white: Path, out: Path, kept: Path, tracker: str, n: int, step: float | None, peer: str
) -> dict[str, Any]:
    steps = () if step is None else ("--step", step)
    arguments = ("--tracker", tracker, "--select", n, *steps, *LIMITS)
    cold, _ = ours(fod, white, out / "ours.tck", out / f"cold-{time.time_ns()}", *arguments)
    ours(fod, white, out / "ours.tck", kept, "--tracker", tracker, "--select", 10, *steps, *LIMITS)
    warm, printed = ours(fod, white, out / "ours.tck", kept, *arguments)
    command = [
        "tckgen", str(fod), str(out / "peer.tck"), "-algorithm", peer, "-seed_image", str(white), "-mask", str(white),
        "-select", str(n), "-nthreads", "2", "-force", "-quiet", *PEER_LIMITS,
    ]  # fmt: skip
    theirs = timed([*command, *(() if step is None else ("-step", str(step)))])
    return rates(warm, cold, printed, theirs, n)


def against_dipy(fod: Path, white: Path, out: Path, kept: Path, n: int) -> dict[str, Any]:
    """EuDX from the same peaks; DIPY gets as many seeds as give about as many lines, and rates are per line accepted."""
    peaks = out / "peaks.nii"
    call(sys.executable, HERE / "track_dipy_eudx.py", "peaks", fod, peaks)
    arguments = ("--tracker", "eudx", "--peaks", "--select", n, "--step", 1, *LIMITS)
    cold, _ = ours(peaks, white, out / "ours.tck", out / f"cold-{time.time_ns()}", *arguments)
    ours(peaks, white, out / "ours.tck", kept, *arguments[:4], 10, *arguments[5:])
    warm, printed = ours(peaks, white, out / "ours.tck", kept, *arguments)
    theirs = timed([
        sys.executable, str(HERE / "track_dipy_eudx.py"), "track", str(peaks), str(white), str(out / "peer.tck"), str(n)
    ])  # fmt: skip
    told = json.loads(theirs.output.splitlines()[-1])
    entry = rates(warm, cold, printed, theirs, n)
    rate = told["n"] / (theirs.seconds - told["index_s"])
    return {**entry, "peer_per_s": round(rate, 1), "ratio": round(n / warm.seconds / rate, 3),
            "cold_ratio": round(n / cold.seconds / rate, 3), "peer_n": told["n"],
            "peer_parts": {name: round(told[name], 2) for name in ("index_s", "track_s", "write_s")}}  # fmt: skip


def million(fod: Path, white: Path, out: Path, kept: Path, n: int) -> dict[str, Any]:
    """A million streamlines into one TRX: memory must not grow with their number."""
    measured, printed = ours(fod, white, out / "million.trx", kept, "--select", n, "--step", 1, *LIMITS)
    size = (out / "million.trx").stat().st_size
    (out / "million.trx").unlink()
    return {
        "n": printed["n"], "seconds": measured.seconds, "ours_per_s": round(printed["n"] / measured.seconds, 1),
        "peak_rss_mb": measured.peak_rss_mb, "file_mb": round(size / 2**20, 1),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
