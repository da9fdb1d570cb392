"""Scores the derivatives of a simulated dataset against its truth, as plain data for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tractode.errors import InputDataError, MissingInputError
from tractode.evaluate.connections import BundleRegions
from tractode.evaluate.tractometer import tractometry
from tractode.evaluate.truth import direction_error, scalar_error
from tractode.io.tractogram import read_tractogram
from tractode.workflows import score_geometry
from tractode.workflows.score_files import one, stem, stored_image, units

Record = dict[str, Any]
KINDS = ("dti", "tractogram", "warp", "pose", "sessions", "field")
_ALWAYS = (
    "dti",
    "tractogram",
    "warp",
)  # what every dataset has; the others are left out of ``all`` where there is nothing
_TRACTOMETER = {
    "valid_rate": "VC",
    "invalid_rate": "IC",
    "no_connection_rate": "NC",
    "valid_bundles": "VB",
    "invalid_bundles": "IB",
    "overlap": "OL",
    "overreach": "OR",
    "overreach_of_truth": "ORn",
    "f1": "F1",
}


def score(kind: str, output: Path, truth: Path, participants: Sequence[str] = ()) -> Record:
    """``kind`` is one of `KINDS` or ``all``. Headline numbers are means over participants and sessions, each with its ``n``.

    Returns ``{"n_participants", headline numbers…, "n": {number: …}, "participants": {label: details}}``.
    """
    asked = units(truth, participants)
    found: dict[str, Record] = {}
    for unit in asked:
        found[stem(unit)] = _everything(output, truth, unit) if kind == "all" else _SCORERS[kind](output, truth, unit)
    headline, counts = _headline(found)
    n = len({unit.partition("/")[0] for unit in asked})
    return {"n_participants": n, **headline, "n": counts, "participants": found}


def _everything(output: Path, truth: Path, unit: str) -> Record:
    record: Record = {}
    for kind in KINDS:
        try:
            record.update(_SCORERS[kind](output, truth, unit))
        except MissingInputError:
            if kind in _ALWAYS:
                raise
    return record


def _headline(found: dict[str, Record]) -> tuple[Record, Record]:
    """Means over participants of the numbers that the benchmarks quote, and how many voxels, streamlines, points they rest on."""
    names = {"fa_bias": "fa", "fa_mae": "fa", "v1_error_deg": "v1", **dict.fromkeys(_TRACTOMETER, "tractogram")}
    names |= {"warp_epe_mm": "warp", "pose_error_mm": "pose", "session_error_mm": "session"}
    names |= {"field_error_median_hz": "field", "field_error_p95_hz": "field"}
    means: Record = {}
    counts: Record = {}
    for name, group in names.items():
        values = [record[name] for record in found.values() if record.get(name) is not None]
        if values:
            means[name] = sum(values) / len(values)
            counts[name] = sum(record[group]["n"] for record in found.values() if group in record)
    return means, counts


def _dti(output: Path, truth: Path, unit: str) -> Record:
    fa = stored_image(one(output, unit, "dwimap", ".nii.gz", model="tensor", param="fa"), unit)
    direction = stored_image(one(output, unit, "dwimap", ".nii.gz", model="tensor", param="direction"), unit)
    true_fa, true_direction = (
        stored_image(one(truth, unit, "dwimap", ".nii.gz", model="tensor", param=param), unit)
        for param in ("fa", "direction")
    )
    white = stored_image(one(truth, unit, "probseg", ".nii.gz", label="WM"), unit)
    brain = stored_image(one(truth, unit, "mask", ".nii.gz", desc="brain", datatype="dwi"), unit)
    single = stored_image(one(truth, unit, "mask", ".nii.gz", desc="singlefibre"), unit)
    for image in (fa, direction):
        if not image.grid.matches(true_fa.grid, 0.05):
            raise InputDataError(
                f"The maps of sub-{stem(unit)} are on another grid than the truth ({image.grid.shape}, truth {true_fa.grid.shape})",
                id="E-SCORE-GRID",
                needed="maps on the grid of the raw dwi",
            )
    modelled = (fa.values[0] != 0) & brain.mask
    in_white = modelled & (white.values[0] > 0.5)
    errors = scalar_error(fa.values[0], true_fa.values[0], in_white)
    angles = direction_error(direction.values, true_direction.values, single.mask & modelled)
    whole = scalar_error(fa.values[0], true_fa.values[0], modelled)
    return {
        "fa_bias": errors["bias"],
        "fa_mae": errors["mae"],
        "v1_error_deg": angles["mean"],
        "fa": {"where": "white matter (fraction above 0.5)", "n": errors["n"], "whole_brain": whole},
        "v1": {"where": "single-fibre voxels", **angles},
    }


def _tractogram(output: Path, truth: Path, unit: str) -> Record:
    streamlines, _ = read_tractogram(one(output, unit, "tractogram", ".trx"), f"sub-{stem(unit)}_dwi")
    record = tractometry(streamlines, true_bundles(truth, unit)).record()
    counts = {name: score["n"] for name, score in record["per_bundle"].items()}
    return {
        **{name: record[key] for name, key in _TRACTOMETER.items()},
        "tractogram": {
            "n_valid": sum(counts.values()),
            "bundles_found": record["VB"],
            "valid_per_bundle": counts,
            **record,
        },
    }


def true_bundles(truth: Path, unit: str) -> dict[str, BundleRegions]:
    """Masks, end regions and lengths of the bundles of a participant (or session, ``01/ses-02``); ``truth`` is derivatives/truth of a simulated dataset."""
    bundles = {}
    for path in sorted((truth / f"sub-{unit}" / "dwi").glob(f"sub-{stem(unit)}_tract-*_desc-bundle_mask.nii.gz")):
        name = path.name.split("_tract-")[1].split("_")[0]
        mask, start, end = (
            stored_image(path.with_name(path.name.replace("desc-bundle", f"desc-{desc}")), unit)
            for desc in ("bundle", "start", "end")
        )
        lines, _ = read_tractogram(path.with_name(f"sub-{stem(unit)}_tract-{name}_tractogram.trx"), mask.grid.space)
        lengths = lines.lengths()
        span = (float(lengths.min()), float(lengths.max())) if len(lines) else None
        bundles[name] = BundleRegions(mask.grid, mask.mask, start.mask, end.mask, span)
    if not bundles:
        raise MissingInputError(f"The truth of sub-{stem(unit)} has no bundles", id="E-SCORE-BUNDLES", path=truth)
    return bundles


_SCORERS: dict[str, Callable[[Path, Path, str], Record]] = {
    "dti": _dti,
    "tractogram": _tractogram,
    "warp": score_geometry.warp,
    "pose": score_geometry.pose,
    "sessions": score_geometry.sessions,
    "field": score_geometry.field,
}
