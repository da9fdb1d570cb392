"""The walk: every real participant through the whole app, the simulated ones against their truth, the image's size.

    python benchmarks/walk.py --out benchmarks/results/walk.json [--only sub-xa30 …] [--image TAG] [--keep FOLDER]

Prints one JSON object. ``runs`` has an entry a dwi run: ``seconds`` and ``peak_rss_mb`` are those of the whole command for
its participant. ``simulated`` is two participants of ``tractode-simulate``, scored by ``tractode-score``. ``peers`` is
MRtrix3's SD_STREAM on the FODs that the app wrote, where tckgen is installed. ``image`` needs a built container image.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import meta, watch

BIN = Path(sys.executable).parent
PARTICIPANTS = ("sub-xa30", "sub-prismasag", "sub-toshiba60", "sub-ds114", "sub-philipsslab", "sub-canonA")
SIMULATE = ["--participants", "2", "--seed", "1", "--resolution", "2.5", "--shells", "1000:20,2500:40"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=PARTICIPANTS)
    parser.add_argument("--image", help="tag of a built image")
    parser.add_argument("--keep", type=Path, help="folder for the outputs; a temporary one by default")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="walk-"))
    data = Path(os.environ["TRACTODE_TEST_DATA"])
    result: dict[str, Any] = {
        "meta": meta("TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA " + " ".join(["python benchmarks/walk.py", *sys.argv[1:]]))
    }
    result["runs"] = {}
    for participant in arguments.only:
        result["runs"] |= real(participant, data, folder)
    result["peers"] = peers(folder / "real", "sub-xa30_dir-AP") if "sub-xa30" in arguments.only else {}
    result["simulated"] = simulated(folder)
    if arguments.image:
        result["image"] = image(arguments.image)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return 0


def real(participant: str, data: Path, folder: Path) -> dict[str, Any]:
    """One command for one participant; an entry for each of its runs."""
    output = folder / "real"
    command = [
        str(BIN / "tractode"), str(data / "bids_real"), str(output), "participant",
        "--participant-label", participant, "-w", str(folder / "work"), "--nprocs", "2", "--omp-nthreads", "1",
    ]  # fmt: skip
    measured = watch(command, {"TEMPLATEFLOW_HOME": str(data / "templateflow")})
    common = {"seconds": measured.seconds, "peak_rss_mb": measured.peak_rss_mb, "exit_code": measured.exit_code, "n": 1}
    entries = {}
    for table in sorted((data / "bids_real" / participant / "dwi").glob("*.bval")):
        run = table.name.removesuffix("_dwi.bval")
        verdicts = list((output / participant / "dwi").glob(f"{run}_desc-gradients_qc.json"))
        verdict = json.loads(verdicts[0].read_text())["verdict"] if verdicts else None
        entries[run] = {
            **common,
            "n_streamlines": streamlines(output, participant, run),
            "gradient_verdict": verdict,
        }
    return entries


def streamlines(output: Path, participant: str, run: str) -> int:
    """Accepted streamlines as the sidecar states them; 0 where the run has no tractogram."""
    found = list((output / participant / "dwi").glob(f"{run}_track-*_tractogram.json"))
    return json.loads(found[0].read_text())["StreamlineReconstructionDensity"]["AcceptedStreamlines"] if found else 0


def peers(output: Path, run: str) -> dict[str, Any]:
    """MRtrix3 on the same FODs with the same mask: seconds for as many streamlines as the app was asked for."""
    if shutil.which("tckgen") is None:
        return {"skipped": "tckgen is not installed"}
    scan = output / run.partition("_")[0] / "dwi"
    mask = scan / f"{run}_desc-brain_mask.nii.gz"
    count = streamlines(output, run.partition("_")[0], run)
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            "tckgen", str(scan / f"{run}_model-csd_param-fod_dwimap.nii.gz"), f"{temporary}/peer.tck", "-algorithm", "SD_STREAM",
            "-seed_image", str(mask), "-mask", str(mask), "-select", str(count), "-nthreads", "2", "-quiet",
        ]  # fmt: skip
        measured = watch(command)
    record = json.loads((output / "logs" / run.partition("_")[0] / "steps" / f"{run}_track-sdstream.json").read_text())
    return {
        "tckgen_sdstream": {
            "seconds": measured.seconds,
            "peak_rss_mb": measured.peak_rss_mb,
            "n_streamlines": count,
            "n": 1,
        },
        "tractode_sdstream": {"seconds": record["seconds"], "n_streamlines": count, "n": 1},
    }


def simulated(folder: Path) -> dict[str, Any]:
    """Two simulated participants, scored against their truth."""
    raw, output = folder / "simulated", folder / "simulated-derivatives"
    subprocess.run([str(BIN / "tractode-simulate"), str(raw), *SIMULATE], check=True, stdout=subprocess.DEVNULL)
    command = [
        str(BIN / "tractode"), str(raw), str(output), "participant", "-w", str(folder / "work"),
        "--output-spaces", "MNI152NLin2009aSym", "--n-streamlines", "20000",
    ]  # fmt: skip
    measured = watch(command)
    scored = subprocess.run(
        [str(BIN / "tractode-score"), "all", str(output), str(raw / "derivatives" / "truth")],
        check=True,
        capture_output=True,
        text=True,
    )
    scores = json.loads(scored.stdout)
    return {**scores, "seconds": measured.seconds, "peak_rss_mb": measured.peak_rss_mb, "exit_code": measured.exit_code}


def image(tag: str) -> dict[str, Any]:
    """Size of a built image, and seconds from ``run`` to the printed version (median of 5)."""
    size = subprocess.run(
        ["podman", "image", "inspect", "--format", "{{.Size}}", tag], check=True, capture_output=True, text=True
    )
    times = []
    for _ in range(5):
        started = time.monotonic()
        subprocess.run(
            ["podman", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", tag, "--version"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        times.append(time.monotonic() - started)
    return {"mb": round(int(size.stdout) / 1e6), "start_s": round(sorted(times)[2], 2), "n": 5}


if __name__ == "__main__":
    sys.exit(main())
