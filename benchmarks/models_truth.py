"""Maps of every model on voxels with a known truth, and crossing fibres, beside DIPY's and MRtrix3's.

    python benchmarks/models_truth.py [--voxels 500] [--models dti …] [--crossings csd …] [--output FILE]

``maps``: for each model, method and SNR the bias and the standard deviation of each map against what the same method reads
from the signal without noise (``bias``, ``sd``), in the map's own units; where the truth is known by formula (tissue
fractions, free water) also ``bias_of_truth``. ``crossings``: see `models_crossings.py`; fibres of κ = 40, equal shares.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import models_crossings as crossings
import models_peers as peers
import models_voxels as voxels
import torch
from torch import Tensor

from tractode.fields import GradientTable
from tractode.models import MODELS

TABLE_OF = {
    "dti": "b1000",
    "csd": "b3000",
    "csa": "b3000",
    "qball": "b3000",
    "fwdti": "low",
    "dki": "mid",
    "wmti": "mid",
    "msdki": "mid",
}

Fit = Callable[[Tensor], dict[str, Tensor]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--crossings", nargs="*", default=list(crossings.TABLE_OF))
    parser.add_argument("--voxels", type=int, default=500)
    parser.add_argument("--crossing-voxels", type=int, default=200)
    parser.add_argument("--snrs", type=int, nargs="*", default=list(voxels.SNRS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    command = (
        f"python benchmarks/models_truth.py --voxels {arguments.voxels} --crossing-voxels {arguments.crossing_voxels}"
    )
    document: dict[str, Any] = {"meta": measure.meta(command), "maps": {}, "crossings": {}}
    for name in arguments.models:
        document["maps"][name] = of_model(name, arguments.voxels, arguments.snrs)
        told(name, document["maps"][name], document, arguments.output)
    for name in arguments.crossings:
        document["crossings"][name] = crossings.measured(name, arguments.crossing_voxels, tuple(arguments.snrs))
        told(name, document["crossings"][name], document, arguments.output)
    print(json.dumps(document, indent=1))
    return 0


def told(name: str, entry: dict[str, Any], document: dict[str, Any], output: Path | None) -> None:
    """What there is so far, said and saved."""
    print(name, json.dumps(entry), file=sys.stderr, flush=True)
    if output:
        output.write_text(json.dumps(document, indent=1) + "\n")


def of_model(name: str, n: int, snrs: list[int]) -> dict[str, Any]:
    which = TABLE_OF.get(name, "multi")
    gtab, scene = voxels.table(voxels.TABLES[which]), voxels.mixed(n, seed=2)
    clean, known = scene.signal(gtab), formulas(name, scene)
    found: dict[str, Any] = {"table": which}
    for method, fit in methods(name, gtab).items():
        started, truth, table = time.perf_counter(), fit(clean), {}
        for snr in snrs:
            read = fit(voxels.noisy(clean, snr, seed=snr))
            table[f"snr_{snr}"] = {
                param: compared(values, truth[param], known.get(param)) for param, values in read.items()
            }
        found[method] = table | {"seconds": round(time.perf_counter() - started, 1)}
    return found


def compared(values: Tensor, truth: Tensor, known: Tensor | None) -> dict[str, Any]:
    off = (values - truth).double().ravel()
    finite = off.isfinite()
    entry = {"bias": figure(off[finite].mean()), "sd": figure(off[finite].std()), "n": int(finite.sum())}
    if not bool(finite.all()):
        entry["not_finite"] = int((~finite).sum())
    if known is not None:
        entry["bias_of_truth"] = figure((values.double().ravel() - known.ravel()).nanmean())
    return entry


def figure(value: Tensor) -> float:
    return float(f"{float(value):.4g}")


def formulas(name: str, scene: voxels.Voxels) -> dict[str, Tensor]:
    """Maps whose truth the scene states: shares of tissue, as shares of the b=0 signal for free water."""
    grey, white, csf = scene.tissues.unbind(-1)
    if name == "msmt_csd":
        return {"wmvf": white, "gmvf": grey, "csfvf": csf}
    if name in ("fwdti", "noddi"):
        total = 1.35 * grey + white + 3.2 * csf
        return {"fwf": 3.2 * csf / total, "isovf": 3.2 * csf / total}
    return {}


def methods(name: str, gtab: GradientTable) -> dict[str, Fit]:
    bvals = tuple(b for b, _ in gtab.shells())
    responses = peers.tissue_responses(bvals)
    given = [responses["wm"]] if name == "csd" else list(responses.values())
    model = MODELS[name].with_responses(given, gtab) if name in ("csd", "msmt_csd") else MODELS[name]()
    scalars = [spec.param for spec in model.maps if spec.components == "scalar"]

    def ours(signal: Tensor) -> dict[str, Tensor]:
        maps = model.to_maps(model.fit(signal, gtab))
        return {param: maps[param] for param in scalars}

    def afd(fod: Tensor) -> dict[str, Tensor]:
        return {"afd": fod[:, :1] * (4 * torch.pi) ** 0.5}

    found: dict[str, Fit] = {"tractode": ours}
    if name == "dti":
        found |= {"dipy": lambda s: peers.dipy_tensor(s, gtab), "mrtrix3": lambda s: peers.mrtrix_tensor(s, gtab)}
    elif name == "dki":
        found |= {"dipy": lambda s: peers.dipy_kurtosis(s, gtab)}
    elif name == "msdki":
        found |= {"dipy": lambda s: peers.dipy_mean_signal_kurtosis(s, gtab)}
    elif name == "fwdti":
        found |= {"dipy": lambda s: peers.dipy_free_water(s, gtab)}
    elif name == "csd":
        found |= {"mrtrix3": lambda s: afd(peers.mrtrix_csd(s, gtab, responses))}
    elif name == "msmt_csd":
        found |= {"mrtrix3": lambda s: shares(peers.mrtrix_msmt(s, gtab, responses))}
    return found


def shares(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return {param: values for param, values in maps.items() if param.endswith("vf")}


if __name__ == "__main__":
    raise SystemExit(main())
