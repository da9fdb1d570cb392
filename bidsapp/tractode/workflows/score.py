"""Scores the derivatives of a simulated dataset against its truth, as plain data for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tractode.bids.names import parse
from tractode.errors import InputDataError, MissingInputError, NoMatchError
from tractode.evaluate.connections import BundleRegions
from tractode.evaluate.tractometer import tractometry
from tractode.evaluate.truth import direction_error, scalar_error, warp_error
from tractode.fields import Image
from tractode.io.builtin_template import SPACE, load_builtin
from tractode.io.nifti import read_image
from tractode.io.tractogram import read_tractogram
from tractode.io.transforms import read_itk

Record = dict[str, Any]
KINDS = ("dti", "tractogram", "warp")
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
    """``kind`` is one of `KINDS` or ``all``. Headline numbers are means over participants, each with its ``n``.

    Returns ``{"n_participants", headline numbers…, "n": {number: …}, "participants": {label: details}}``.
    """
    kinds = KINDS if kind == "all" else (kind,)
    labels = _participants(truth, participants)
    found: dict[str, Record] = {}
    for label in labels:
        found[label] = {}
        for one in kinds:
            found[label].update(_SCORERS[one](output, truth, label))
    headline, counts = _headline(found)
    return {"n_participants": len(labels), **headline, "n": counts, "participants": found}


def _participants(truth: Path, asked: Sequence[str]) -> list[str]:
    known = sorted(path.name.removeprefix("sub-") for path in truth.glob("sub-*") if path.is_dir())
    if not known:
        raise NoMatchError(
            "This folder holds no truth",
            id="E-SCORE-TRUTH",
            path=truth,
            needed="derivatives/truth of a dataset made by tractode-simulate",
        )
    labels = [label.removeprefix("sub-") for label in asked] or known
    missing = [label for label in labels if label not in known]
    if missing:
        raise NoMatchError(
            f"No truth for {', '.join(missing)}", id="E-SCORE-LABEL", path=truth, needed=f"some of {', '.join(known)}"
        )
    return labels


def _headline(found: dict[str, Record]) -> tuple[Record, Record]:
    """Means over participants of the numbers that the benchmarks quote, and how many voxels, streamlines, points they rest on."""
    names = {"fa_bias": "fa", "fa_mae": "fa", "v1_error_deg": "v1", **dict.fromkeys(_TRACTOMETER, "tractogram")}
    names["warp_epe_mm"] = "warp"
    means: Record = {}
    counts: Record = {}
    for name, group in names.items():
        values = [record[name] for record in found.values() if record.get(name) is not None]
        if values:
            means[name] = sum(values) / len(values)
            counts[name] = sum(record[group]["n"] for record in found.values() if group in record)
    return means, counts


def _dti(output: Path, truth: Path, label: str) -> Record:
    fa = _image(_one(output, label, "dwimap", ".nii.gz", model="tensor", param="fa"), label)
    direction = _image(_one(output, label, "dwimap", ".nii.gz", model="tensor", param="direction"), label)
    true_fa, true_direction = (
        _image(_one(truth, label, "dwimap", ".nii.gz", model="tensor", param=param), label)
        for param in ("fa", "direction")
    )
    white = _image(_one(truth, label, "probseg", ".nii.gz", label="WM"), label)
    brain = _image(_one(truth, label, "mask", ".nii.gz", desc="brain", datatype="dwi"), label)
    single = _image(_one(truth, label, "mask", ".nii.gz", desc="singlefibre"), label)
    for image in (fa, direction):
        if not image.grid.matches(true_fa.grid, 0.05):
            raise InputDataError(
                f"The maps of sub-{label} are on another grid than the truth ({image.grid.shape}, truth {true_fa.grid.shape})",
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


def _tractogram(output: Path, truth: Path, label: str) -> Record:
    streamlines, _ = read_tractogram(_one(output, label, "tractogram", ".trx"), f"sub-{label}_dwi")
    record = tractometry(streamlines, true_bundles(truth, label)).record()
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


def true_bundles(truth: Path, label: str) -> dict[str, BundleRegions]:
    """Masks, end regions and lengths of a participant's bundles; ``truth`` is derivatives/truth of a simulated dataset."""
    bundles = {}
    for path in sorted((truth / f"sub-{label}" / "dwi").glob(f"sub-{label}_tract-*_desc-bundle_mask.nii.gz")):
        name = path.name.split("_tract-")[1].split("_")[0]
        mask, start, end = (
            _image(path.with_name(path.name.replace("desc-bundle", f"desc-{desc}")), label)
            for desc in ("bundle", "start", "end")
        )
        lines, _ = read_tractogram(path.with_name(f"sub-{label}_tract-{name}_tractogram.trx"), mask.grid.space)
        lengths = lines.lengths()
        span = (float(lengths.min()), float(lengths.max())) if len(lines) else None
        bundles[name] = BundleRegions(mask.grid, mask.mask, start.mask, end.mask, span)
    if not bundles:
        raise MissingInputError(f"The truth of sub-{label} has no bundles", id="E-SCORE-BUNDLES", path=truth)
    return bundles


def _warp(output: Path, truth: Path, label: str) -> Record:
    # The file named from-A_to-B resamples images of A on B: it maps points of B to points of A.
    back = _one(output, label, "xfm", ".h5", from_=SPACE, to="T1w", optional=True)
    # Without a T1w the dwi was registered itself; the simulator gives both the same scanner space.
    back = back or _one(output, label, "xfm", ".h5", from_=SPACE, to="dwi")
    estimate = read_itk(back, source="scanner", target=SPACE)
    true_inverse = read_itk(_one(truth, label, "xfm", ".h5", from_="T1w", to=SPACE), source=SPACE, target="scanner")
    mask = load_builtin("mask", 4.0)
    points = mask.grid.centres(torch.float64)[mask.mask]
    errors = warp_error(estimate, true_inverse, points)
    return {"warp_epe_mm": errors["mean"], "warp": {"where": f"brain of {SPACE}", "file": back.name, **errors}}


_SCORERS: dict[str, Callable[[Path, Path, str], Record]] = {"dti": _dti, "tractogram": _tractogram, "warp": _warp}


def _image(path: Path, label: str) -> Image:
    return read_image(path, f"sub-{label}_dwi")[0]


def _one(
    folder: Path,
    participant: str,
    suffix: str,
    extension: str,
    *,
    optional: bool = False,
    datatype: str = "*",
    **entities: str,
) -> Any:
    """The one file with these entities that is in the participant's own space and belongs to no single bundle."""
    wanted = {key.removesuffix("_"): value for key, value in entities.items()}
    found = []
    for path in sorted((folder / f"sub-{participant}").glob(f"**/{datatype}/*_{suffix}{extension}")):
        parsed = parse(path)
        if parsed is None or parsed[1:] != (suffix, extension):
            continue
        has = parsed[0]
        if all(has.get(key) == value for key, value in wanted.items()) and not {"space", "tract"} & (
            set(has) - set(wanted)
        ):
            found.append(path)
    what = " ".join([*(f"{key}-{value}" for key, value in wanted.items()), suffix + extension])
    if not found and optional:
        return None
    if not found:
        raise MissingInputError(
            f"No {what} for sub-{participant}",
            id="E-SCORE-MISSING",
            path=folder,
            needed="the outputs of tractode for this participant, and the truth of tractode-simulate",
        )
    if len(found) > 1:
        raise InputDataError(
            f"Several {what} for sub-{participant}: {', '.join(path.name for path in found)}",
            id="E-SCORE-SEVERAL",
            path=folder,
            needed="one run a participant",
        )
    return found[0]
