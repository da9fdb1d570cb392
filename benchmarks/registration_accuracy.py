"""Accuracy, folding and cost of deformable registration, against ANTs SyN, ConvexAdam and DIPY SyN on the same pairs.

    python benchmarks/registration_accuracy.py --peers peers/bin/python --threads 1 [--sets simulated anat_labels labelmaps]

Every method runs in a process of its own (`registration_run.py`) and starts from the same affine. What is finished is kept in
``--work``, so that an interrupted run goes on where it stopped, and several may share the work. ``seconds`` are processor
seconds, user and system, of the registration alone (imports and reading are left out for every method; ours contain its
certificate): on a shared machine they hardly grow, wall seconds (``wall_seconds``) do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import measure
import numpy as np
import registration_pairs as pairs
import torch

from tractode.evaluate.folding import certify_positions
from tractode.fields.transform import Displacement

HERE = Path(__file__).resolve().parent
# The settings of each family, from the quickest, with the most pairs each is run on; the first name is the family's default.
FAMILIES: dict[str, dict[str, int]] = {
    "tractode": {
        "tractode": 99, "tractode sloppy": 99, "tractode fast": 99, "tractode exchanged": 6, "tractode long": 6,
    },
    "ANTs SyN": {"ANTs SyN": 99, "ANTs SyN short": 99, "ANTs SyN long": 99},
    "ConvexAdam": {"ConvexAdam": 99, "ConvexAdam short": 99, "ConvexAdam long": 6},
    "DIPY SyN": {"DIPY SyN": 3, "DIPY SyN short": 3, "DIPY SyN long": 3},
}  # fmt: skip
# Beyond the simulated set, whose curves are drawn, these suffice; one contrast has DIPY's and ANTs' cross-correlation.
SHORT = ("tractode", "tractode fast", "tractode exchanged", "ANTs SyN", "ANTs SyN long", "ConvexAdam", "DIPY SyN")
COMMON = ("tractode", "ANTs SyN", "ConvexAdam")
# Where both images are of one contrast, ours is what docs/theory/mind_intensity.md is for; the default stands beside it.
NAMED = {"anat_labels": {"tractode": "tractode default", "tractode one contrast": "tractode"}}
OURS = ("tractode", "tractode default", "tractode fast", "tractode long")
MINE = ("tractode", "DIPY")


def main() -> None:
    options = _options()
    sets: dict[str, dict[str, Any]] = {}
    for name in options.sets:
        rows = _rows(name, options)
        sets[name] = _report(rows, by="dice" if rows[0]["epe_mm"] is None else "epe_mm")
    result = {
        "meta": {
            **measure.meta(_command(options)),
            "resolution_mm": options.resolution,
            "threads": options.threads,
            "seconds": "processor seconds, user and system, of the registration and its children; imports and reading of "
            "images left out for every method; ours with its certificate; the machine was shared",
            "alignment": "simulated: none for ours, ConvexAdam and DIPY (SyN makes its own affine); other sets: one affine "
            "(ours) given to all, SyN makes its own besides",
            "tractode": "the default (MIND); on anat_labels, of one contrast, mind_intensity with its schedule, and the default as "
            "tractode default",
            "DIPY SyN": "expectation-maximisation metric where the contrasts differ, cross-correlation on anat_labels",
        },
        **sets,
    }
    text = pairs.compact(json.dumps(result, indent=1))
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    if options.picture and "simulated" in sets:
        _draw(sets["simulated"], options.picture)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sets", nargs="+", default=["simulated", "anat_labels", "labelmaps"])
    parser.add_argument("--methods", nargs="+", help="in place of those that each set is for")
    parser.add_argument("--pairs", type=int, default=10, help="simulated pairs")
    parser.add_argument("--resolution", type=float, default=2.0, help="mm")
    parser.add_argument("--threads", type=int, default=1, help="of every method")
    parser.add_argument("--peers", type=Path, default=Path(sys.executable), help="python of the peers' environment")
    parser.add_argument("--work", type=Path, default=Path("registration_work"))
    parser.add_argument("--kept-only", action="store_true", help="summarise what is finished, run nothing")
    parser.add_argument("--output")
    parser.add_argument("--picture", type=Path, help="error against time of the simulated pairs")
    return parser.parse_args()


def _command(options: argparse.Namespace) -> str:
    """As it was given, without a machine's paths."""
    given = [a for a in sys.argv[1:] if a != "--kept-only"]
    names = {str(options.peers): "$PEERS", str(options.work): "$WORK"}
    data = os.environ.get("TRACTODE_TEST_DATA", "")
    words = [names.get(a, a.replace(data, "$TRACTODE_TEST_DATA") if data else a) for a in given]
    return "TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA python benchmarks/registration_accuracy.py " + " ".join(words)


def _wanted(name: str, options: argparse.Namespace) -> dict[str, int]:
    """Methods and the most pairs of each."""
    every = {method: n for settings in FAMILIES.values() for method, n in settings.items()}
    if options.methods:
        return dict.fromkeys(options.methods, 99)
    if name == "simulated":
        return every
    chosen = {method: every[method] for method in SHORT}
    if name == "anat_labels":
        chosen |= {"tractode one contrast": 6, "DIPY SyN CC": 6, "DIPY SyN": 0, "ANTs SyN CC": 6}
    return chosen


def _rows(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    data = Path(os.environ.get("TRACTODE_TEST_DATA", ""))
    rows = []
    for number, folder in enumerate(pairs.made(name, data, options.resolution, options.work, options.pairs)):
        if options.kept_only and not all((folder / f"{m.replace(' ', '_')}.json").is_file() for m in COMMON):
            continue  # means are over the same pairs
        for method, most in _wanted(name, options).items():
            kept = folder / f"{method.replace(' ', '_')}.json"
            if number < most and not kept.is_file() and not options.kept_only:
                row = _score(pairs.load(folder), method, folder, options)
                kept.write_text(json.dumps(row), encoding="utf-8")
                print(json.dumps({k: v for k, v in row.items() if k != "dice_of_label"}), file=sys.stderr, flush=True)
            if number < most and kept.is_file():
                row = json.loads(kept.read_text(encoding="utf-8"))
                rows.append({**row, "method": NAMED.get(name, {}).get(row["method"], row["method"])})
    return rows


def _score(pair: pairs.Pair, method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run: what it cost, and how good its displacement is; every method's is read off the same grid."""
    python = sys.executable if method.startswith(MINE) else str(options.peers)
    cores = str(options.threads)
    threads = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": cores, "OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE"}
    with pairs.scratch(folder) as own:
        found = measure.watch([python, str(HERE / "registration_run.py"), method, str(own)], threads)
        base: dict[str, Any] = {
            "method": method, "pair": pair.name, "peak_rss_mb": found.peak_rss_mb, "epe_mm": None,
            "commit": measure.meta("")["commit"][:7],
        }  # fmt: skip
        if found.exit_code:
            return {**base, "failed": found.output[-400:]}
        cost = json.loads((own / "cost.json").read_text(encoding="utf-8"))
        values = torch.from_numpy(np.load(own / "displacement.npy"))
    if method == "tractode":
        np.save(folder / "tractode.npy", values.numpy())
    field = Displacement(pair.fixed.grid, values, "fixed", "moving")
    folding = certify_positions(pair.fixed.grid.centres(torch.float64) + values.movedim(0, -1), pair.fixed.grid)
    moved = pairs.moved_labels(pair, field.map(pair.fixed_labels.grid.centres()))
    overlap = pairs.dice(pair.fixed_labels.values, moved.values)
    inside = pair.fixed_mask.mask
    if isinstance(pair.truth, Displacement):
        base["epe_mm"] = float((values - pair.truth.values).norm(dim=0)[inside].mean())
    if method == "tractode exchanged":
        # The same pair from the other side should give the same transform.
        apart = (values - torch.from_numpy(np.load(folder / "tractode.npy"))).norm(dim=0)[inside]
        cost["exchanged_voxels"] = float(apart.quantile(0.99)) / min(pair.fixed.grid.voxel_sizes)
    return {
        **base, **cost, "dice": statistics.mean(overlap.values()), "dice_of_label": overlap,
        "folded_voxels": folding.n_folded, "non_diffeomorphic_volume": folding.non_diffeomorphic_volume,
    }  # fmt: skip


# --- summaries ------------------------------------------------------------------------------------------------------


def _report(rows: list[dict[str, Any]], by: str) -> dict[str, Any]:
    """Every method that was run, with its family's curve, and the comparison pair by pair."""
    of = {m: [r for r in rows if r["method"] == m] for m in dict.fromkeys(r["method"] for r in rows)}
    out = {method: _summary(found) for method, found in of.items()}
    for family, settings in FAMILIES.items():
        curve = [
            {"setting": m, **{k: out[m][k] for k in ("seconds", "epe_mm", "dice", "n")}} for m in settings if m in out
        ]
        if len(curve) > 1 and family in out:
            curve = [p for p in curve if p["setting"] != "tractode exchanged"]
            out[family]["curve"] = sorted(curve, key=lambda p: p["seconds"] or 0)
    peers = {m: {r["pair"]: r for r in found if "failed" not in r} for m, found in of.items() if m[:8] != "tractode"}
    out["no_worse_than_best_peer"] = {
        m: _pairwise([r for r in of[m] if "failed" not in r], peers, by) for m in OURS if m in of
    }
    return out


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over pairs, and every pair's own accuracy; folding is the most of any pair."""
    good = [row for row in rows if "failed" not in row]
    out: dict[str, Any] = {"n": len(good), "failed": [row["pair"] for row in rows if "failed" in row]}
    for key, digits in (("epe_mm", 4), ("dice", 4), ("seconds", 2), ("wall_seconds", 1), ("peak_rss_mb", 0)):
        values = [row[key] for row in good if row.get(key) is not None]
        out[key] = round(statistics.mean(values), digits) if values else None
    out["folded_voxels"] = max((row["folded_voxels"] for row in good), default=None)
    out["repeats"] = sum(row.get("repeats", 0) for row in good)
    back = [row["there_and_back_voxels"]["p99"] for row in good if "there_and_back_voxels" in row]
    if back:
        out["inverse_p99_voxels"] = round(max(back), 6)
    apart = [row["exchanged_voxels"] for row in good if "exchanged_voxels" in row]
    if apart:
        out["exchanged_p99_voxels"] = round(max(apart), 6)
    for key in ("epe_mm", "dice"):
        out[f"{key}_of_pair"] = [round(row[key], 4) for row in good if row[key] is not None]
    out["pairs"] = [row["pair"] for row in good]
    out["commits"] = sorted({row["commit"] for row in good})
    labels = sorted({int(code) for row in good for code in row["dice_of_label"]})
    of_label = {c: [row["dice_of_label"][str(c)] for row in good if str(c) in row["dice_of_label"]] for c in labels}
    out["dice_of_label"] = {str(c): round(statistics.mean(values), 3) for c, values in of_label.items()}
    return out


def _pairwise(ours: list[dict[str, Any]], peers: dict[str, dict[str, Any]], by: str) -> dict[str, Any]:
    """In how many pairs one of ours is no worse than the best of all peers' settings."""
    sign = -1 if by == "dice" else 1
    best = []
    for row in ours:
        found = [(sign * of[row["pair"]][by], m) for m, of in peers.items() if row["pair"] in of]
        if found:
            best.append((sign * row[by], *min(found)))
    return {
        "by": by,
        "n": len(best),
        "pairs_no_worse": sum(mine <= other for mine, other, _ in best),
        "mean": round(sign * statistics.mean(mine for mine, _, _ in best), 4) if best else None,
        "best_peer_mean": round(sign * statistics.mean(other for _, other, _ in best), 4) if best else None,
        "best_peer": [name for *_, name in best],
    }


def _draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 3.2), dpi=110)
    most = max(found["n"] for found in results.values() if "pairs" in found)
    for family, colour in zip(FAMILIES, ("#0b6e4f", "#b3541e", "#3d5a99", "#777777"), strict=True):
        chosen = [m for m in FAMILIES[family] if m in results and m != "tractode exchanged"]
        points = sorted(
            (results[m]["seconds"], results[m]["epe_mm"], results[m]["n"]) for m in chosen if results[m]["n"]
        )
        axes.plot([p[0] for p in points], [p[1] for p in points], "-", color=colour)
        axes.plot([], [], "o", color=colour, ms=4, label=family)
        for seconds, error, n in points:
            # Hollow: fewer pairs than the others, so that its mean is not theirs.
            axes.plot(seconds, error, "o", color=colour, ms=5, mfc=colour if n == most else "white")
    axes.set(xscale="log", yscale="log", xlabel="processor seconds a pair, one thread", ylabel="end-point error (mm)")
    axes.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
    axes.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(f"{most} pairs; hollow points: fewer", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
