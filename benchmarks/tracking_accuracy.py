"""Accuracy: Tractometer scores of every tracker where the bundles are known, beside MRtrix3's and DIPY's on the same FODs.

    python benchmarks/tracking_accuracy.py --output benchmarks/results/tracking_accuracy.json [--lines 5000] [--runs 1]

Prints one JSON object. ``scenes`` are a simulated subject at SNR 30, 20 and 10 in voxels of 2 and 3 mm, and the DiSCo
centrelines (``$TRACTODE_TEST_DATA/disco``), each with every tracker's scores: means over ``runs`` of ``lines`` accepted
streamlines, ``_sd`` their standard deviation where there are several, ``n`` the streamlines scored. For DiSCo, ``connectivity_r`` is the correlation of
the counts between regions with the cross-sections of the strands. ``comparisons`` are ours against the same method of the
peer: VC with its binomial standard error, F1 with that of the paired differences of the bundles. ``losses`` names those
in which ours is worse by more than two standard errors.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accuracy_scenes import Network, Scene, disco_scenes, subject_scenes
from accuracy_trackers import PEER_OF, runs
from measure import meta

from tractode.evaluate.connections import is_in
from tractode.evaluate.tractometer import tractometry
from tractode.fields import Streamlines

SCORES = ("VC", "IC", "NC", "WPC", "VB", "IB", "OL", "OR", "ORn", "F1")
SNRS = (30.0, 20.0, 10.0)
Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--snr", type=float, nargs="+", default=SNRS)
    parser.add_argument("--resolution", type=float, nargs="*", default=(2.0, 3.0))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    scenes: Record = {}
    with tempfile.TemporaryDirectory(prefix="accuracy-") as folder:
        for scene in _scenes(arguments, Path(folder)):
            say(f"{scene.name}: made after {time.monotonic() - started:.0f} s")
            scenes[scene.name] = scored(scene, arguments.lines, arguments.runs)
    command = " ".join(["python benchmarks/tracking_accuracy.py", *sys.argv[1:]])
    result = assembled(scenes, command, time.monotonic() - started)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


def assembled(scenes: Record, command: str, seconds: float) -> Record:
    """The whole result: scores, comparisons with the peers, and where ours lose."""
    comparisons = [entry for name, trackers in scenes.items() for entry in compared(name, trackers)]
    return {
        "meta": {**meta("TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA " + command), "seconds": round(seconds)},
        "scenes": {
            name: {"n": sum(t["n"] for t in found.values()), "trackers": {k: _plain(t) for k, t in found.items()}}
            for name, found in scenes.items()
        },
        "comparisons": comparisons,
        "losses": [
            f"{c['scene']}: {c['ours']} has a lower {key} than {c['peer']} ({c[key]['ours']} against {c[key]['peer']})"
            for c in comparisons
            for key in ("VC", "F1")
            if c[key]["difference"] < -2 * c[key]["standard_error"]
        ],
    }


def _scenes(arguments: argparse.Namespace, folder: Path) -> Iterator[Scene]:
    for resolution in arguments.resolution:
        yield from subject_scenes(resolution, tuple(arguments.snr), folder)
    data = Path(os.environ.get("TRACTODE_TEST_DATA", "")) / "disco"
    if (data / "disco_mask.nii.gz").is_file():
        yield from disco_scenes(data, tuple(arguments.snr), folder)
    else:
        say("no DiSCo: set TRACTODE_TEST_DATA")


def scored(scene: Scene, n: int, n_runs: int) -> Record:
    """Mean scores of every tracker; ``bundles`` keeps each bundle's F1 for the comparisons."""
    found: Record = {}
    for name, run in runs().items():
        started = time.monotonic()
        try:
            found[name] = _mean([_record(run(scene, n, seed), scene) for seed in range(1, n_runs + 1)])
        except Exception as error:  # one tracker that fails must not cost the results of the others
            found[name] = {"n": 0, "error": f"{type(error).__name__}: {error}"}
            say(f"  {name}: {error!r}")
            continue
        say(f"  {name}: VC {found[name]['VC']}, F1 {found[name]['F1']} ({time.monotonic() - started:.1f} s)")
    return found


def _record(lines: Streamlines, scene: Scene) -> Record:
    record = tractometry(lines, scene.bundles, scene.criteria).record()
    if scene.network is not None:
        record["connectivity_r"] = connectivity(lines, scene.network, scene)
    return record


def _mean(records: list[Record]) -> Record:
    entry: Record = {"n": sum(record["n"] for record in records), "runs": len(records)}
    for key in (*SCORES, *(["connectivity_r"] if "connectivity_r" in records[0] else [])):
        values = [record[key] for record in records if record[key] is not None]
        entry[key] = round(statistics.fmean(values), 4) if values else None
        if len(values) > 1:
            entry[f"{key}_sd"] = round(statistics.stdev(values), 4)
    names = records[0]["per_bundle"]
    entry["bundles"] = {name: statistics.fmean(r["per_bundle"][name]["F1"] for r in records) for name in names}
    return entry


def _plain(entry: Record) -> Record:
    return {key: value for key, value in entry.items() if key != "bundles"}


def connectivity(lines: Streamlines, network: Network, scene: Scene) -> float:
    """Pearson's correlation, over all pairs of regions, of the streamlines between them with the true weights."""
    grid = scene.mask.grid
    first, last = lines.points[lines.offsets[:-1]], lines.points[lines.offsets[1:] - 1]
    at_first, at_last = (
        torch.stack([is_in(node, grid, points) for node in network.nodes]).double() for points in (first, last)
    )
    counts = at_first @ at_last.mT
    counts = counts + counts.mT
    upper = list(itertools.combinations(range(len(network.nodes)), 2))
    pairs = torch.tensor([[counts[a, b], network.weights[a, b]] for a, b in upper], dtype=torch.float64)
    return float(torch.corrcoef(pairs.mT)[0, 1])


def compared(scene: str, trackers: Record) -> Iterator[Record]:
    """Ours against the peer's tracker of the same method."""
    for name, peer in PEER_OF.items():
        if f"tractode {name}" not in trackers or peer not in trackers:
            continue
        one, two = trackers[f"tractode {name}"], trackers[peer]
        if not one["n"] or not two["n"]:
            continue
        differences = [one["bundles"][bundle] - two["bundles"][bundle] for bundle in one["bundles"]]
        error = math.sqrt(sum(t["VC"] * (1 - t["VC"]) / max(t["n"], 1) for t in (one, two)))
        spread = statistics.stdev(differences) / math.sqrt(len(differences))
        yield {
            "scene": scene,
            "ours": f"tractode {name}",
            "peer": peer,
            "n": min(one["n"], two["n"]),
            "VC": _difference(one["VC"], two["VC"], error),
            "F1": _difference(one["F1"], two["F1"], spread),
        }


def _difference(ours: float, peer: float, error: float) -> Record:
    return {
        "ours": ours,
        "peer": peer,
        "difference": round(ours - peer, 4),
        "standard_error": round(error, 4),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
