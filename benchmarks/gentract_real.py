"""Generated streamlines of real scans: do they lie in white matter, along the fibres, where the trackers find them?

    python benchmarks/gentract_real.py $TRACTODE_TEST_DATA/bids_real --work /tmp/real [--weights FOLDER]
        [--participants xa30 toshiba60] [--n 10000] [--output benchmarks/results/gentract_real.json]

The app is run as a user would (`--tracking gentract sdstream ifod2`), and what it wrote is held against the scan. Nobody knows
the truth here, so four things stand beside ``gentract``: both trackers; ``atlas_registered``, the very streamlines the model starts
from, carried by the app's own registration only, in the same numbers of every bundle (what the model adds is the difference); and
directions at random in the same places (``…_by_chance``). ``tracked_density`` is how alike the two trackers are to each other.
Shares are of length; angles are to the nearest of a voxel's three largest peaks; densities are compared over the voxels that either visits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from landmarks import _to_scan
from measure import ROOT, meta, watch

from tractode.evaluate.alignment import field_alignment, peaks_along
from tractode.evaluate.density import map_agreement
from tractode.evaluate.visitation import visits
from tractode.fields import Image, ShField, Streamlines
from tractode.fields.sh import order_of
from tractode.generative.knots import points_of
from tractode.interfaces.methods import load_generator
from tractode.io.nifti import read_image
from tractode.io.tractogram import read_tractogram
from tractode.reports.figures_tractogram import evenly

METHODS = ("gentract", "sdstream", "ifod2")
MOST_LINES = 2000


def run_app(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The app on the participants; seconds and memory of the whole run."""
    words = [
        sys.executable, "-m", "tractode", str(arguments.bids), str(out), "participant", "-w", str(arguments.work / "work"),
        "--participant-label", *arguments.participants, "--output-spaces", "native", "--n-streamlines", str(arguments.n),
        "--tracking", *METHODS,
    ]  # fmt: skip
    if arguments.weights:
        words += ["--gentract-weights", str(arguments.weights)]
    done = watch(words)
    if done.exit_code:
        print(done.output, file=sys.stderr)
        raise SystemExit(done.exit_code)
    return {"seconds": done.seconds, "peak_rss_mb": done.peak_rss_mb}


class Scan:
    """What the app wrote of one run."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run, self.space = folder, run, "scan"
        fod, fa, mask = (
            read_image(folder / f"{run}_{name}.nii.gz", self.space)[0]
            for name in ("model-csd_param-fod_dwimap", "model-tensor_param-fa_dwimap", "desc-brain_mask")
        )
        self.field = ShField(fod.grid, fod.values * mask.mask, order_of(len(fod.values)))
        self.white = Image(fa.grid, fa.values > 0.2)

    def lines(self, method: str) -> Streamlines:
        return read_tractogram(self.folder / f"{self.run}_track-{method}_tractogram.trx", self.space)[0]

    def sidecar(self, method: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{self.run}_track-{method}_tractogram.json").read_text())

    def judged(self, lines: Streamlines) -> dict[str, Any]:
        judged = evenly(lines, MOST_LINES)
        found = field_alignment(judged, self.field, peaks_along(self.field, [judged]), self.white).record()
        inside = self.white.sample(lines.points, "nearest")[:, 0] > 0.5
        return {
            **found,
            "n": len(lines),
            "segments": found["n"],
            "points_in_white_matter": round(float(inside.float().mean()), 4),
        }

    def alike(self, first: Streamlines, second: Streamlines) -> dict[str, Any]:
        found = asdict(map_agreement(visits(first, self.field.grid), visits(second, self.field.grid)))
        return {key: round(value, 4) if math.isfinite(value) else None for key, value in found.items()}

    def atlas(self, like: Streamlines, weights: Path | None) -> Streamlines | None:
        """Lines of the model's atlas in the scan, by registration alone: as many of each bundle as ``like`` has."""
        model = load_generator("gentract", weights)
        transform = _to_scan(self.folder, self.run, model.space)
        if transform is None:
            return None
        bundle = like.per_streamline["bundle"].long()
        rows = model.source.rows(bundle, torch.rand(len(bundle), generator=torch.Generator().manual_seed(0)))
        points = points_of(model.source.knots[rows])
        n, m = points.shape[:2]
        lines = Streamlines(points.reshape(-1, 3), torch.arange(0, n * m + 1, m), model.space)
        return lines.moved(transform)


def judge(folder: Path, run: str, weights: Path | None) -> dict[str, Any]:
    """Every method on one run."""
    scan = Scan(folder, run)
    lines: dict[str, Streamlines] = {method: scan.lines(method) for method in METHODS}
    atlas = scan.atlas(lines["gentract"], weights)
    if atlas is not None:
        lines["atlas_registered"] = atlas
    found: dict[str, Any] = {method: scan.judged(part) for method, part in lines.items()}
    for method in ("gentract", "atlas_registered"):
        if method in lines:
            found[method]["density"] = {other: scan.alike(lines[method], lines[other]) for other in METHODS[1:]}
    found["tracked_density"] = scan.alike(lines["sdstream"], lines["ifod2"])
    made = scan.sidecar("gentract")["StreamlineGeneration"]
    rows = [row for row in made["Bundles"] if row["Generated"]]
    kept = [row for row in rows if row["Accepted"]]
    found["generation"] = {
        "n": sum(row["Generated"] for row in rows),
        "accepted": sum(row["Accepted"] for row in rows),
        "bundles_drawn": len(rows),
        "bundles_kept": len(kept),
        "mean_confidence": round(
            sum(r["MeanConfidence"] * r["Generated"] for r in rows) / sum(r["Generated"] for r in rows), 4
        ),
        "median_spread_mm": round(float(torch.tensor([row["SpreadMillimetres"] for row in kept]).median()), 2),
        "leaving_brain_mask": round(made["StreamlinesLeavingBrainMask"] / max(sum(r["Accepted"] for r in rows), 1), 4),
        "registration": made["Registration"],
        "weights": made["Weights"],
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids", type=Path)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the app's outputs; kept, so that a second call goes on"
    )
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--participants", nargs="+", default=["xa30", "toshiba60"])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    out = arguments.work / "out"
    result: dict[str, Any] = {"app": {**run_app(arguments, out), "n": len(arguments.participants)}}
    for label in arguments.participants:
        folder = out / f"sub-{label}" / "dwi"
        runs = sorted(
            path.name.removesuffix("_track-gentract_tractogram.trx")
            for path in folder.glob("*_track-gentract_tractogram.trx")
        )
        result[f"sub-{label}"] = {run: judge(folder, run, arguments.weights) for run in runs}
    weights = " --weights FOLDER" if arguments.weights else ""
    command = f"python benchmarks/gentract_real.py $TRACTODE_TEST_DATA/bids_real --work WORK --participants {' '.join(arguments.participants)} --n {arguments.n}{weights}"
    result["meta"] = meta(command)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        (ROOT / arguments.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
