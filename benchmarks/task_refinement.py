"""Orientation-field refinement against CSD alone, at equal invalid rate, over noise seeds. One JSON object.

Phantoms of crossing, kissing and bottleneck bundles. Both fields are tracked by SD_STREAM from the same seeds with several
amplitude cutoffs. The invalid rate (IC of the 2023 Tractometer) that CSD has at the default cutoff of 0.1 is the limit;
each method is taken at its cutoff with the highest valid rate (VC) that keeps to it; and once more at its cutoff with the
highest valid rate among those that keep to CSD's overreach (OR) too. The true orientations are scored beside them: lines
that follow them overreach as well, into voxels that a bundle fills in part. ``--subject-snr`` adds one whole simulated
subject (3 mm, 60 directions, one realisation of the noise each). ``--output`` saves the result.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accuracy_scenes import Scene, subject_scenes
from measure import meta
from torch import Tensor

from tractode.evaluate.connections import BundleRegions
from tractode.evaluate.tractometer import tractometry
from tractode.fields import Image, ShField, Streamlines
from tractode.io.dwi import read_dwi
from tractode.models.csd import CSD
from tractode.models.response import estimate_response
from tractode.ops import smooth
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import Phantom, PhantomSettings, phantom
from tractode.tracking.refinement import RefinementSettings, refine
from tractode.tracking.sdstream import SDStream
from tractode.tracking.seeds import seeds_in_mask

VOXEL, SIZE = 3.0, 20
SUBJECT_SEEDS = 10_000
CUTOFFS = (0.1, 0.2, 0.3, 0.4)
DEFAULT = 0.1
SUBJECT_CUTOFFS = (0.1, 0.2, 0.3)
KEYS = ("VC", "IC", "NC", "OL", "OR", "F1")


def one(seed: int, snr: float, settings: RefinementSettings) -> dict[str, Any]:
    """Scores of both methods by cutoff, for one realisation of the noise."""
    gtab = multi_shell(((2500.0, 45),), 4)
    truth = phantom(gtab, PhantomSettings(size=SIZE, voxel_mm=VOXEL, snr=snr), seed)
    white = truth.white_matter.mask
    mask = smooth.dilate(white, (1, 1, 1)) & truth.dwi.mask
    shell = CSD.shell(gtab)
    assert shell is not None
    model = CSD(estimate_response(truth.dwi.signal[:, white].mT, gtab, shell))
    signal = truth.dwi.signal[:, mask].mT
    fitted = model.fit(signal, gtab)
    started = time.monotonic()
    refined = refine(model, fitted, signal, gtab, truth.dwi.grid, mask, settings)
    seconds = time.monotonic() - started
    exact = truth.fibres.fod.coeffs[:, mask].mT
    return {
        "csd": {c: scores(truth, mask, fitted, c) for c in CUTOFFS},
        "refined": {c: scores(truth, mask, refined.params, c) for c in CUTOFFS},
        "truth": {DEFAULT: scores(truth, mask, exact, DEFAULT)},
        "seconds": seconds,
    }


def scores(truth: Phantom, mask: Tensor, params: Tensor, cutoff: float) -> dict[str, float]:
    """The Tractometer's shares for lines from four places in every voxel of white matter."""
    grid = truth.dwi.grid
    coeffs = torch.zeros(45, *grid.shape)
    coeffs[:, mask] = params.mT.float()
    places = truth.white_matter.mask.nonzero().float()
    corners = torch.tensor([[-0.25, -0.25, 0.25], [0.25, 0.25, 0.25], [-0.25, 0.25, -0.25], [0.25, -0.25, -0.25]])
    seeds = grid.to_world((places[:, None] + corners).reshape(-1, 3))
    tracker = SDStream(step_mm=1.0, angle=math.radians(30), cutoff=cutoff, min_length=20.0, max_length=150.0)
    lines = Streamlines.concatenate(
        tracker.track(ShField(grid, coeffs, 8), seeds, Image(grid, mask[None]), torch.Generator().manual_seed(0)),
        grid.space,
    )
    regions = {name: BundleRegions(grid, b.mask, b.start, b.end) for name, b in truth.bundles.items()}
    record = tractometry(lines, regions).record()
    return {"lines": record["n"], **{key: record[key] or 0.0 for key in KEYS}}


def subject(scene: Scene, settings: RefinementSettings) -> dict[str, Any]:
    """Scores of both methods by cutoff on a whole subject, of lines from the same random places in white matter."""
    stem = scene.folder / "dwi"
    scan, _ = read_dwi(stem.with_suffix(".nii.gz"), stem.with_suffix(".bval"), stem.with_suffix(".bvec"), "sub-01_dwi")
    mask, grid = scene.mask.mask, scene.mask.grid
    model = CSD.for_data(scan.signal[:, scene.seeds.mask].mT, scan.gtab)
    fitted = scene.fod.coeffs[:, mask].mT
    started = time.process_time()
    refined = refine(model, fitted, scan.signal[:, mask].mT, scan.gtab, grid, mask, settings)
    seconds = time.process_time() - started
    seeds = seeds_in_mask(scene.seeds, SUBJECT_SEEDS, torch.Generator().manual_seed(0))

    def scored(params: Tensor, cutoff: float) -> dict[str, float]:
        coeffs = torch.zeros(params.shape[1], *grid.shape)
        coeffs[:, mask] = params.mT.float()
        low, high = scene.lengths
        tracker = SDStream(step_mm=1.0, angle=math.radians(30), cutoff=cutoff, min_length=low, max_length=high)
        field = ShField(grid, coeffs, scene.fod.order)
        lines = Streamlines.concatenate(
            tracker.track(field, seeds, scene.mask, torch.Generator().manual_seed(0)), grid.space
        )
        record = tractometry(lines, scene.bundles, scene.criteria).record()
        return {"lines": record["n"], **{key: record[key] or 0.0 for key in KEYS}}

    runs = {
        "csd": {c: scored(fitted, c) for c in SUBJECT_CUTOFFS},
        "refined": {c: scored(refined.params, c) for c in SUBJECT_CUTOFFS},
    }
    found: dict[str, Any] = {"n": 1, "seeds": SUBJECT_SEEDS, "voxels": int(mask.sum()), "refine_cpu_seconds": seconds}
    for where, keys in (("equal_invalid", ("IC",)), ("equal_invalid_and_overreach", ("IC", "OR"))):
        found |= {f"{method}_at_{where}": rounded(s) for method, s in at_limits(runs, keys).items()}
    return found | {f"{method}_at_default_cutoff": rounded(runs[method][DEFAULT]) for method in runs}


def rounded(scores_of: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in scores_of.items()}


def at_limits(runs: dict[str, Any], keys: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Each method at its cutoff with most valid lines that keeps to what CSD has of ``keys`` at the default cutoff.

    Where none does, at the cutoff with the least of the last key.
    """
    limits = {key: runs["csd"][DEFAULT][key] for key in keys}
    best = {}
    for method in ("csd", "refined"):
        found = runs[method]
        allowed = [c for c, s in found.items() if all(s[key] <= limits[key] for key in keys)]
        cutoff = max(allowed, key=lambda c: found[c]["VC"]) if allowed else min(found, key=lambda c: found[c][keys[-1]])
        best[method] = {"cutoff": cutoff, **found[cutoff]}
    return best


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard errors over seeds, and of the paired gains."""
    compared = {
        "equal_invalid": [at_limits(runs, ("IC",)) for runs in found],
        "equal_invalid_and_overreach": [at_limits(runs, ("IC", "OR")) for runs in found],
    }
    out: dict[str, Any] = {"n": len(found)}
    for method in ("csd", "refined"):
        for where, equal in compared.items():
            out[f"{method}_at_{where}"] = {
                key: _mean([e[method][key] for e in equal]) for key in ("cutoff", "lines", *KEYS)
            }
        out[f"{method}_at_default_cutoff"] = {
            key: _mean([f[method][DEFAULT][key] for f in found]) for key in ("lines", *KEYS)
        }
    out["true_orientations"] = {key: _mean([f["truth"][DEFAULT][key] for f in found]) for key in KEYS}
    for where, pairs in {
        **{f"gain_at_{where}": [(e["csd"], e["refined"]) for e in equal] for where, equal in compared.items()},
        "gain_at_default_cutoff": [(f["csd"][DEFAULT], f["refined"][DEFAULT]) for f in found],
    }.items():
        out[where] = {}
        for key in ("VC", "IC", "OL", "OR", "F1"):
            gains = [after[key] - before[key] for before, after in pairs]
            error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
            out[where][key] = {"mean": _mean(gains), "standard_error": error, "least": min(gains), "n": len(gains)}
    out["seconds_to_refine"] = _mean([f["seconds"] for f in found])
    return out


def _mean(values: list[float]) -> float:
    return round(statistics.fmean(values), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--snr", type=float, nargs="*", default=[30.0, 15.0, 8.0, 5.0])
    parser.add_argument("--subject-snr", type=float, nargs="*", default=[15.0, 8.0])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = RefinementSettings()
    found = {
        f"snr_{snr:g}": summary([one(s, snr, settings) for s in range(100, 100 + options.seeds)]) for snr in options.snr
    }
    data = f"phantoms of {VOXEL:g} mm, 45 directions at b = 2500 s/mm², {options.seeds} noise seeds"
    result: dict[str, Any] = {
        "refinement": {"n": options.seeds, "data": data, "continuity": settings.continuity, **found}
    }
    if options.subject_snr:
        with tempfile.TemporaryDirectory() as folder:
            scenes = subject_scenes(3.0, tuple(options.subject_snr), Path(folder))
            result["refinement"]["whole_subject"] = {scene.name: subject(scene, settings) for scene in scenes}
    levels, whole = (" ".join(f"{s:g}" for s in values) for values in (options.snr, options.subject_snr))
    command = f"benchmarks/task_refinement.py --seeds {options.seeds} --snr {levels} --subject-snr {whole}"
    text = json.dumps(result | {"meta": meta(command)}, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
