"""Scores of what says where things are: warps to the template, ways between scans and between sessions, fields in Hz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.bids.names import parse
from tractode.errors import MissingInputError
from tractode.evaluate.truth import field_error, map_error, warp_error
from tractode.fields import Affine, Transform
from tractode.io.builtin_template import SPACE, load_builtin
from tractode.io.transforms import read_itk
from tractode.workflows.score_files import maybe, one, stem, stored_image

Record = dict[str, Any]
_MEASURED = ("phasediff", "phases", "fieldmap")  # fields in the frame of a field map, not of the dwi


def warp(output: Path, truth: Path, unit: str) -> Record:
    """End-point error of the way between the anatomy and the template."""
    # The file named from-A_to-B resamples images of A on B: it maps points of B to points of A.
    # Without an anatomical image the dwi was registered itself; the truth says how the head lay in each.
    named = [name for name in ("T1w", "T2w") if maybe(output, unit, "xfm", ".h5", from_=SPACE, to=name)]
    space = named[0] if named else "dwi"
    back = one(output, unit, "xfm", ".h5", from_=SPACE, to=space)
    estimate = read_itk(back, source="scanner", target=SPACE)
    true_inverse = read_itk(one(truth, unit, "xfm", ".h5", from_="T1w", to=SPACE), source=SPACE, target="T1w")
    points = load_builtin("mask", 4.0)
    to_scan = _pose(truth, unit, space).inverse()
    onwards = Affine(torch.eye(4, dtype=torch.float64), to_scan.target, "scanner")
    inside = points.grid.centres(torch.float64)[points.mask]
    errors = warp_error(estimate, true_inverse.then(to_scan).then(onwards), inside)
    return {"warp_epe_mm": errors["mean"], "warp": {"where": f"brain of {SPACE}", "file": back.name, **errors}}


def pose(output: Path, truth: Path, unit: str) -> Record:
    """How far the estimated way from the dwi to the anatomy carries the brain's points from where it should."""
    found = maybe(output, unit, "xfm", ".h5", from_="T1w", to="dwi") or [
        one(output, unit, "xfm", ".h5", from_="T2w", to="dwi")
    ]
    parsed = parse(found[0])
    anat = parsed[0]["from"] if parsed else "T1w"
    true = _pose(truth, unit, "dwi").then(_pose(truth, unit, anat).inverse())
    points = _brain(truth, unit, "dwi")
    runs = {path.name: map_error(read_itk(path, true.source, true.target), true, points) for path in found}
    return {"pose_error_mm": _mean(runs), "pose": {"where": "brain in the dwi", "n": len(points), "files": runs}}


def sessions(output: Path, truth: Path, unit: str) -> Record:
    """How far the way by the participant's own template carries this session's brain from where it was in the first.

    The template's name is whatever all sessions' T1w have a transform to, other than the dwi and the standard template.
    """
    label, session = unit.split("/") if "/" in unit else (unit, "ses-01")
    this = session.removeprefix("ses-")
    if this == "01":
        return {}
    whole = one(truth, label, "xfm", ".h5", from_="ses01", to=f"ses{this}")
    first = f"{label}/ses-01"
    middle, to_middle = _own_template(output, unit)
    from_middle = one(output, first, "xfm", ".h5", from_="T1w", to=middle)
    true = read_itk(whole, f"ses-{this}", "ses-01")
    there = read_itk(to_middle, f"ses-{this}", middle).then(read_itk(from_middle, middle, "ses-01"))
    points = _brain(truth, unit, "anat")
    errors = map_error(there, true, points)
    files = [to_middle.name, from_middle.name]
    record = {"where": f"brain of ses-{this}, carried to ses-01", "files": files, **errors}
    return {"session_error_mm": errors["mean"], "session": record}


def field(output: Path, truth: Path, unit: str) -> Record:
    """Estimated fields (Hz) less the true one, over the brain on the grid of the dwi."""
    true = stored_image(
        next(path for path in _needed(truth, unit, "fieldmap", desc="truth") if "_dir-" not in path.name), unit
    )
    mask = stored_image(one(truth, unit, "mask", ".nii.gz", desc="brain", datatype="dwi"), unit).mask
    points = true.grid.centres(torch.float64)
    runs = {}
    for path in _needed(output, unit, "fieldmap"):
        parsed = parse(path)
        kind = parsed[0].get("desc", "") if parsed else ""
        at = points
        if kind in _MEASURED:
            # Where the head lay when that field was mapped.
            at = _pose(truth, unit, "dwi").then(_pose(truth, unit, "fmap").inverse()).map(points)
        estimate = stored_image(path, unit)
        values = estimate.sample(at.to(estimate.values.dtype), outside="nearest")[..., 0]
        runs[path.name] = field_error(values, true.values[0], mask)
    means = {key: sum(run[key] for run in runs.values()) / len(runs) for key in ("median", "p95")}
    return {
        "field_error_median_hz": means["median"],
        "field_error_p95_hz": means["p95"],
        "field": {"where": "brain, where things really are", "n": int(mask.sum()), "files": runs},
    }


def _pose(truth: Path, unit: str, scan: str) -> Transform:
    """The scan's points → the T1w's; the identity where the head did not move."""
    # from-T1w_to-scan resamples the T1w on the scan: it maps points of the scan.
    found = maybe(truth, unit, "xfm", ".h5", from_="T1w", to=scan) if scan != "T1w" else []
    if not found:
        return Affine(torch.eye(4, dtype=torch.float64), scan, "T1w")
    return read_itk(found[0], scan, "T1w")


def _own_template(output: Path, unit: str) -> tuple[str, Path]:
    """Name of the participant's own template, and the transform of this session's points to it."""
    for path in maybe(output, unit, "xfm", ".h5", datatype="anat", to="T1w"):
        parsed = parse(path)
        name = parsed[0].get("from", "") if parsed else ""
        if name not in ("dwi", "T2w", "FLAIR") and not name.startswith("MNI"):
            return name, path
    raise MissingInputError(
        f"No way from sub-{stem(unit)} to a template of its participant",
        id="E-SCORE-MISSING",
        path=output,
        needed="ses-*/anat/*_from-<template>_to-T1w_mode-image_xfm.h5 of a run over several sessions",
    )


def _needed(folder: Path, unit: str, suffix: str, **entities: str) -> list[Path]:
    found = maybe(folder, unit, suffix, ".nii.gz", **entities)
    return found or [one(folder, unit, suffix, ".nii.gz", **entities)]


def _brain(truth: Path, unit: str, datatype: str) -> Float[Tensor, "p 3"]:
    """At most some ten thousand points of the brain."""
    image = stored_image(one(truth, unit, "mask", ".nii.gz", desc="brain", datatype=datatype), unit)
    points = image.grid.centres(torch.float64)[image.mask]
    return points[:: max(1, len(points) // 10_000)]


def _mean(runs: dict[str, dict[str, float | int]]) -> float:
    return sum(run["mean"] for run in runs.values()) / len(runs)
