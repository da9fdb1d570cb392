"""Sensitivity maps: do they say what happens to a connection when the signal changes? One JSON object.

1. Finite differences: the signals of single voxels are disturbed at random, the voxel is fitted again, every line that
   samples it is tracked again; the change of the connection beside the map's prediction, for disturbances of several
   sizes and voxels that matter much, less and little. A voxel has a jump where a line ends alive by a hard rule and the
   disturbance changes its number of steps, or where the weight of a line changes by more than 0.1: it follows another
   peak.
2. Lesions: anisotropy is lost in balls along and beside the bundles; rank correlation of predicted and actual change, of
   the soft connection and of the plain count of lines that join the regions by the tracker's own hard rules. The map of
   a five times softer cutoff is asked too: it looks further ahead.

Differences both with all of the tracker's rules soft (the default) and with its cutoff alone. Simulated phantoms of
several noise seeds, double precision. Lines that sample no changed voxel are the same and are not tracked again.
``--output`` saves the result.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import meta
from scipy.stats import spearmanr
from torch import Tensor

from tractode.fields import Image, ShField, Streamlines
from tractode.models.csd import CSD
from tractode.models.response import estimate_response
from tractode.ops import smooth
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import PhantomSettings, phantom
from tractode.tracking.sampling import ComponentTable
from tractode.tracking.sdstream import SDStream
from tractode.tracking.sensitivity import Probe, Sensitivity, connection_weights, levelled, sensitivity
from tractode.tracking.survival import SoftTermination, alive_at_ends, memberships, survival

SNR, VOXEL, SIZE = 20.0, 3.0, 20
CONNECTIONS = ("CrossA", "KissA", "KissB", "NeckB")
TERMINATIONS = ("all_rules_soft", "cutoff_soft")
LESION_RADIUS = 4.5
STEPS = (1e-2, 1e-3, 1e-4, 1e-5)
SHARES = (0.01, 0.05, 0.2, 0.9)
WIDE = 0.1
"""Temperature of the cutoff of the map that is to look further ahead; the default is 0.02."""
STRATA = {"high": (0.1, 1.0), "medium": (0.01, 0.1), "low": (0.0003, 0.01)}
"""Strengths relative to the strongest voxel's."""
ALIVE, SWITCHED = 0.01, 0.1
CORNERS = torch.tensor([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])


class Scene:
    """A phantom's scan, its fit, and the questions of one connection to it."""

    def __init__(self, seed: int) -> None:
        self.truth = phantom(multi_shell(((2500.0, 45),), 4), PhantomSettings(size=SIZE, voxel_mm=VOXEL, snr=SNR), seed)
        scan = self.truth.dwi
        self.grid, self.gtab, self.signal = scan.grid, scan.gtab, scan.signal.double()
        white = self.truth.white_matter.mask
        self.mask = smooth.dilate(white, (1, 1, 1)) & scan.mask
        shell = CSD.shell(self.gtab)
        assert shell is not None
        self.model = CSD(estimate_response(self.signal[:, white].mT, self.gtab, shell))
        coeffs = torch.zeros(45, *self.grid.shape, dtype=torch.float64)
        coeffs[:, self.mask] = self.model.fit(self.signal[:, self.mask].mT, self.gtab).mT
        self.field = ShField(self.grid, coeffs, 8)

    def probe(self, name: str, termination: str) -> Probe:
        ends = self.truth.bundles[name]
        regions = memberships(torch.stack([ends.start, ends.end]), self.grid, 2.0)
        white = self.truth.white_matter.mask.nonzero().double()
        corners = torch.tensor([[-0.25, -0.25, 0.25], [0.25, 0.25, 0.25], [-0.25, 0.25, -0.25], [0.25, -0.25, -0.25]])
        seeds = self.grid.to_world((white[:, None] + corners).reshape(-1, 3))
        tracker = SDStream(step_mm=1.0, angle=math.radians(30), min_length=20.0, max_length=120.0)
        mask = Image(self.grid, self.mask[None])
        chosen = SoftTermination(0.1, 0.02) if termination == "cutoff_soft" else None
        return Probe.of(tracker, seeds, mask, regions, chosen)

    def altered(self, changes: list[tuple[Tensor, Tensor]]) -> list[ShField]:
        """Fields of scans in which some voxels (ravelled) have other signals (a row each): fitted in one go."""
        coeffs = self.model.fit(torch.cat([rows for _, rows in changes]), self.gtab)
        fields = []
        for (voxels, _), part in zip(changes, coeffs.split([len(v) for v, _ in changes]), strict=True):
            inside = self.mask.flatten()[voxels]
            values = self.field.coeffs.flatten(1).clone()
            values[:, voxels[inside]] = part[inside].mT
            fields.append(ShField(self.grid, values.reshape(self.field.coeffs.shape), 8))
        return fields


@dataclasses.dataclass(frozen=True, eq=False)
class Tracked:
    """By seed: how much its line joins the regions, and its steps on both sides where their ends are alive and hard."""

    weight: Tensor
    steps: Tensor


class Question:
    """A connection's derivative, and what becomes of the connection in another field."""

    def __init__(self, scene: Scene, probe: Probe) -> None:
        self.probe, self.n = probe, len(probe.seeds)
        self.found: Sensitivity = sensitivity(scene.model, scene.signal, scene.gtab, scene.field, probe)
        everyone = torch.arange(self.n)
        with torch.no_grad():
            self.before = self.tracked(scene.field, everyone)
            self.hard_before = self.hard(scene.field, everyone)
            # Every voxel that a line samples, however short the line.
            whole = dataclasses.replace(probe.termination.loosened(probe.tracker), min_length=probe.tracker.step_mm)
            lines = _lines(whole, scene.field, probe)
        places = torch.cat((probe.seeds, lines.points))
        self.owner = torch.cat((everyone, lines.per_streamline["seed"][lines.streamline_of_point]))
        cells = scene.grid.to_voxel(places).floor().long()
        self.near = (cells[:, None] + CORNERS).clamp(min=0)
        shape = torch.tensor(scene.grid.shape)
        self.near = torch.minimum(self.near, shape - 1)
        self.near = (self.near[..., 0] * shape[1] + self.near[..., 1]) * shape[2] + self.near[..., 2]

    def affected(self, voxels: Tensor) -> Tensor:
        """Seeds whose lines sample any of the voxels."""
        return self.owner[torch.isin(self.near, voxels).any(-1)].unique()

    def tracked(self, field: ShField, seeds: Tensor) -> Tracked:
        probe = self.probe.chosen(seeds)
        lines = _lines(probe.termination.loosened(probe.tracker), field, probe)
        weights = survival(lines, ComponentTable.of(field), probe.termination)
        alive = alive_at_ends(lines, weights) > ALIVE
        first = lines.per_streamline["seed_point"]
        steps = torch.stack((first, lines.offsets.diff() - 1 - first), dim=1)
        own = seeds[lines.per_streamline["seed"]]
        out = torch.zeros(self.n, dtype=torch.float64), torch.zeros(self.n, 2, dtype=torch.long)
        out[0][own] = connection_weights(lines, weights, probe.regions)
        out[1][own] = torch.where(alive & (out[0][own] > 1e-6)[:, None], steps, 0)
        return Tracked(*out)

    def hard(self, field: ShField, seeds: Tensor) -> Tensor:
        """By seed: whether the tracker's own line ends where memberships are at least one half, once in each region."""
        lines = _lines(self.probe.tracker, field, self.probe.chosen(seeds))
        first, last = (
            self.probe.regions.sample(lines.points[i]) >= 0.5 for i in (lines.offsets[:-1], lines.offsets[1:] - 1)
        )
        out = torch.zeros(self.n)
        joins = (first[:, 0] & last[:, 1]) | (first[:, 1] & last[:, 0])
        out[seeds[lines.per_streamline["seed"]]] = joins.float()
        return out


def _lines(tracker: SDStream, field: ShField, probe: Probe) -> Streamlines:
    (lines,) = tracker.track(field, probe.seeds, probe.mask, directions=probe.directions)
    return lines


def differences(scene: Scene, ask: Question, generator: torch.Generator, each: int) -> list[dict[str, Any]]:
    """Predicted and actual change for voxels of every stratum and disturbances of every size."""
    strength = ask.found.strength().flatten()
    chosen: list[tuple[str, int]] = []
    for stratum, (low, high) in STRATA.items():
        there = ((strength > low * strength.max()) & (strength <= high * strength.max())).nonzero().ravel()
        order = torch.randperm(len(there), generator=generator)[:each]
        chosen += [(stratum, int(v)) for v in there[order]]
    changes, rows = [], []
    for stratum, voxel in chosen:
        own = scene.signal.flatten(1)[:, voxel]
        move = own * torch.randn(len(scene.gtab), generator=generator, dtype=torch.float64)
        at = int((ask.found.voxels == voxel).nonzero())
        slope = float(ask.found.gradient[at] @ move)
        for h in STEPS:
            changes += [(torch.tensor([voxel]), (own + sign * h * move)[None]) for sign in (1, -1)]
            rows.append({"stratum": stratum, "voxel": voxel, "step": h, "predicted": slope * h})
    fields = iter(scene.altered(changes))
    for row in rows:
        seeds = ask.affected(torch.tensor([row["voxel"]]))
        up, down = (ask.tracked(next(fields), seeds) for _ in range(2))
        row["actual"] = float((up.weight - down.weight)[seeds].sum() / 2)
        ends, switches = (up.steps != down.steps).any(-1), (up.weight - down.weight).abs() > SWITCHED
        row["jumps"] = int((ends | switches)[seeds].sum())
    return rows


def lesions(
    scene: Scene, ask: Question, wide: Sensitivity, name: str, generator: torch.Generator, n: int, shares: list[float]
) -> dict[str, np.ndarray]:
    """By share, for balls around places in and near the bundle: predicted, actual (soft) and actual (hard) changes, and
    what the wide map predicts."""
    near = smooth.dilate(scene.truth.bundles[name].mask, (2, 2, 2)).nonzero()
    places = scene.grid.to_world(near[torch.randperm(len(near), generator=generator)[:n]].double())
    centres = scene.grid.centres(torch.float64).reshape(-1, 3)
    balls = [((centres - place).norm(dim=-1) < LESION_RADIUS).nonzero().ravel() for place in places]
    found = {}
    for share in shares:
        changes = [(ball, levelled(scene.signal.flatten(1)[:, ball].mT, scene.gtab, share)) for ball in balls]
        rows = []
        for (ball, values), field in zip(changes, scene.altered(changes), strict=True):
            signal = scene.signal.flatten(1).clone()
            signal[:, ball] = values.mT
            whole = signal.reshape(scene.signal.shape)
            predicted, further = ask.found.predicted_change(whole), wide.predicted_change(whole)
            seeds = ask.affected(ball)
            if not len(seeds):
                rows.append((predicted, 0.0, 0.0, further))
                continue
            soft = ask.tracked(field, seeds).weight[seeds] - ask.before.weight[seeds]
            hard = ask.hard(field, seeds)[seeds] - ask.hard_before[seeds]
            rows.append((predicted, float(soft.sum()), float(hard.sum()), further))
        found[f"{share:g}"] = np.array(rows)
    return found


def agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How predicted and actual changes of some voxels agree."""
    if not rows:
        return {"n": 0}
    predicted, actual = (np.array([row[key] for row in rows]) for key in ("predicted", "actual"))
    error = np.abs(predicted - actual)
    relative = error / np.maximum(np.abs(predicted), 1e-30)
    return {
        "n": len(rows),
        "relative_error_median": _short(np.median(relative)),
        "relative_error_worst": _short(relative.max()),
        "relative_error_of_all": _short(np.linalg.norm(error) / np.linalg.norm(actual)),
        "within_1_percent": _short(np.mean(relative < 0.01)),
        "correlation": _short(np.corrcoef(predicted, actual)[0, 1]) if len(rows) > 2 else None,
    }


def ranks(tables: list[np.ndarray]) -> dict[str, Any]:
    """Rank correlations of predicted with actual changes, over phantoms and connections, and the plain correlation."""
    out: dict[str, Any] = {"n": len(tables), "lesions_each": len(tables[0])}
    for label, guess in (("", 0), ("wide_", 3)):
        for what, actual in (("soft", 1), ("hard_count", 2)):
            # A table whose actual changes are all equal has no ranks.
            found = [float(spearmanr(t[:, guess], t[:, actual]).statistic) for t in tables if np.ptp(t[:, actual]) > 0]
            out[f"{label}rank_correlation_{what}"] = (
                {"n": 0}
                if not found
                else {
                    "mean": _short(np.mean(found)),
                    "standard_error": _short(np.std(found, ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None,
                    "least": _short(min(found)),
                    "n": len(found),
                }
            )
        out[f"{label}correlation_soft"] = _short(np.mean([np.corrcoef(t[:, guess], t[:, 1])[0, 1] for t in tables]))
    return out


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")


def summary(rows: list[dict[str, Any]], abrupt: dict[str, list[float]]) -> dict[str, Any]:
    by_step = {}
    for h in STEPS:
        here = [row for row in rows if row["step"] == h]
        smooth_rows = [row for row in here if not row["jumps"]]
        by_step[f"{h:g}"] = {
            **agreement(here),
            "voxels_with_a_jump": len(here) - len(smooth_rows),
            "without_a_jump": agreement(smooth_rows),
            **{s: agreement([row for row in here if row["stratum"] == s]) for s in STRATA},
        }
    return {
        "abrupt_share": {name: _short(np.mean(values)) for name, values in abrupt.items()},
        "finite_differences": by_step,
    }


def measure(seeds: int, each: int, balls: int, connections: list[str], shares: list[float]) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {t: [] for t in TERMINATIONS}
    abrupt: dict[str, dict[str, list[float]]] = {t: {name: [] for name in connections} for t in TERMINATIONS}
    tables: dict[str, list[np.ndarray]] = {f"{s:g}": [] for s in shares}
    for seed in range(seeds):
        scene = Scene(seed)
        for name in connections:
            for termination in TERMINATIONS:
                generator = torch.Generator().manual_seed(seed)
                ask = Question(scene, scene.probe(name, termination))
                abrupt[termination][name].append(ask.found.abrupt)
                with torch.no_grad():
                    rows[termination] += differences(scene, ask, generator, each)
                if termination == TERMINATIONS[0]:
                    wide = softer(scene, ask.probe)
                    with torch.no_grad():
                        for share, table in lesions(scene, ask, wide, name, generator, balls, shares).items():
                            tables[share].append(table)
    n = seeds * len(connections)
    return {
        "n": n,
        "data": f"phantoms of {VOXEL:g} mm, SNR {SNR:g}, connections {', '.join(connections)}, {seeds} noise seeds",
        "strata": {name: list(limits) for name, limits in STRATA.items()},
        **{t: {"n": n, **summary(rows[t], abrupt[t])} for t in TERMINATIONS},
        "lesions": {share: ranks(found) for share, found in tables.items()},
    }


def softer(scene: Scene, probe: Probe) -> Sensitivity:
    """The map of the same question with a wide cutoff."""
    wide = dataclasses.replace(probe, termination=dataclasses.replace(probe.termination, temperature=WIDE))
    return sensitivity(scene.model, scene.signal, scene.gtab, scene.field, wide)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--voxels", type=int, default=5, help="of each of three strata, for each connection")
    parser.add_argument("--lesions", type=int, default=16)
    parser.add_argument("--connections", nargs="+", choices=CONNECTIONS, default=["CrossA", "KissA", "NeckB"])
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="of anisotropy lost in a lesion")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "sensitivity": measure(options.seeds, options.voxels, options.lesions, options.connections, options.shares)
    }
    command = (
        f"benchmarks/task_sensitivity.py --seeds {options.seeds} --voxels {options.voxels} --lesions {options.lesions} "
        f"--connections {' '.join(options.connections)} --shares {' '.join(f'{s:g}' for s in options.shares)}"
    )
    text = json.dumps(result | {"meta": meta(command)}, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
