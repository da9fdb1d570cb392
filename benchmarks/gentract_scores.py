"""Scores of one tractogram against a test subject's truth, and what is said of several subjects together.

Every tractogram is scored in the subject's own space. ``mdf_mm`` is the mean over the bundles that exist of the mean MDF of
each line made for a bundle to the nearest true one (``forward`` of `tractode.evaluate.bundle_distance`); it needs to know
for which bundle a line was made, so local trackers have none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from tractode.evaluate.bundle_distance import bundle_distance
from tractode.evaluate.connections import BundleRegions
from tractode.evaluate.tractometer import tractometry
from tractode.fields import Streamlines

Record = dict[str, Any]
# What the tables say of every method, in this order; rates and shares are fractions of 1.
RATES = (
    "valid_rate", "invalid_rate", "no_connection_rate", "wrong_path_rate", "bundles_found", "bundles_found_share", "bundles_invalid",
    "overlap", "overreach", "f1",
)  # fmt: skip
DISTANCES = ("mdf_mm", "mdf_backward_mm", "mdf_bundles")
MOST_LINES = 400  # of a bundle, for distances


def scored(
    lines: Streamlines,
    regions: Mapping[str, BundleRegions],
    true_lines: Mapping[str, Streamlines] | None = None,
    made_for: Sequence[str] | None = None,
) -> Record:
    """All scores of one tractogram; ``made_for`` names each line's bundle. ``bundles`` keeps each bundle's own."""
    found = tractometry(lines, regions)
    told = found.record()
    record: Record = {
        "n_lines": told["n"],
        "bundles_true": told["bundles"],
        "valid_rate": told["VC"],
        "invalid_rate": told["IC"],
        "no_connection_rate": told["NC"],
        "wrong_path_rate": told["WPC"],
        "bundles_found": told["VB"],
        "bundles_found_share": told["VB"] / max(told["bundles"], 1),
        "bundles_invalid": told["IB"],
        "overlap": told["OL"],
        "overreach": told["OR"],
        "f1": told["F1"],
        "bundles": {
            name: {"n_valid": one["n"], "overlap": one["OL"], "overreach": one["OR"], "f1": one["F1"]}
            for name, one in told["per_bundle"].items()
        },
    }
    if true_lines is not None and made_for is not None:
        record |= distances(lines, true_lines, made_for, record["bundles"])
    return record


def is_valid(lines: Streamlines, regions: Mapping[str, BundleRegions]) -> Tensor:
    """Whether each line is a valid connection (boolean, one a line)."""
    return tractometry(lines, regions).connections.bundle_of >= 0


def distances(
    lines: Streamlines, true_lines: Mapping[str, Streamlines], made_for: Sequence[str], bundles: Record
) -> Record:
    """MDF to the truth, bundle by bundle (also written into ``bundles``), and its means over bundles that have lines."""
    rows: dict[str, list[int]] = {}
    for index, name in enumerate(made_for):
        rows.setdefault(name, []).append(index)
    there, back = [], []
    for name, truth in true_lines.items():
        if name not in rows:
            continue
        one = bundle_distance(lines.select(torch.tensor(rows[name])), truth, most_lines=MOST_LINES)
        if math.isnan(one.mdf_mm):
            continue
        bundles.setdefault(name, {}).update(
            n_made=len(rows[name]), mdf_mm=one.forward_mm, mdf_backward_mm=one.backward_mm
        )
        there.append(one.forward_mm)
        back.append(one.backward_mm)
    return {
        "mdf_mm": statistics.fmean(there) if there else None,
        "mdf_backward_mm": statistics.fmean(back) if back else None,
        "mdf_bundles": len(there),
        "share_for_absent_bundles": sum(len(v) for k, v in rows.items() if k not in true_lines) / max(len(made_for), 1),
    }


def summary(records: Sequence[Record], keys: Sequence[str] | None = None) -> Record:
    """Mean and standard deviation over subjects (``…_sd``) of every number; ``n`` is the number of subjects."""
    keys = keys or [*RATES, *DISTANCES, "share_for_absent_bundles", "n_lines", "bundles_true"]
    entry: Record = {}
    for key in keys:
        values = [float(one[key]) for one in records if one.get(key) is not None]
        if values:
            entry[key] = round(statistics.fmean(values), 4)
            entry[f"{key}_sd"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
            if len(values) < len(records):  # nothing was drawn in the others
                entry[f"{key}_n"] = len(values)
    return {**entry, "n": len(records)}


def paired(ours: Mapping[int, Record], theirs: Mapping[int, Record], key: str) -> Record:
    """Ours less theirs in the subjects that both have: mean, 95 % interval (Student's t), in how many it is above 0.

    Distances are compared over the bundles that both made lines for.
    """
    differences = [
        found for number in sorted(set(ours) & set(theirs)) if (found := _difference(ours[number], theirs[number], key)) is not None
    ]  # fmt: skip
    n = len(differences)
    if n < 2:
        return {"difference": differences[0] if n else None, "interval": None, "n_above_0": None, "n": n}
    mean = statistics.fmean(differences)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return {
        "difference": round(mean, 4),
        "interval": [round(mean - half, 4), round(mean + half, 4)],
        "n_above_0": sum(d > 0 for d in differences),
        "n": n,
    }


def _difference(one: Record, other: Record, key: str) -> float | None:
    if key not in ("mdf_mm", "mdf_backward_mm"):
        return None if one.get(key) is None or other.get(key) is None else one[key] - other[key]
    both = [
        name for name, found in one["bundles"].items() if key in found and key in other["bundles"].get(name, {})
    ]  # fmt: skip
    if not both:
        return None
    return statistics.fmean(one["bundles"][name][key] - other["bundles"][name][key] for name in both)


def acceptance(table: Mapping[str, Record], ours: str, locals_: Sequence[str]) -> Record:
    """Issue 5's conditions: precision against the best local tracker's, and bundles found against the best's."""
    rivals = [name for name in locals_ if table.get(name, {}).get("n")]
    if ours not in table or not table[ours].get("n") or not rivals:
        return {}
    best = max(rivals, key=lambda name: table[name]["valid_rate"])
    finder = max(rivals, key=lambda name: table[name]["bundles_found"])
    mine, rival = table[ours], table[best]
    ratio = mine["valid_rate"] / max(rival["valid_rate"], 1e-9)
    # "Invalid" of the second condition is every line that is not valid: 1 − precision.
    wrong = (1 - mine["valid_rate"]) / max(1 - rival["valid_rate"], 1e-9)
    bundles = mine["bundles_found"] / max(table[finder]["bundles_found"], 1e-9)
    is_hard = rival["valid_rate"] <= 0.28
    precise = ratio >= 3.5 if is_hard else wrong <= 1 / 3
    return {
        "best_precision": best,
        "precision": mine["valid_rate"],
        "precision_of_best": rival["valid_rate"],
        "precision_ratio": round(ratio, 3),
        "not_valid_ratio": round(wrong, 3),
        "invalid_connections_ratio": round(mine["invalid_rate"] / max(rival["invalid_rate"], 1e-9), 3),
        "condition": "precision_ratio >= 3.5" if is_hard else "not_valid_ratio <= 1/3",
        "is_precise": precise,
        "most_bundles": finder,
        "bundles_ratio": round(bundles, 3),
        "is_complete": bundles >= 0.9,
        "n": mine["n"],
    }
