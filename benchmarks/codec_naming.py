"""Names of streamlines: the codec's namer beside DIPY's RecoBundles, on the same lines.

    python benchmarks/codec_naming.py --output FILE [--work FOLDER] [--weights FOLDER] [--parts synthetic real speed synthesis] [--subjects 3]

Prints one JSON object, the ``naming`` of `codec.py`. What was computed is kept in the work folder, so a run that is stopped goes on.
Balanced accuracy is the mean over classes (the bundles that the task has, and ``other``) of the share of their lines that are
named right; F1 is of bundles. Tasks: `codec_naming_tasks`; methods: `codec_naming_methods`.

``balanced_accuracy``, ``f1_mean``, ``other_recall``, ``f1`` (per bundle): synthetic subjects, pooled; ``tracked_accuracy``: of the lines
that SD_STREAM followed along a bundle; ``real``: DIPY's five people, three bundles and other; ``seconds_per_100k``: lines of 90 points, scaled
from ``speed_n`` lines (``processor_…``: of all threads; ``load``: how many wanted a core at the time); ``calibration``: stated probabilities against what was right, of ours on the synthetic subjects;
``synthesis``: new lines of every bundle (`codec_synthesis`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from codec_naming_methods import Named, ours, recobundles
from codec_naming_tasks import (
    REAL_SUBJECTS,
    RIGHT,
    TRACKED,
    Task,
    names,
    real,
    synthetic,
    together,
)
from codec_synthesis import synthesis
from measure import meta
from safetensors.torch import load_file, save_file
from torch import Tensor

from tractode.evaluate.calibration import reliability
from tractode.fields import Streamlines
from tractode.fields.line_shape import resampled
from tractode.generative.codec import BundleCodec
from tractode.io.weights import SUMS, read_weights, shipped

PARTS = ("synthetic", "real", "speed", "synthesis")
SAMPLED = 8  # RecoBundles' time is measured on one of so many bundles
Method = Callable[[Streamlines], Named]
Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path("codec-naming-work"), help="keeps tasks and what was named")
    parser.add_argument("--weights", type=Path, help="folder; those shipped by default")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--methods", nargs="*", default=["ours", "recobundles"], choices=("ours", "recobundles"))
    parser.add_argument("--subjects", type=int, default=3, help="synthetic ones")
    parser.add_argument("--speed-lines", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measured(arguments)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


def measured(arguments: argparse.Namespace) -> Record:
    """What each method reaches in the parts that were asked for."""
    methods = dict(_method(name, arguments.weights) for name in arguments.methods)
    result: Record = {}
    for name, (stem, method) in methods.items():
        record: Record = {}
        if "synthetic" in arguments.parts:
            tasks = [synthetic(arguments.work, number) for number in range(arguments.subjects)]
            record |= on_synthetic(tasks, [_kept(arguments.work, stem, task, method) for task in tasks])
        if "real" in arguments.parts:
            tasks = [real(arguments.work, number) for number in range(REAL_SUBJECTS)]
            record["real"] = on_real(tasks, [_kept(arguments.work, stem, task, method) for task in tasks])
        if "speed" in arguments.parts:
            record |= _speed(arguments, stem, method)
        result[name] = record
    if "synthesis" in arguments.parts and "ours" in methods:
        result["synthesis"] = synthesis(BundleCodec.from_weights(*read_weights(arguments.weights or shipped("codec"))))
    result["meta"] = meta(
        " ".join(["TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA python benchmarks/codec_naming.py", *_told(arguments)])
    )
    return result


def _method(name: str, weights: Path | None) -> tuple[str, tuple[str, Method]]:
    """A method by name, and what its records are called."""
    if name == "recobundles":
        return name, (name, recobundles)
    folder = weights or shipped("codec")
    codec = BundleCodec.from_weights(*read_weights(folder))
    return name, (
        f"ours-{hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()[:10]}",
        lambda lines: ours(codec, lines),
    )


def _told(arguments: argparse.Namespace) -> list[str]:
    return [
        f"--subjects {arguments.subjects}",
        f"--threads {arguments.threads}",
        f"--speed-lines {arguments.speed_lines}",
    ]


def on_synthetic(tasks: list[Task], found: list[Named]) -> Record:
    """Scores over all subjects together."""
    label, index = torch.cat([task.label for task in tasks]), torch.cat([one.index for one in found])
    kind = torch.cat([task.kind for task in tasks])
    # Of the lines that a tracker followed, only false ones are among the classes; those along a bundle are told apart.
    along = (kind == TRACKED) & (label < len(names()))
    record: Record = {"n": len(tasks), "n_lines": int((~along).sum())} | scores(label[~along], index[~along])
    record["tracked_accuracy"] = _rate(index[along] == label[along])
    record["n_tracked"] = int(along.sum())
    part = [(task.kind != TRACKED) | (task.label == len(names())) for task in tasks]
    record["balanced_accuracy_each"] = [
        scores(task.label[rows], one.index[rows])["balanced_accuracy"]
        for task, one, rows in zip(tasks, found, part, strict=True)
    ]
    if found[0].probability is not None:
        stated = torch.cat([one.probability for one in found if one.probability is not None])
        record["calibration"] = calibration(stated[~along], (index == label)[~along])
    return record


def on_real(tasks: list[Task], found: list[Named]) -> Record:
    """Scores over all people together, of three bundles and other; ``named`` counts what their lines were taken for."""
    label, index = torch.cat([task.label for task in tasks]), torch.cat([one.index for one in found])
    record: Record = {"n": len(tasks), "n_lines": len(label)} | scores(label, index)
    record["balanced_accuracy_each"] = [
        scores(task.label, one.index)["balanced_accuracy"] for task, one in zip(tasks, found, strict=True)
    ]
    every = (*names(), "other")
    record["named"] = {}
    for short, name in RIGHT.items():
        counts = torch.bincount(index[label == names().index(name)], minlength=len(every))
        order = counts.argsort(descending=True)[:4].tolist()
        record["named"][short] = {every[k]: int(counts[k]) for k in order if counts[k]}
    record["right_names"] = RIGHT
    if found[0].probability is not None:
        stated = torch.cat([one.probability for one in found if one.probability is not None])
        record["calibration"] = calibration(stated, index == label)
    return record


def scores(label: Tensor, index: Tensor) -> Record:
    """Of the classes that are there."""
    none = len(names())
    recall, f1 = {}, {}
    for one in label.unique().tolist():
        name = "other" if one == none else names()[one]
        true, said = label == one, index == one
        both = float((true & said).sum())
        recall[name] = both / float(true.sum())
        f1[name] = 2 * both / float(true.sum() + said.sum())
    of_bundles = [value for name, value in f1.items() if name != "other"]
    return {
        "balanced_accuracy": round(sum(recall.values()) / len(recall), 4),
        "f1_mean": round(sum(of_bundles) / max(len(of_bundles), 1), 4),
        "other_recall": round(recall.get("other", float("nan")), 4),
        "classes": len(recall),
        "f1": {name: round(value, 3) for name, value in f1.items()},
    }


def calibration(stated: Tensor, is_right: Tensor) -> Record:
    found = reliability(stated, is_right, 10)
    return {
        "error": round(found.error, 4),
        "stated": [round(value, 3) for value in found.stated],
        "right": [round(value, 3) for value in found.observed],
        "n_in_bin": list(found.counts),
        "n": len(stated),
    }


def _rate(is_right: Tensor) -> float | None:
    return round(float(is_right.float().mean()), 4) if len(is_right) else None


def _kept(work: Path, stem: str, task: Task, method: Method) -> Named:
    """What a method named, computed once."""
    path = work / f"{stem}-{task.name}.safetensors"
    if not path.is_file():
        one = method(task.lines)
        tensors = {"index": one.index, "seconds": torch.tensor([one.seconds, one.processor_seconds])}
        if one.probability is not None:
            tensors["probability"] = one.probability
        save_file(tensors, path)
    found = load_file(path)
    seconds = found["seconds"].tolist()
    return Named(found["index"], found.get("probability"), *seconds)


def _speed(arguments: argparse.Namespace, stem: str, method: Method) -> Record:
    n = arguments.speed_lines
    path = arguments.work / f"{stem}-speed-{n}.json"
    if not path.is_file():
        lines = tractogram(arguments.work, n)
        one = recobundles(lines, every=SAMPLED) if method is recobundles else method(lines)
        record = {
            "seconds_per_100k": round(one.seconds * 100_000 / len(lines), 2),
            "processor_seconds_per_100k": round(one.processor_seconds * 100_000 / len(lines), 2),
            "speed_n": len(lines),
            "speed_points": round(len(lines.points) / len(lines), 1),
            "speed_bundles": len(range(0, len(names()), SAMPLED)) if method is recobundles else len(names()),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1),
        }
        path.write_text(json.dumps(record))
    found: Record = json.loads(path.read_text())
    return found


def tractogram(work: Path, n: int) -> Streamlines:
    """As many lines of `_SPEED_POINTS` points: those of synthetic subject 0, again and again, each time moved by some mm."""
    lines = resampled(synthetic(work, 0).lines, _SPEED_POINTS).float()
    rows = torch.arange(n) % len(lines)
    shift = 2 * torch.randn(n, 1, 3, generator=torch.Generator().manual_seed(1))
    return together(lines[rows] + shift)


_SPEED_POINTS = 90


if __name__ == "__main__":
    sys.exit(main())
