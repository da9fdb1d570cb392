"""Whether the uncertainty of every model is calibrated: how often 90 % intervals hold the truth of simulated voxels.

    python benchmarks/uncertainty.py [--models dti csd …] [--voxels 400] [--samples 50] [--output FILE]

Voxels are `models_voxels.mixed`; the truth of a map is what the model reads from the signal without noise. Each voxel is
measured once at SNR 30, 20 and 10. The noise level is that of a scan: the median over its voxels of what each tells alone.
``coverage_90`` of a scalar map is the share of voxels whose interval holds the truth; of an axis (white matter only) the
share whose cone of 90 % does. ``sd_ratio`` is the stated standard deviation over the true one (``repeats`` measurements
of the same voxels at SNR 20, root mean squares over all of them).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
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
from tractode.models.uncertainty import Errors, errors, why_not
from tractode.ops import sphere

LEVEL = 0.9
REPEATS = 12
REPEATED_VOXELS = 60
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


# The bootstrap, but where constraints make repetitions vary less than measurements do (see docs/theory/uncertainty.md).
METHOD_OF = {"dki": "laplace", "wmti": "laplace"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--voxels", type=int, default=400)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--methods", nargs="*", default=["bootstrap", "laplace"])
    parser.add_argument("--snrs", type=int, nargs="*", default=list(voxels.SNRS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    command = f"python benchmarks/uncertainty.py --voxels {arguments.voxels} --samples {arguments.samples}"
    result: dict[str, Any] = {}
    for name in arguments.models:
        result[name] = of_model(name, arguments)
        print(name, json.dumps(result[name]), file=sys.stderr, flush=True)
        document = {"meta": measure.meta(command), "level": LEVEL, "models": result, **flat(result)}
        if arguments.output:
            arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    return 0


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """``model.map`` → what the method that suits the model reaches over all SNRs: the short table."""
    found = {}
    for name, model in result.items():
        method = METHOD_OF.get(name, "bootstrap")
        for param, entry in model.get(method, {}).get("maps", {}).items():
            found[f"{name}.{param}"] = {"coverage_90": entry["coverage_90"], "n": entry["n"], "method": method}
    return {"maps": found}


def of_model(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    model: SignalModel = MODELS[name]()
    gtab = voxels.table(voxels.TABLES[TABLE_OF.get(name, "multi")])
    if (reason := why_not(model, gtab)) is not None:
        return {"refused": reason}
    scene = voxels.mixed(arguments.voxels, seed=1)
    clean, table = explained(model, scene.signal(gtab), gtab)
    with torch.no_grad():
        truth = read(model, model.fit(clean, table))
    found: dict[str, Any] = {"table": TABLE_OF.get(name, "multi")}
    for method in arguments.methods:
        started, maps = time.process_time(), {}
        for snr in arguments.snrs:
            measured = voxels.noisy(clean, snr, seed=snr)
            sigma = scan_level(model, measured, table)
            stated = errors(model, measured, table, method, arguments.samples, level=LEVEL, sigma=sigma)
            for param, held in covered(stated, truth, scene.is_white).items():
                maps.setdefault(param, {})[f"snr_{snr}"] = held
        found[method] = {
            "maps": {param: together(by_snr) for param, by_snr in maps.items()},
            "processor_s": round(time.process_time() - started, 1),
        }
        for param, ratio in ratios(model, clean, table, method, arguments.samples).items():
            found[method]["maps"][param]["sd_ratio"] = ratio
    return found


def scan_level(model: SignalModel, measured: Tensor, table: GradientTable) -> Tensor:
    """One noise level for all voxels."""
    with torch.no_grad():
        sigma = noise_of(model, measured, table, model.fit(measured, table)).sigma
    return sigma.median().repeat(len(sigma), 1)


def covered(stated: Errors, truth: Readouts, is_white: Tensor) -> dict[str, Tensor]:
    """For each readout, which voxels' intervals hold the truth."""
    ends = stated.intervals(LEVEL)
    found = {}
    for param, value in truth.scalars.items():
        low, high = ends[param]
        slack = 1e-9 * value.abs().max()  # a bound that is the truth itself
        found[param] = ((value >= low - slack) & (value <= high + slack)).ravel()
    for param, axis in truth.axes.items():
        there = is_white & (axis.norm(dim=-1) > 0.5) & (stated.axes[param].norm(dim=-1) > 0.5)
        found[param] = (sphere.angle(stated.axes[param], axis) <= stated.cones[param][:, 0])[there]
    return found


def together(by_snr: dict[str, Tensor]) -> dict[str, Any]:
    everyone = torch.cat(list(by_snr.values())).double()
    shares = {snr: round(float(held.double().mean()), 3) for snr, held in by_snr.items()}
    return {"coverage_90": round(float(everyone.mean()), 3), "n": len(everyone), "coverage_90_at": shares}


def ratios(model: SignalModel, clean: Tensor, table: GradientTable, method: str, samples: int) -> dict[str, float]:
    """Stated over true standard deviation of the scalars at SNR 20, root mean squares over some voxels."""
    few = clean[:REPEATED_VOXELS]
    measured = voxels.noisy(few.repeat(REPEATS, 1), 20, seed=5)
    stated = errors(model, measured, table, method, samples, corrects=False)
    found = {}
    for param, values in stated.values.items():
        true = values.unflatten(0, (REPEATS, -1)).var(0)
        said = stated.deviations[param].unflatten(0, (REPEATS, -1)).square().mean(0)
        moved = true > 0
        found[param] = round(float((said[moved].sum() / true[moved].sum()).sqrt()), 3) if bool(moved.any()) else 1.0
    return found


if __name__ == "__main__":
    raise SystemExit(main())
