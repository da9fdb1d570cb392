"""Lines against those of other programs from the same seeds: SD_STREAM, ACT, seeding mechanisms, EuDX.

    python benchmarks/tracking_fidelity.py [--output benchmarks/results/tracking_fidelity.json] [--lines 10000] [--work FOLDER]
        [--only toshiba60 xa30 simulated] [--parts lines act interface dynamic eudx]

The parts ``act``, ``interface``, ``dynamic`` and ``eudx`` are explained in `tracking_anatomy`, `tracking_seeding` and `tracking_eudx`; they are not
made for toshiba60, which has no T1w. What is in the output already stays, unless it is measured anew; each entry says at
which commit it was. Part ``lines``: for each subject ``tckgen -algorithm SD_STREAM -noprecomputed`` makes the lines; its seeds, read from its file, are
followed by `SDStream` with the same initial direction on the same FOD, mask and settings. tckgen takes no list of seeds
and directions, but one direction for all seeds: it is run for ten of them. ``tckgen_itself`` is the agreement of its
tabulated with its exact Legendre functions (``-nthreads 0``, one random seed, lines paired by their seed points).
Shares are fractions of 1; a line that is missing on one side counts as infinitely far. ``remaining`` says which rule and
which step (counted from the seed) parted each line further than 0.1 mm; see `parting`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import meta
from parting import Law, explain
from torch import Tensor
from tracking_anatomy import act
from tracking_eudx import eudx
from tracking_seeding import dynamic, interface
from tracking_subjects import call, real, simulated, tissues

from tractode.evaluate.agreement import compare_lines, hausdorff_distances
from tractode.fields import Image, ShField, Streamlines
from tractode.io.nifti import read_image
from tractode.io.tractogram import read_tractogram
from tractode.tracking.sdstream import SDStream

PUBLISHED = {"share_within_1_mm": 0.93, "n": 10000, "source": "arXiv:2511.14807"}
RUNS = 10
WITH_T1W = ("xa30", "simulated")  # or with tissues of another kind
N_ACT_SEEDS, N_INTERFACE, N_DYNAMIC, N_EUDX_SEEDS = 20_000, 100_000, 20_000, 5_000


@dataclass(frozen=True)
class Reference:
    """Lines of tckgen in the order of ``per_streamline["seed"]``, the place of each seed in its line, the directions given."""

    lines: Streamlines
    seed_index: Tensor
    directions: Tensor

    @property
    def seeds(self) -> Tensor:
        return self.lines.points[self.lines.offsets[:-1] + self.seed_index]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--parts", nargs="*", default=["lines", *PARTS], choices=["lines", *PARTS])
    parser.add_argument("--only", nargs="*", default=["toshiba60", "xa30", "simulated"])
    parser.add_argument("--work", type=Path, help="folder that keeps FODs between runs; a temporary one by default")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="fidelity-"))
    command = " ".join(["python benchmarks/tracking_fidelity.py", *sys.argv[1:]])
    about = meta(f"TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA {command}")
    about["mrtrix3"] = call("tckgen", "--version").splitlines()[0].strip("= ")
    result: dict[str, Any] = {"meta": about, "paper": PUBLISHED}
    if arguments.output and arguments.output.exists():
        result = {**json.loads(arguments.output.read_text()), **result}
    stamp = {"commit": about["commit"], "date": about["date"]}
    for name in arguments.only:
        fod, mask = simulated(work / name)[:2] if name == "simulated" else real(name, work / name)
        for part in arguments.parts:
            if part == "lines":
                result[name] = found = {**subject(fod, mask, work / name, arguments.lines), **stamp}
            elif name in WITH_T1W:
                found = {**PARTS[part](name, fod, mask, work / name), **stamp}
                result.setdefault(part, {})[name] = found
            else:
                continue
            print(part, name, json.dumps({k: v for k, v in found.items() if k != "remaining"}), file=sys.stderr)
            if arguments.output:
                arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


def _act(name: str, fod: Path, mask: Path, folder: Path) -> dict[str, Any]:
    return act(fod, mask, tissues(name, folder), folder, N_ACT_SEEDS, exact_or_tabulated(fod, mask, folder))


def _interface(name: str, fod: Path, mask: Path, folder: Path) -> dict[str, Any]:
    return interface(fod, tissues(name, folder), folder, N_INTERFACE)


def _dynamic(name: str, fod: Path, mask: Path, folder: Path) -> dict[str, Any]:
    return dynamic(fod, mask, folder, N_DYNAMIC)


def _eudx(name: str, fod: Path, mask: Path, folder: Path) -> dict[str, Any]:
    return eudx(fod, mask, N_EUDX_SEEDS)


Part = Callable[[str, Path, Path, Path], dict[str, Any]]
PARTS: dict[str, Part] = {"act": _act, "interface": _interface, "dynamic": _dynamic, "eudx": _eudx}


def subject(fod: Path, mask: Path, folder: Path, n: int) -> dict[str, Any]:
    image, _ = read_image(fod, "dwi")
    field = ShField(image.grid, image.values.float(), 8)
    inside, _ = read_image(mask, "dwi")
    inside = Image(inside.grid, inside.values > 0.5)
    legendre = exact_or_tabulated(fod, mask, folder)
    reference = tracked(fod, mask, folder, n, legendre)
    tracker = SDStream(batch_size=n)
    ours = Streamlines.concatenate(
        tracker.track(field, reference.seeds, inside, directions=reference.directions), field.grid.space
    )
    found = compare_lines(ours, reference.lines)
    remaining = explained(field, inside, tracker, reference, ours)
    return {
        "n": found.n,
        "within_0_1_mm": found.share_within_01mm,
        "within_1_mm": found.share_within_1mm,
        "unexplained": sum(entry["rule"] == "unexplained" for entry in remaining),
        "missing": found.n_missing,
        "median_hausdorff_mm": found.median_hausdorff_mm,
        "rules": dict(Counter(entry["rule"] for entry in remaining)),
        "tckgen": "exact" if legendre else "tabulated (it crashes with -noprecomputed here)",
        "tckgen_itself": itself(fod, mask, folder, n) if legendre else None,
        "paper_within_1_mm": PUBLISHED["share_within_1_mm"],
        "remaining": remaining,
    }


def tckgen(
    fod: Path, mask: Path, folder: Path, n: int, random_seed: int, *options: object
) -> tuple[Streamlines, Tensor]:
    """Lines in the order of their seeds, and the place of each seed in its line."""
    call("tckgen", fod, folder / "ref.tck", "-algorithm", "SD_STREAM", "-seed_image", mask, "-mask", mask, "-select", n,
         "-output_seeds", folder / "seeds.csv", "-nthreads", 0, "-force", "-quiet", *options,
         environment={"MRTRIX_RNG_SEED": str(random_seed)})  # fmt: skip
    lines, _ = read_tractogram(folder / "ref.tck", "dwi")
    table = np.loadtxt(folder / "seeds.csv", delimiter=",", skiprows=2, usecols=(0, 1), ndmin=2).astype(int)
    order = torch.from_numpy(table[:, 0].copy())
    return lines.select(order), torch.from_numpy(table[:, 1].copy())


def exact_or_tabulated(fod: Path, mask: Path, folder: Path) -> tuple[str, ...]:
    """The option for exact Legendre functions, where tckgen survives it: 3.0.3 reads an unset pointer and may crash."""
    try:
        tckgen(fod, mask, folder, 5, 1, "-noprecomputed")
    except RuntimeError:
        return ()
    return ("-noprecomputed",)


def tracked(fod: Path, mask: Path, folder: Path, n: int, legendre: tuple[str, ...]) -> Reference:
    """``n`` lines from `RUNS` directions over the sphere."""
    lines, places, directions = [], [], []
    for run in range(RUNS):
        z, angle = (run + 0.5) / RUNS, math.pi * (3 - math.sqrt(5)) * run
        direction = (math.cos(angle) * math.sqrt(1 - z * z), math.sin(angle) * math.sqrt(1 - z * z), z)
        text = ",".join(f"{x:.9g}" for x in direction)
        some, where = tckgen(fod, mask, folder, n // RUNS, run + 1, "-seed_direction", text, *legendre)
        lines.append(some)
        places.append(where)
        directions.append(torch.tensor([direction], dtype=torch.float32).expand(len(some), 3))
    joined = Streamlines.concatenate(lines, "dwi")
    tagged = Streamlines(joined.points, joined.offsets, "dwi", {}, {"seed": torch.arange(len(joined))})
    return Reference(tagged, torch.cat(places), torch.cat(directions))


def itself(fod: Path, mask: Path, folder: Path, n: int) -> dict[str, Any]:
    """tckgen's tabulated against its exact Legendre functions."""
    runs = [tckgen(fod, mask, folder, n, 1, *options) for options in (("-noprecomputed",), ())]
    keys = [{tuple(p): i for i, p in enumerate(lines.points[lines.offsets[:-1] + at].tolist())} for lines, at in runs]
    # Both draw the same seeds in the same order; one of them may have reached its count sooner.
    ends = [max(index for key, index in one.items() if key in other) for one, other in (keys, keys[::-1])]
    common = [key for key in keys[0] if key in keys[1]]
    total = len(common) + sum(end + 1 - len(common) for end in ends)
    pairs = [runs[side][0].select(torch.tensor([keys[side][key] for key in common])) for side in (0, 1)]
    distances = hausdorff_distances(*pairs)
    return {
        "n": total,
        "within_0_1_mm": float((distances < 0.1).sum()) / total,
        "within_1_mm": float((distances < 1).sum()) / total,
    }


def explained(
    field: ShField, mask: Image, tracker: SDStream, reference: Reference, ours: Streamlines
) -> list[dict[str, Any]]:
    """The lines further than 0.1 mm: the rule that parted them, and at which step."""
    step, _, greatest = tracker.lengths(field.grid)
    law = Law.of(field, mask, step)
    place = {int(seed): i for i, seed in enumerate(ours.per_streamline["seed"])}
    entries = []
    for index in range(len(reference.lines)):
        distance = math.inf
        if index in place:
            pair = (ours.select(torch.tensor([place[index]])), reference.lines.select(torch.tensor([index])))
            distance = float(hausdorff_distances(*pair)[0])
        if distance >= 0.1:
            line, seed = reference.lines[index], int(reference.seed_index[index])
            rule, at = explain(law, line, seed, reference.directions[index], int(greatest / step) + 3)
            entries.append({"line": index, "hausdorff_mm": round(distance, 3), "rule": rule, "step": at})
    return entries


if __name__ == "__main__":
    sys.exit(main())
