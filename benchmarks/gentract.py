"""Generated streamlines against what is true of held-out subjects: beside copies of the atlas, other conditions, local trackers.

    python benchmarks/gentract.py --output benchmarks/results/gentract.json [--work FOLDER] [--parts trackers ours …] [--subjects 10]

Prints one JSON object. Every record of a subject is kept in the work folder, so a run that is stopped goes on where it was;
``--parts`` computes some parts only, the rest is gathered from what is there, and what `gentract_orderings.py` and
`gentract_real.py` saved beside the output is taken in. Entries are means over subjects, ``…_sd`` their standard deviation, ``n`` the subjects.

``baselines``  the atlas's lines (those not held out) as they are (``atlas``: the head's middle on the template's, no turn, no
               warp), by the affine part of the app's registration, and carried by the whole of it (``atlas_registered``);
               ``…_present`` is told which bundles exist, ``…_spread`` varies its lines as the generator's start is varied;
               ``ceiling`` in the tables: the same lines where they truly run in the subject, in the bundles that exist
``conditioning``  ours with the subject's field (``right``), with another's, the mean of the training subjects, none: all of it
               (``other`` comes with the other's registration), or only what the model sees (``…_field_only``)
``comparisons``  ours less ``atlas_registered``, and ``right`` less the other conditions: paired differences, 95 % intervals
``warped_bundle``  mm moved in what is generated against mm asked, one bundle shifted before the signal was simulated
``tables``     quality → method → scores of equal numbers of lines; ``acceptance`` the conditions on precision and bundles
``sampling``, ``calibration``, ``speed``  see the modules
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gentract_lines import Drawer
from gentract_parts import (
    ATLAS,
    CEILING,
    FROM_NOISE,
    QUALITIES,
    SHOWN,
    Bench,
    calibration,
    calibration_summary,
    conditioning,
    invariance,
    noise_steps,
    sampling,
    table,
)
from gentract_scores import Record, acceptance, paired, summary
from gentract_speed import speed
from gentract_subjects import load, load_library, shifted, whole_library
from gentract_trackers import LOCAL, available
from gentract_warp import ASKED, slope, warped_bundle
from measure import meta

from tractode.io.weights import SUMS, VERSIONS, shipped

PARTS = (
    "trackers",
    "trackers_20mm",
    "atlas",
    "ours",
    "conditioning",
    "noise_start",
    "noise_steps",
    "warped",
    "sampling",
    "calibration",
    "speed",
)
COMPARED = ("valid_rate", "overlap", "overreach", "mdf_mm", "mdf_backward_mm", "bundles_found_share")
MAIN, HARD = "base", "lowres_noise"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--work", type=Path, default=Path("gentract-work"), help="folder that keeps subjects and records"
    )
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument(
        "--first", type=int, default=0, help="first subject to compute (two processes share the work so)"
    )
    parser.add_argument("--qualities", nargs="*", default=list(QUALITIES), choices=QUALITIES)
    parser.add_argument("--lines", type=int, default=3000, help="of every method")
    parser.add_argument("--few", type=int, default=500, help="lines of sampling and calibration")
    parser.add_argument("--speed-lines", type=int, default=10_000)
    parser.add_argument("--weights", type=Path, help="folder; those shipped by default")
    parser.add_argument("--weights-flow", type=Path, help="the same network trained from noise by flow matching")
    parser.add_argument("--weights-diffusion", type=Path, help="the same network trained from noise by diffusion")
    parser.add_argument("--warped-subjects", type=int, default=10)
    parser.add_argument("--asked", type=float, nargs="*", default=list(ASKED), help="mm that a bundle is shifted by")
    parser.add_argument("--ready", action="store_true", help="compute with the subjects that are made already")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = made_ready(arguments)
    result = Result(bench, arguments).assembled()
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


def made_ready(arguments: argparse.Namespace) -> Bench:
    weights = {
        "gentract": arguments.weights or (shipped("gentract") if "gentract" in VERSIONS else None),
        "gentract_flow": arguments.weights_flow,
        "gentract_diffusion": arguments.weights_diffusion,
    }
    folder = arguments.work / "lines"
    # A network that learned from noise for minutes is sure of no line: none of its lines is refused.
    ways = {name: {} if name == "gentract" else FROM_NOISE for name in weights}
    drawers = {
        name: Drawer(folder, path, **ways[name])
        for name, path in weights.items()
        if path is not None and (path / SUMS).is_file()
    }
    return Bench(
        arguments.work,
        load_library(),
        tuple(range(arguments.subjects)),
        arguments.lines,
        arguments.few,
        lambda number, quality: load(arguments.work / "cases", number, quality),
        lambda number: whole_library(arguments.work / "cases", number),
        drawers,
    )


class Result:
    """The whole result: parts that were asked for are computed first, then all is gathered."""

    def __init__(self, bench: Bench, arguments: argparse.Namespace) -> None:
        self.bench, self.arguments = bench, arguments
        self.has_ours = "gentract" in bench.drawers

    def assembled(self) -> Record:
        wanted = self.arguments.parts
        every = self.bench.numbers
        self.bench.numbers = every[self.arguments.first :] + every[: self.arguments.first]
        for part in PARTS:
            if part in wanted and (self.has_ours or part in ("trackers", "trackers_20mm", "atlas")):
                self._compute(part)
        self.bench.numbers, self.bench.is_frozen = every, True
        result = self._kept_from_others()
        result["meta"] = meta(
            "TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA " + " ".join(["python benchmarks/gentract.py", *self._told()])
        )
        result["n"] = len(every)
        result["weights"] = {name: drawer.facts() for name, drawer in self.bench.drawers.items()}
        tables = self._tables()
        result["tables"] = tables
        result["acceptance"] = {q: acceptance(rows, "gentract", list(LOCAL)) for q, rows in tables.items() if rows}
        result |= self._conditions(tables)
        if self.has_ours:
            result |= self._ours()
        result["losses"] = losses(result)
        return result

    def _compute(self, part: str) -> None:
        bench, qualities = self.bench, self.arguments.qualities
        local = {
            is_long: tuple(name for name in available() if bool(LOCAL[name].lengths) == is_long)
            for is_long in (True, False)
        }
        tabled = {
            "trackers": local[False],
            "trackers_20mm": local[True],
            "atlas": (*ATLAS, CEILING),
            "ours": ("gentract",),
            "noise_start": self._from_noise(),
        }
        if part in tabled:
            every = bench.numbers
            for quality in sorted(qualities, key=(HARD, MAIN, "noise", "lowres").index):
                bench.numbers = tuple(n for n in every if self._is_ready(n, quality))
                table(bench, quality, tabled[part])
            bench.numbers = every
        elif part == "warped":
            self._warped()
        elif part == "speed":
            self._speed()
        else:
            call: dict[str, Callable[[Bench, str], Any]] = {
                "conditioning": conditioning, "sampling": sampling, "calibration": calibration, "noise_steps": noise_steps,
            }  # fmt: skip
            call[part](bench, MAIN)
            if part == "sampling":
                invariance(bench, MAIN)

    def _is_ready(self, number: int, quality: str) -> bool:
        made = self.arguments.work / "cases" / f"case-{number:02d}-{quality}.pt"
        return made.is_file() or not self.arguments.ready

    def _warped(self) -> dict[int, Record]:
        numbers = tuple(range(self.arguments.warped_subjects))
        return warped_bundle(self.bench, numbers, "lowres", self._shifted, tuple(self.arguments.asked))

    def _from_noise(self) -> tuple[str, ...]:
        return tuple(name for name in self.bench.drawers if name != "gentract")

    def _shifted(self, number: int, quality: str, name: str, vector: tuple[float, float, float]) -> Any:
        return shifted(self.arguments.work / "cases", number, quality, name, vector)

    def _speed(self) -> Record | None:
        weights = self.arguments.weights or shipped("gentract")
        make = lambda: speed(self.bench.load(0, MAIN), weights, self.arguments.speed_lines)  # noqa: E731
        return self.bench.kept(f"speed/{self.bench.ours().hash}-n{self.arguments.speed_lines}", make)

    def _tables(self) -> Record:
        methods = (*LOCAL, *ATLAS, CEILING, *self.bench.drawers)
        self.records = {quality: table(self.bench, quality, methods) for quality in QUALITIES}
        return {
            quality: {method: summary(list(found.values())) for method, found in rows.items() if found}
            for quality, rows in self.records.items()
        }

    def _conditions(self, tables: Record) -> Record:
        rows = tables[MAIN]
        ours = {"ours": rows["gentract"]} if "gentract" in rows else {}
        result: Record = {"baselines": {name: rows[name] for name in ATLAS if name in rows} | ours}
        if not self.has_ours:
            return result
        found = conditioning(self.bench, MAIN)
        right = self.records[MAIN]["gentract"]
        result["conditioning"] = {"right": rows["gentract"]} if "gentract" in rows else {}
        result["conditioning"] |= {name: summary(list(found[name].values())) for name in SHOWN if found[name]}
        result["comparisons"] = {
            "ours_less_atlas": {
                quality: {
                    name: _compared(kept["gentract"], kept[name]) for name in ATLAS if kept[name] and kept["gentract"]
                }
                for quality, kept in self.records.items()
            },
            "right_less": {name: _compared(right, found[name]) for name in SHOWN if found[name]},
        }
        return result

    def _ours(self) -> Record:
        bench = self.bench
        drawn = {name: found for name, found in sampling(bench, MAIN).items() if found}
        keys = [
            "valid_rate",
            "overlap",
            "overreach",
            "bundles_found",
            "mdf_mm",
            "mdf_backward_mm",
            "draw_seconds",
            "n_lines",
        ]
        parts: Record = {"steps": {}, "guidance": {}}
        for name, found in drawn.items():
            kind, _, way = name.partition("/")
            parts[kind][way] = summary(list(found.values()), keys)
        result: Record = {"sampling": {**parts, "invariance": invariance(bench, MAIN)}}
        result["orderings_from_noise"] = {
            way: summary(list(found.values()), keys) for way, found in noise_steps(bench, MAIN).items() if found
        }
        calibrated = calibration(bench, MAIN)
        result["calibration"] = {MAIN: calibration_summary(calibrated)} if calibrated else {}
        moved = self._warped() if self._has_warped() else {}
        if moved:
            result["warped_bundle"] = {**slope(moved), "middle": slope(moved, "middle_moved_mm"), "subjects": moved}
        if (timed := self._speed()) is not None:
            result["speed"] = timed
        return result

    def _has_warped(self) -> bool:
        return (self.arguments.work / "records" / "warped").is_dir()

    def _kept_from_others(self) -> Record:
        """What other scripts have written into the output."""
        path = self.arguments.output
        if path is None or not path.is_file():
            return {}
        return {
            key: value for key, value in json.loads(path.read_text()).items() if key in ("orderings", "real", "paper")
        }

    def _told(self) -> list[str]:
        """The command's words without local paths."""
        return [word if not word.startswith("/") else Path(word).name for word in sys.argv[1:]]


def _compared(ours: dict[int, Record], theirs: dict[int, Record]) -> Record:
    return {key: paired(ours, theirs, key) for key in COMPARED}


def losses(result: Record) -> list[str]:
    """In words, where ours is not better, or not as much better as was asked for."""
    found = []
    rivals = result.get("comparisons", {}).get("ours_less_atlas", {})
    for quality, rows in rivals.items():
        for key, sign in (("valid_rate", 1), ("overlap", 1), ("mdf_mm", -1)):
            one = rows.get("atlas_registered", {}).get(key, {})
            if one.get("interval") and min(sign * edge for edge in one["interval"]) <= 0:
                found.append(
                    f"{quality}: {key} of ours is not surely better than that of atlas_registered ({one['difference']:+}, 95 % {one['interval']})"
                )
    for quality, one in result["acceptance"].items():
        if one and not one["is_precise"]:
            found.append(
                f"{quality}: precision {one['precision']} against {one['precision_of_best']} of {one['best_precision']} misses {one['condition']}"
            )
        if one and not one["is_complete"]:
            found.append(f"{quality}: bundles found are {one['bundles_ratio']} of those of {one['most_bundles']}")
    if "speed" in result and result["speed"]["n"] / result["speed"]["streamlines_per_s"] > 180:
        found.append(f"speed: {result['speed']['streamlines_per_s']} streamlines a second")
    return found


if __name__ == "__main__":
    sys.exit(main())
