"""Does a bundle that moves in the subject move in what is generated? One bundle shifted before the signal is simulated.

Everything else of the subject stays: anatomy, registration, noise. Lines of that bundle are drawn with the same random numbers
before and after, so each has its counterpart; what is measured is their mean displacement along the direction asked for, in
the training space. ``others_mm`` is the mean length of the displacement of other bundles' middles: it should be 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from gentract_lines import Case, Made
from gentract_parts import Bench, Late
from gentract_scores import Record
from scipy import stats
from torch import Tensor

# Bundles by either picture of the anatomy, and the way each is moved (RAS+): across its course.
MOVED: tuple[tuple[tuple[str, ...], tuple[float, float, float]], ...] = (
    (("Association_ArcuateFasciculusL", "AFL"), (0.0, 0.0, 1.0)),
    (("ProjectionBrainstem_CorticospinalTractR", "CSTR"), (0.0, 1.0, 0.0)),
    (("Commissure_CorpusCallosum_ForcepsMinor", "CCForcepsMinor"), (0.0, 0.0, 1.0)),
    (("Association_InferiorFrontoOccipitalFasciculusR", "IFOFR"), (0.0, 0.0, 1.0)),
    (("ProjectionBrainstem_CorticospinalTractL", "CSTL"), (0.0, -1.0, 0.0)),
    (("Association_UncinateFasciculusL", "UFL"), (0.0, 0.0, 1.0)),
)
ASKED = (2.0, 4.0, 6.0, 8.0)
N_LINES = 200

Shifted = Callable[[int, str, str, tuple[float, float, float]], Case]


def warped_bundle(
    bench: Bench, numbers: Sequence[int], quality: str, shifted: Shifted, distances: Sequence[float] = ASKED
) -> dict[int, Record]:
    """For each subject one of the bundles that it has, shifted by each of the distances."""
    found = {}
    for place, number in enumerate(numbers):
        case = Late(bench, number, quality)
        choice = bench.kept(f"warped/{quality}/choice/{number}-{place}", lambda c=case, p=place: _choice(c(), p))
        if not choice or "bundle" not in choice:
            continue
        name, way = choice["bundle"], (choice["way"][0], choice["way"][1], choice["way"][2])
        moved = {}
        for asked in distances:
            label = f"warped/{quality}/{bench.ours().hash}/{number}-{name}-{asked:g}"
            make = lambda c=case, n=name, w=way, a=asked: _moved(bench, c(), quality, n, w, a, shifted)  # noqa: E731
            if (record := bench.kept(label, make)) is not None:
                moved[f"{asked:g}"] = record
        if moved:
            found[number] = {"bundle": name, "way": list(way), "moved": moved}
    return found


def _choice(case: Case, place: int) -> Record:
    order = [*MOVED[place % len(MOVED) :], *MOVED[: place % len(MOVED)]]
    return next(
        ({"bundle": name, "way": list(way)} for names, way in order for name in names if name in case.regions), {}
    )


def _moved(
    bench: Bench, case: Case, quality: str, name: str, way: tuple[float, float, float], asked: float, shifted: Shifted
) -> Record:
    vector = (way[0] * asked, way[1] * asked, way[2] * asked)
    after = shifted(case.number, quality, name, vector)
    direction = torch.tensor(way)
    before_lines, after_lines = (_drawn(bench, one, name, asked if one is after else 0.0) for one in (case, after))
    own = _points(after_lines) - _points(before_lines)
    others = _others(bench, case, name)
    apart = [
        float(
            (_points(_drawn(bench, after, o, asked, name)) - _points(_drawn(bench, case, o, 0.0))).mean((0, 1)).norm()
        )
        for o in others
    ]
    return {
        "asked_mm": asked,
        "moved_mm": float((own.mean((0, 1)) * direction).sum()),
        "middle_moved_mm": float((own[:, 16:48].mean((0, 1)) * direction).sum()),
        "confidence_before": float(before_lines.confidence.mean()),
        "confidence_after": float(after_lines.confidence.mean()),
        "others_mm": statistics.fmean(apart) if apart else None,
        "n": N_LINES,
    }


def _others(bench: Bench, case: Case, name: str) -> list[str]:
    """Three other bundles of the subject, the farthest from this one first."""
    middles = {key: lines.points.double().mean(0) for key, lines in case.lines.items()}
    far = sorted((key for key in middles if key != name), key=lambda key: -float((middles[key] - middles[name]).norm()))
    return far[:3]


def _drawn(bench: Bench, case: Case, name: str, asked: float, because_of: str = "") -> Made:
    label = f"warped/{case.quality}/{case.number}-{because_of or name}-{asked:g}"
    return bench.ours().made(case.field, label, N_LINES, bundles=(name,), min_confidence=0.0)


def _points(made: Made) -> Tensor:
    return made.lines.points.reshape(len(made.lines), -1, 3)


def slope(found: dict[int, Record], key: str = "moved_mm") -> Record:
    """Moved against asked, and the slope of the line through 0 in each subject (mean, deviation, 95 % interval)."""
    slopes = []
    for record in found.values():
        asked = np.array([one["asked_mm"] for one in record["moved"].values()])
        moved = np.array([one[key] for one in record["moved"].values()])
        slopes.append(float((asked * moved).sum() / (asked * asked).sum()))
    by_asked: Record = {}
    for asked in sorted({float(asked) for record in found.values() for asked in record["moved"]}):
        rows = [record["moved"][f"{asked:g}"] for record in found.values() if f"{asked:g}" in record["moved"]]
        values = [row[key] for row in rows]
        others = [row["others_mm"] for row in rows if row["others_mm"] is not None]
        by_asked[f"{asked:g}"] = {
            "moved_mm": round(statistics.fmean(values), 3),
            "moved_mm_sd": round(statistics.stdev(values), 3) if len(values) > 1 else None,
            "others_mm": round(statistics.fmean(others), 3) if others else None,
            "n": len(values),
        }
    n = len(slopes)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(slopes) / math.sqrt(n) if n > 1 else math.nan
    return {
        "asked": by_asked,
        "slope": round(statistics.fmean(slopes), 3),
        "slope_sd": round(statistics.stdev(slopes), 3) if n > 1 else None,
        "slope_interval": [round(statistics.fmean(slopes) - half, 3), round(statistics.fmean(slopes) + half, 3)],
        "bundles": sorted({record["bundle"] for record in found.values()}),
        "n": n,
    }
