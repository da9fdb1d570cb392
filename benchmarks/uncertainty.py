"""Whether the uncertainty of every model is calibrated: how often 90 % intervals hold the truth of simulated voxels.

    python benchmarks/uncertainty.py [--models dti csd …] [--voxels 400] [--samples 50] [--output FILE]

Voxels are `models_voxels.mixed`; the truth of a map is what the model reads from the signal without noise. Each voxel is
measured once at SNR 30, 20 and 10. The noise level is that of a scan: the median over its voxels of what each tells alone.
Intervals are calibrated on voxels of another kind (`tractode.models.calibration`). ``coverage_90`` of a scalar map is the
share of voxels whose interval holds the truth; of an axis (white matter only; several axes of a voxel in the order that
suits those of the truth) the share whose cone of 90 % does. ``coverage_of_sd`` is that of the value ± 1.645 of the standard
errors that the app writes, ``sd_ratio`` the standard deviation before calibration over the true one (``repeats``
measurements of the same voxels at SNR 20, root mean squares over all of them); ``width`` is the median width of the
intervals over the standard deviation of the map between voxels.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import models_voxels as voxels
import torch
from torch import Tensor

from tractode.contracts import SignalModel
from tractode.fields import GradientTable
from tractode.models import MODELS
from tractode.models.noise import explained, noise_of
from tractode.models.readouts import Readouts, read
from tractode.models.uncertainty import Errors, calibrated, errors, why_not
from tractode.ops import sphere

LEVEL = 0.9
NORMAL = 1.645  # half-width of a normal's interval of 90 %
REPEATS = 8
REPEATED_VOXELS = 30
TABLE_OF = {
    "dti": "b1000",
    "csd": "b3000",
    "csa": "b1500",
    "qball": "b1500",
    "fwdti": "low",
    "dki": "mid",
    "wmti": "mid",
    "msdki": "mid",
}


BAND = 0.85, 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--voxels", type=int, default=400)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--methods", nargs="*", default=["bootstrap", "laplace"])
    parser.add_argument("--snrs", type=int, nargs="*", default=list(voxels.SNRS))
    parser.add_argument("--seed", type=int, default=2, help="of the voxels; 1 was looked at while the method was made")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--add", action="store_true", help="to what --output holds, the other method's entries")
    arguments = parser.parse_args()
    methods = "" if len(arguments.methods) > 1 else f" --methods {arguments.methods[0]}"
    command = f"python benchmarks/uncertainty.py{methods} --voxels {arguments.voxels} --samples {arguments.samples} --seed {arguments.seed}"
    before = json.loads(arguments.output.read_text()) if arguments.add and arguments.output.is_file() else {}
    result: dict[str, Any] = before.get("models", {})
    for name in arguments.models:
        result[name] = result.get(name, {}) | of_model(name, arguments)
        print(name, json.dumps(result[name]), file=sys.stderr, flush=True)
        meta = measure.meta(command)
        document = {"meta": meta, "level": LEVEL, "models": result, **flat(result)}
        if before:
            document["before"] = before["meta"]  # of the other method's entries
        if arguments.output:
            arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    return 0


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """``model.map`` → what each method reaches over all SNRs: the short table; and what is outside the band."""
    maps: dict[str, Any] = {}
    outside: dict[str, list[str]] = {}
    for name, model in result.items():
        for method in ("bootstrap", "laplace"):
            for param, entry in model.get(method, {}).get("maps", {}).items():
                kind = "maps" if method == "bootstrap" else "maps_laplace"
                short = {"coverage_90": entry["coverage_90"], "n": entry["n"], "method": method}
                maps.setdefault(kind, {})[f"{name}.{param}"] = short
                if not BAND[0] <= entry["coverage_90"] <= BAND[1]:
                    outside.setdefault(method, []).append(f"{name}.{param}")
    return maps | {"outside_band": outside}


def of_model(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    model: SignalModel = MODELS[name]()
    gtab = voxels.table(voxels.TABLES[TABLE_OF.get(name, "multi")])
    if (reason := why_not(model, gtab)) is not None:
        return {"refused": reason}
    scene = voxels.mixed(arguments.voxels, seed=arguments.seed)
    clean, table = explained(model, scene.signal(gtab), gtab)
    found: dict[str, Any] = {"table": TABLE_OF.get(name, "multi")}
    for method in arguments.methods:
        started = time.process_time()
        rule = calibrated(model, gtab, method, arguments.samples, level=LEVEL, knows_sigma=True)
        seconds = round(time.process_time() - started, 1)
        maps: dict[str, dict[str, Held]] = {}
        for snr in arguments.snrs:
            measured = voxels.noisy(clean, snr, seed=1000 * (arguments.seed - 1) + snr)
            sigma = scan_level(model, measured, table)
            stated = errors(model, measured, table, method, arguments.samples, sigma=sigma, calibration=rule)
            with torch.no_grad():
                matched = read(model, model.fit(clean, table), stated.axes)
            for param, held in covered(stated, matched, scene.is_white).items():
                maps.setdefault(param, {})[f"snr_{snr}"] = held
        found[method] = {
            "maps": {param: together(by_snr) for param, by_snr in maps.items()},
            "calibration_s": seconds,
            "processor_s": round(time.process_time() - started, 1),
        }
        for param, ratio in ratios(model, clean, table, method, arguments.samples).items():
            found[method]["maps"][param]["sd_ratio"] = ratio
    return found


@dataclass(frozen=True)
class Held:
    """Which voxels' intervals hold the truth, and for scalars which of their errors do; width of the intervals."""

    by_interval: Tensor
    by_error: Tensor
    width: float


def scan_level(model: SignalModel, measured: Tensor, table: GradientTable) -> Tensor:
    """One noise level for all voxels."""
    with torch.no_grad():
        sigma = noise_of(model, measured, table, model.fit(measured, table)).sigma
    return sigma.median().repeat(len(sigma), 1)


def covered(stated: Errors, truth: Readouts, is_white: Tensor) -> dict[str, Held]:
    """For each readout, which voxels' intervals hold the truth."""
    found = {}
    for param, value in truth.scalars.items():
        low, high = stated.ends[param]
        slack = 1e-9 * value.abs().max()  # a bound that is the truth itself
        held = ((value >= low - slack) & (value <= high + slack)).ravel()
        error = (stated.values[param] - value).abs() <= NORMAL * stated.deviations[param] + slack
        width = float((high - low).median() / value.std().clamp(min=1e-30))
        found[param] = Held(held, error.ravel(), width)
    for param, axis in truth.axes.items():
        there = is_white & (axis.norm(dim=-1) > 0.5) & (stated.axes[param].norm(dim=-1) > 0.5)
        held = (sphere.angle(stated.axes[param], axis) <= stated.cones[param][:, 0])[there]
        found[param] = Held(held, held, float(stated.cones[param][there].median()) if bool(there.any()) else 0.0)
    return found


def together(by_snr: dict[str, Held]) -> dict[str, Any]:
    everyone = torch.cat([held.by_interval for held in by_snr.values()]).double()
    errors_hold = torch.cat([held.by_error for held in by_snr.values()]).double()
    return {
        "coverage_90": round(float(everyone.mean()), 3),
        "n": len(everyone),
        "coverage_of_sd": round(float(errors_hold.mean()), 3),
        "coverage_90_at": {snr: round(float(held.by_interval.double().mean()), 3) for snr, held in by_snr.items()},
        "width_at": {snr: round(held.width, 3) for snr, held in by_snr.items()},
    }


def ratios(model: SignalModel, clean: Tensor, table: GradientTable, method: str, samples: int) -> dict[str, float]:
    """Stated over true standard deviation of the scalars at SNR 20, root mean squares over some voxels."""
    few = clean[:REPEATED_VOXELS]
    measured = voxels.noisy(few.repeat(REPEATS, 1), 20, seed=5)
    stated = errors(model, measured, table, method, samples)
    found = {}
    for param, values in stated.values.items():
        true = values.unflatten(0, (REPEATS, -1)).var(0)
        said = stated.deviations[param].unflatten(0, (REPEATS, -1)).square().mean(0)
        moved = true > 0
        found[param] = round(float((said[moved].sum() / true[moved].sum()).sqrt()), 3) if bool(moved.any()) else 1.0
    return found


if __name__ == "__main__":
    raise SystemExit(main())
