"""Accuracy, folding and cost of deformable registration, against ANTs SyN, ConvexAdam and DIPY SyN on the same pairs.

    python benchmarks/registration_accuracy.py --peers peers/bin/python [--sets simulated anat_labels labelmaps] [--pairs 10]

Every method runs in a process of its own (`registration_run.py`), one after the other on the same machine. What is finished is
kept in ``--work``, so that an interrupted run goes on where it stopped. Wall seconds grow when the machine is shared;
processor seconds hardly do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import measure
import nibabel
import numpy as np
import registration_pairs as pairs
import torch

from tractode.evaluate.folding import certify_positions
from tractode.fields.transform import Displacement

HERE = Path(__file__).resolve().parent
OURS = ("tractode fast", "tractode", "tractode fine", "tractode with affine")
DEFAULT = ("tractode fast", "tractode", "ANTs SyN", "ANTs SyN long", "ConvexAdam", "DIPY SyN")


def main() -> None:
    options = _options()
    sets: dict[str, dict[str, Any]] = {}
    for name in options.sets:
        rows = _kept(name, options) or [
            row for pair in _pairs(name, options) for row in _score_all(pair, name, options)
        ]
        sets[name] = {method: _summary([r for r in rows if r["method"] == method]) for method in options.methods}
    command = "python benchmarks/registration_accuracy.py " + " ".join(sys.argv[1:])
    for path, name in (
        (os.environ.get("TRACTODE_TEST_DATA", ""), "$TRACTODE_TEST_DATA"),
        (str(options.peers), "$PEERS"),
    ):
        command = command.replace(path, name) if path else command
    result = {
        "meta": {
            **measure.meta(command),
            "load": os.getloadavg()[2],
            "resolution_mm": options.resolution,
            "threads": options.threads,
        },
        **sets,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sets", nargs="+", default=["simulated", "anat_labels", "labelmaps"])
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT))
    parser.add_argument("--pairs", type=int, default=10, help="at most so many pairs of every set")
    parser.add_argument("--resolution", type=float, default=2.0, help="mm")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of every method; 1 on a machine that is shared"
    )
    parser.add_argument("--peers", type=Path, default=Path(sys.executable), help="python of the peers' environment")
    parser.add_argument("--work", type=Path, default=Path("registration_work"))
    parser.add_argument("--output")
    return parser.parse_args()


def _pairs(name: str, options: argparse.Namespace) -> Iterator[pairs.Pair]:
    data = Path(os.environ.get("TRACTODE_TEST_DATA", ""))
    made = {
        "simulated": lambda: (pairs.simulated(n, options.resolution) for n in range(options.pairs)),
        "anat_labels": lambda: pairs.anat_labels(data, options.resolution),
        "labelmaps": lambda: pairs.labelmaps(data, options.resolution),
    }[name]
    return islice(made(), options.pairs)


def _kept(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row that is wanted, if all were finished before: then no pair has to be made again."""
    folders = sorted((options.work / f"{name}-{options.resolution}").glob("*"))[: options.pairs]
    files = [folder / f"{method.replace(' ', '_')}.json" for folder in folders for method in options.methods]
    whole = len(folders) == options.pairs and all(file.is_file() for file in files)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files] if whole else []


def _score_all(pair: pairs.Pair, name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    folder = options.work / f"{name}-{options.resolution}" / pair.name
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("fixed", "moving", "fixed_mask", "moving_mask"):
        image = getattr(pair, kind)
        values = image.values[0].numpy().astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, image.grid.affine.numpy()), folder / f"{kind}.nii.gz")
    for method in options.methods:
        kept = folder / f"{method.replace(' ', '_')}.json"
        if not kept.is_file():
            row = _score(pair, method, folder, options)
            kept.write_text(json.dumps(row), encoding="utf-8")
            print(json.dumps({k: v for k, v in row.items() if k != "dice_of_label"}), file=sys.stderr, flush=True)
        yield json.loads(kept.read_text(encoding="utf-8"))


def _score(pair: pairs.Pair, method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run: what it cost, and how good its displacement is; every method's is read off the same grid."""
    ours = method in OURS or method == "DIPY SyN"
    python = sys.executable if ours else str(options.peers)
    command = [python, str(HERE / "registration_run.py"), method, str(folder)]
    cores = str(options.threads)
    threads = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": cores, "OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE"}
    found = measure.watch(command, threads)
    base: dict[str, Any] = {"method": method, "pair": pair.name, "peak_rss_mb": found.peak_rss_mb}
    if found.exit_code:
        return {**base, "failed": found.output[-400:]}
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    values = torch.from_numpy(np.load(folder / "displacement.npy"))
    field = Displacement(pair.fixed.grid, values, "fixed", "moving")
    centres = pair.fixed.grid.centres(torch.float64)
    folding = certify_positions(centres + values.movedim(0, -1), pair.fixed.grid)
    moved = pairs.moved_labels(pair, field.map(pair.fixed_labels.grid.centres()))
    overlap = pairs.dice(pair.fixed_labels.values, moved.values)
    error = None
    if pair.truth is not None:
        points = pair.fixed.grid.centres()[pair.fixed_mask.mask]
        error = float((field.map(points) - pair.truth.map(points)).norm(dim=-1).mean())
    return {
        **base, **cost, "epe_mm": error, "dice": statistics.mean(overlap.values()),
        "dice_of_label": overlap, "folded_voxels": folding.n_folded,
    }  # fmt: skip


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over pairs, with every pair's own value."""
    good = [row for row in rows if "failed" not in row]
    out: dict[str, Any] = {"n": len(good), "failed": [row["pair"] for row in rows if "failed" in row]}
    for key in ("epe_mm", "dice", "seconds", "processor_seconds", "peak_rss_mb", "folded_voxels"):
        values = [row[key] for row in good if row[key] is not None]
        out[key] = round(statistics.mean(values), 4) if values else None
        out[f"{key}_of_pair"] = [round(value, 4) for value in values]
    out["folded_voxels"] = max(out["folded_voxels_of_pair"], default=None)
    out["pairs"] = [row["pair"] for row in good]
    return out


if __name__ == "__main__":
    main()
