"""Susceptibility correction: a known simulated field, and a real reversed pair beside the scanner's phase-difference map.

    python benchmarks/distortion.py [--peers PEERS/bin/python] [--output benchmarks/results/distortion.json]

``simulated``: a b=0 image painted from the built-in template on an oblique, left-handed 2.5 mm grid is distorted both ways by
the shimmed field of air spheres (`simulate.susceptibility`), with noise and a small motion between the two; errors in Hz and
mm over the brain, the constant that a shift along the encoding leaves open taken out. ``xa30``: the field of the AP/PA pair
against the phasediff field map, which is another measurement of it; and how alike the two scans become by each.

``simulated_anatomy`` and ``xa30_anatomy`` (distortion_anatomy.py): the field from a T1w or T2w image alone, beside the reversed pair on
the same scans and SyN of ANTs restricted to the encoding's axis, from the same rigid pose; Hz, where a point of the anatomy
lands in the scan (mm along the encoding, pose and field together), and for the real scans the boundary-based cost of b=0 → T1w.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import distortion_anatomy
import numpy as np
import torch
from measure import meta
from torch import Tensor

from tractode.fields import Affine, Image, ImageGrid
from tractode.io.builtin_template import load_builtin
from tractode.io.nifti import read_image
from tractode.ops import epi
from tractode.preprocess.field_map import as_radians, field_from_phase
from tractode.registration.reverse_encoding import EncodedScan, FieldEstimate, estimate_field, undistort
from tractode.simulate.susceptibility import field_of_air, shimmed

READOUT = 0.05
PARTS = ("simulated", "xa30", "simulated_anatomy", "xa30_anatomy")
SCENES = (("T1w", 0.03, 0), ("T1w", 0.08, 1), ("T2w", 0.03, 2), ("T2w", 0.08, 3))  # contrast, noise (b=0 of 1), seed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", help="a Python with antspyx")
    parser.add_argument("--picture", type=Path, help="where to draw the T1w's outlines over b=0")
    parser.add_argument("--brain", type=Path, help="the T1w's brain mask where there is one already; else it is found")
    parser.add_argument("--ways", nargs="+", default=["AP", "PA"], choices=["AP", "PA"])
    parser.add_argument("--scenes", type=int, nargs="+", default=list(range(len(SCENES))))
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRACTODE_TEST_DATA", "../shared/data")))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"meta": meta(" ".join(["python benchmarks/distortion.py", *sys.argv[1:]]))}
    if arguments.output and arguments.output.is_file():  # parts that are not run again stay
        result = json.loads(arguments.output.read_text()) | result
    if "simulated" in arguments.only:
        runs = [simulated(seed) for seed in range(arguments.seeds)]
        result["simulated"] = {
            "n": len(runs), "mean": {key: round(float(np.mean([run[key] for run in runs])), 4) for key in runs[0]}, "runs": runs
        }  # fmt: skip
    if "simulated_anatomy" in arguments.only:
        result["simulated_anatomy"] = simulated_anatomy(arguments.scenes, arguments.peers)
    folder = arguments.data / "bids_real" / "sub-xa30"
    if folder.is_dir():
        if "xa30" in arguments.only:
            result["xa30"] = real(folder)
        if "xa30_anatomy" in arguments.only:
            found = real_anatomy(folder, arguments)
            found = result.get("xa30_anatomy", {}).get("scans", {}) | found
            result["xa30_anatomy"] = {"n": len(found), "mean": mean_of(list(found.values())), "scans": found}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


def timed(scans: tuple[EncodedScan, ...]) -> tuple[FieldEstimate, dict[str, float]]:
    wall, processor = time.monotonic(), time.process_time()
    found = estimate_field(scans)
    return found, {
        "seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - processor, 1)
    }  # fmt: skip


# --- a known field --------------------------------------------------------------------------------------------------


def simulated(seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    grid = oblique()
    points = grid.centres()
    brain, signal_at = painted()
    signal = signal_at(points)
    inside = brain(points) > 0.5
    motion = small_motion(generator, points[inside].mean(0).double())

    def field(at: Tensor) -> Tensor:
        return field_of_air(at, torch.tensor([0.0, 0.0, 1.0]))

    truth = shimmed(field(points), points, inside.float())
    scans = []
    for sign, matrix in ((1, torch.eye(4, dtype=torch.float64)), (-1, motion)):
        # The head moves and its field with it (small turns change the field little).
        real = Affine(matrix, "a", "b").inverse().map(points)
        hz = shimmed(field(real), real, (brain(real) > 0.5).float())
        moved = epi.distorted(signal_at(real)[None], epi.shift_vox(hz, sign, READOUT), 1)
        noisy = moved + 0.03 * torch.randn(moved.shape, generator=generator)
        scans.append(EncodedScan(Image(grid, noisy), 1, sign, READOUT))
    found, times = timed((scans[0], scans[1]))
    off = (found.field.values[0] - truth)[inside]
    off = off - off.median()
    apart = found.motions[1].map(points[inside]) - Affine(motion, "a", "b").map(points[inside])
    along = (scans[0].direction / scans[0].direction.norm()).to(apart)
    corrected = undistort(scans[0], found.field).values[0]
    return {
        "field_rms_hz": rms(truth[inside]),
        "error_rms_hz": rms(off),
        "error_median_hz": float(off.abs().median()),
        "error_p95_hz": float(off.abs().quantile(0.95)),
        "error_rms_mm": rms(off) * float(scans[0].direction.norm()),
        "distortion_rms_mm": rms(truth[inside]) * float(scans[0].direction.norm()),
        "motion_error_mm": float((apart - (apart @ along)[:, None] * along).norm(dim=-1).mean()),
        "image_rms_before": rms((scans[0].image.values[0] - signal)[inside]),
        "image_rms_after": rms((corrected - signal)[inside]),
        **times,
    }


def oblique() -> ImageGrid:
    turn = torch.tensor([[0.0, -0.15, 0.05], [0.15, 0.0, -0.1], [-0.05, 0.1, 0.0]], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.linalg.matrix_exp(turn) @ torch.diag(torch.tensor([-2.5, 2.5, 2.5], dtype=torch.float64))
    middle = torch.tensor([39.5, 47.5, 34.5], dtype=torch.float64)
    affine[:3, 3] = torch.tensor([0.0, -18.0, 15.0], dtype=torch.float64) - affine[:3, :3] @ middle
    return ImageGrid((80, 96, 70), affine, "scan")


def painted() -> tuple[Any, Any]:
    """Functions of points: whether they are in the brain, and the b=0 signal there."""
    grey, white, t1w = (load_builtin(kind, 2.0) for kind in ("GM", "WM", "T1w"))
    brain = (t1w.values > 0.15 * t1w.values.amax()).float()
    fluid = (brain - grey.values - white.values).clamp(0, 1) * brain
    signal = Image(t1w.grid, 0.6 * white.values + 0.85 * grey.values + 1.6 * fluid)
    mask = Image(t1w.grid, brain)
    return (lambda at: mask.sample(at)[..., 0]), (lambda at: signal.sample(at)[..., 0])


def small_motion(generator: torch.Generator, centre: Tensor) -> Tensor:
    a, b, c = (0.02 * torch.randn(3, generator=generator, dtype=torch.float64)).tolist()
    skew = torch.tensor([[0.0, -c, b], [c, 0.0, -a], [-b, a, 0.0]], dtype=torch.float64)
    motion = torch.eye(4, dtype=torch.float64)
    motion[:3, :3] = torch.linalg.matrix_exp(skew)
    motion[:3, 3] = centre - motion[:3, :3] @ centre + 0.7 * torch.randn(3, generator=generator, dtype=torch.float64)
    return motion


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


# --- a real pair ----------------------------------------------------------------------------------------------------


def real(folder: Path) -> dict[str, Any]:
    scans = tuple(real_scan(folder, way) for way in ("AP", "PA"))
    found, times = timed(scans)
    mapped, magnitude = phasediff_map(folder)
    grid = scans[0].image.grid
    centres = grid.centres()
    other = Image(grid, mapped.sample(centres, outside="nearest").movedim(-1, 0))
    corrected = undistort(scans[0], found.field).values[0]
    bright = magnitude.sample(centres)[..., 0]
    inside = (corrected > 0.4 * corrected[corrected > corrected.mean()].mean()) & (bright > 0.3 * bright.quantile(0.98))
    apart = (found.field.values - other.values)[0][inside]
    still = torch.zeros_like(other.values)
    return {
        "n": int(inside.sum()),
        "field_rms_hz": rms(other.values[0][inside] - other.values[0][inside].median()),
        "difference_median_hz": float(apart.median()),
        "difference_rms_hz": rms(apart - apart.median()),
        "difference_median_absolute_hz": float((apart - apart.median()).abs().median()),
        "correlation": float(
            torch.corrcoef(torch.stack((found.field.values[0][inside], other.values[0][inside])))[0, 1]
        ),
        "scans_apart": {
            "uncorrected": scans_apart(scans, Image(grid, still), inside, None),
            "by_the_pair": scans_apart(scans, found.field, inside, found.motions),
            "by_phasediff": scans_apart(scans, other, inside, found.motions),
            "by_phasediff_turned_round": scans_apart(scans, Image(grid, -other.values), inside, found.motions),
        },
        **times,
    }


def phasediff_map(folder: Path) -> tuple[Image, Image]:
    """Hz, and the magnitude image."""
    phase, _ = read_image(folder / "fmap" / "sub-xa30_phasediff.nii.gz", "fmap")
    magnitude, _ = read_image(folder / "fmap" / "sub-xa30_magnitude1.nii.gz", "fmap")
    sidecar = json.loads((folder / "fmap" / "sub-xa30_phasediff.json").read_text())
    return field_from_phase(as_radians(phase), magnitude, (sidecar["EchoTime1"], sidecar["EchoTime2"])), magnitude


def real_anatomy(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    anatomy, _ = read_image(folder / "anat" / "sub-xa30_T1w.nii.gz", "T1w")
    brain = read_image(arguments.brain, "T1w")[0] if arguments.brain else None
    scans = {way: real_scan(folder, way) for way in ("AP", "PA")}
    mapped, magnitude = phasediff_map(folder)
    return distortion_anatomy.real(
        Image(anatomy.grid, anatomy.values.float()),
        brain and Image(brain.grid, brain.values > 0.5),
        scans,
        arguments.ways,
        mapped,
        magnitude,
        arguments.peers,
        arguments.picture,
    )


def simulated_anatomy(scenes: list[int], peers: str | None) -> dict[str, Any]:
    runs = []
    for kind, noise, seed in (SCENES[n] for n in scenes):
        runs.append({"contrast": kind, "noise": noise} | distortion_anatomy.simulated(kind, noise, seed, peers))
    methods = [{key: run[key] for key in run if key not in ("contrast", "noise")} for run in runs]
    return {"n": len(runs), "mean": mean_of(methods), "runs": runs}


def mean_of(runs: list[Any]) -> Any:
    """The mean of numbers in like places."""
    if isinstance(runs[0], dict):
        return {key: mean_of([run[key] for run in runs]) for key in runs[0]}
    return round(float(np.mean(runs)), 4)


def scans_apart(
    scans: tuple[EncodedScan, ...], field: Image, inside: Tensor, motions: tuple[Affine, ...] | None
) -> float:
    """Root mean square difference of the two scans in the brain, as a share of their mean."""
    each = [undistort(scan, field, motions and motions[n]).values[0][inside] for n, scan in enumerate(scans)]
    return rms(each[0] / each[0].mean() - each[1] / each[1].mean())


def real_scan(folder: Path, way: str) -> EncodedScan:
    stem = folder / "dwi" / f"sub-xa30_dir-{way}_dwi"
    image, _ = read_image(stem.with_suffix(".nii.gz"), f"dwi-{way}")
    unweighted = np.flatnonzero(np.loadtxt(stem.with_suffix(".bval")) < 50).tolist()
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    encoding = sidecar["PhaseEncodingDirection"]
    mean = Image(image.grid, image.values[unweighted].mean(0, keepdim=True).float())
    return EncodedScan(mean, "ijk".index(encoding[0]), -1 if encoding.endswith("-") else 1, sidecar["TotalReadoutTime"])


if __name__ == "__main__":
    sys.exit(main())
