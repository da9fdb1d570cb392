"""Can this gradient table be used: enough directions, a b = 0, a scheme some model supports, a frame that is known?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tractode.errors import InputDataError
from tractode.fields import GradientTable, ImageGrid
from tractode.fields.scheme import clusters, scheme_of
from tractode.io.gradient_scheme import count_axes, describe, design_condition
from tractode.io.gradients import GradientPolicy
from tractode.io.notes import Note, info, warning
from tractode.ops.affine import axis_directions

# Well spread schemes stay below 3; a table of six directions in a narrow cone is far above.
_POOR_CONDITION, _UNUSABLE_CONDITION = 10.0, 100.0
_OBLIQUE_DEG, _FRAME_DEG = 2.0, 1.0


def check_scheme(gtab: GradientTable, policy: GradientPolicy, bval: Path, bvec: Path) -> list[Note]:
    """Refuse a table from which nothing can be modelled; describe any other."""
    weighted = ~gtab.is_b0
    if not bool(weighted.any()):
        raise InputDataError(
            f"all {len(gtab)} volumes are b=0",
            id="E-GRAD-NODWI",
            path=bval,
            needed="diffusion-weighted volumes",
            fix="leave this run out (--bids-filter-file), or correct the b-values",
        )
    groups = clusters(gtab.bvals[weighted].numpy())
    notes = [info("N-GRAD-SHELLS", f"{bval.name}: {describe(gtab)}")]
    if bool(weighted.all()):
        if not policy.estimate_s0 or len(groups) < 2:
            need = (
                "pass --estimate-s0 to extrapolate it from the shells"
                if len(groups) >= 2
                else "with one shell the unweighted signal cannot be estimated"
            )
            raise InputDataError(
                f"no volume has b=0 (least b-value {float(gtab.bvals.min()):g}, {len(groups)} shell{'s' if len(groups) > 1 else ''})",
                id="E-GRAD-NOB0",
                path=bval,
                needed="a b=0 volume",
                fix=f"add one to the series; {need}",
            )
        notes.append(
            warning(
                "W-GRAD-NOB0",
                f"{bval.name}: no b=0 volume; by --estimate-s0 the unweighted signal is extrapolated from {len(groups)} shells",
            )
        )
    notes += _check_directions(gtab.bvecs[weighted].numpy(), bvec)
    scheme = scheme_of(gtab)
    if scheme in ("grid", "scattered"):
        words = "a Cartesian grid in q-space (DSI)" if scheme == "grid" else f"scattered over {len(groups)} b-values"
        notes.append(
            warning("W-GRAD-SCHEME", f"{bval.name}: the table is {words}; models that need shells cannot be used")
        )
    return notes


def check_models(gtab: GradientTable, models: Sequence[str], registry: Mapping[str, Any], bval: Path) -> dict[str, str]:
    """Which of the named models cannot be fitted, and why; an error where none can.

    ``registry`` maps names to classes with ``why_not(gtab)``.
    """
    reasons = {name: registry[name].why_not(gtab) for name in models}
    refused: dict[str, str] = {name: reason for name, reason in reasons.items() if reason}
    if models and len(refused) == len(models):
        listed = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise InputDataError(
            f"none of the models can be fitted to {describe(gtab)} ({listed})",
            id="E-GRAD-MODELS",
            path=bval,
            needed="a table that one of the models supports",
            fix=f"choose with --models among {', '.join(registry)}",
        )
    return refused


def provenance_notes(metadata: Mapping[str, Any], grid: ImageGrid, bvec: Path) -> list[Note]:
    """What the sidecar says about the frame of the vectors: small frame errors show nowhere in the signal.

    Compares ``ImageOrientationPatientDICOM`` (LPS) with the image's own axes, and names the converter.
    """
    axes = axis_directions(grid.affine)
    notes: list[Note] = []
    oblique = float(torch.rad2deg(torch.arccos(axes.abs().max(dim=0).values.clamp(max=1))).max())
    software = " ".join(
        str(metadata[key]) for key in ("ConversionSoftware", "ConversionSoftwareVersion") if metadata.get(key)
    )
    if software:
        notes.append(info("N-GRAD-CONVERTER", f"{bvec.name}: written by {software}"))
    elif oblique > _OBLIQUE_DEG:
        notes.append(
            warning(
                "W-GRAD-CONVERTER",
                f"{bvec.name}: the image is oblique by {oblique:.1f}° and the sidecar does not say which program wrote the vectors; vectors in the scanner's frame instead of the image's would go unnoticed",
            )
        )
    acquired = np.asarray(metadata.get("ImageOrientationPatientDICOM") or [], dtype=float)
    if acquired.shape == (6,):
        row, column = acquired[:3] * [-1, -1, 1], acquired[3:] * [-1, -1, 1]
        scanned = np.stack([row, column, np.cross(row, column)])
        apart = _angle_between(scanned, axes.numpy().T)
        if apart > _FRAME_DEG:
            notes.append(
                warning(
                    "W-GRAD-FRAME",
                    f"{bvec.name}: the image's axes differ by {apart:.1f}° from those it was acquired with (ImageOrientationPatientDICOM): it was resampled or its header changed; vectors that were not turned with it are wrong by as much",
                )
            )
    return notes


def _angle_between(first: np.ndarray, second: np.ndarray) -> float:
    """Angle in degrees of the rotation between two frames (axes as rows), whatever the order and signs of their axes."""
    cosines = first @ second.T
    matched = np.zeros((3, 3))
    for row, column in enumerate(np.abs(cosines).argmax(axis=1)):
        matched[row] = second[column] * np.sign(cosines[row, column])
    return float(np.degrees(np.arccos(np.clip((np.einsum("ij,ij", first, matched) - 1) / 2, -1, 1))))


def _check_directions(directions: np.ndarray, bvec: Path) -> list[Note]:
    """Six unknowns need six axes that do not lie in a plane or a cone."""
    n_axes, condition = count_axes(directions), design_condition(directions)
    if condition > _UNUSABLE_CONDITION:
        told = "infinite" if np.isinf(condition) else f"{condition:.0f}"
        raise InputDataError(
            f"the weighted volumes have {n_axes} different direction{'s' if n_axes != 1 else ''}, and the condition number of the tensor's design is {told}",
            id="E-GRAD-DIRECTIONS",
            path=bvec,
            needed="at least 6 directions, not in one plane",
            fix="acquire more directions, or join the runs of the scan",
        )
    if condition > _POOR_CONDITION:
        return [
            warning(
                "W-GRAD-CONDITION",
                f"{bvec.name}: the {n_axes} directions are badly spread (condition number {condition:.0f}); tensors will be noisy",
            )
        ]
    return []
