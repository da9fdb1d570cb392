"""Rows of the tables of quality and motion out of what the steps found; names are QSIPrep's where it has the column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tractode.bids.quality_tables import rows_of
from tractode.fields import DWI
from tractode.interfaces.preprocess import Part
from tractode.ops.affine import rotation_part
from tractode.preprocess.quality import contrast_to_noise, motion_summary, neighbour_correlation

EDDY = ("x", "y", "z", "xx", "yy", "zz", "xy", "xz", "yz")


def scan_row(scan: DWI, name: str) -> dict[str, Any]:
    """Size, table and neighbouring correlation of one series, each column's name after ``name``."""
    row: dict[str, Any] = {}
    for letter, size, width in zip("xyz", scan.grid.shape, scan.grid.voxel_sizes, strict=True):
        row[f"{name}_dimension_{letter}"] = size
        row[f"{name}_voxel_size_{letter}"] = round(width, 4)
    everywhere, brain = neighbour_correlation(scan)
    return row | {
        f"{name}_max_b": round(float(scan.gtab.bvals.max()), 1),
        f"{name}_num_directions": int((~scan.gtab.is_b0).sum()),
        f"{name}_neighbor_corr": round(everywhere, 5),
        f"{name}_masked_neighbor_corr": round(brain, 5),
    }


def image_row(file_name: str, parts: Sequence[Part], raw: Sequence[dict[str, Any]], scan: DWI) -> dict[str, Any]:
    """The row of ``image_qc``; of several runs what was acquired is that of the first, counts are those of all."""
    row = {"file_name": file_name, **raw[0]}
    row["raw_num_directions"] = sum(one["raw_num_directions"] for one in raw)
    row["raw_max_b"] = max(one["raw_max_b"] for one in raw)
    row |= scan_row(scan, "processed")
    for number, (b, spread) in enumerate(sorted(contrast_to_noise(scan).items())):
        row[f"CNR{number}_b"] = round(b, 1)
        row |= {f"CNR{number}_{name}": round(spread[key], 4) for key, name in _SPREAD.items()}
    noise = parts[0].steps.records.get("denoising", {}).get("noise_median")
    row |= {} if noise is None else {"noise_median": noise}
    moved = [(len(part.scan.gtab), motion_summary(part.estimate)) for part in parts if part.estimate is not None]
    if moved:
        row |= {name: max(one[name] for _, one in moved) for name in moved[0][1]}
        row["mean_fd"] = round(sum(n * one["mean_fd"] for n, one in moved) / sum(n for n, _ in moved), 4)
        for name in ("num_bad_slices", "num_bad_volumes"):
            row[name] = sum(one[name] for _, one in moved)
    return row


_SPREAD = {"mean": "mean", "median": "median", "sd": "standard_deviation"}


def confound_columns(part: Part) -> dict[str, list[Any]]:
    """The columns of the table of confounds, a value a volume: mm, rad, eddy terms in mm at 100 mm; none without an estimate."""
    estimate = part.estimate
    if estimate is None:
        return {}
    head = estimate.head()
    columns = {f"trans_{letter}": head[:, k].tolist() for k, letter in enumerate("xyz")}
    columns |= {f"rot_{letter}": head[:, 3 + k].tolist() for k, letter in enumerate("xyz")}
    columns["framewise_displacement"] = estimate.framewise_displacement().tolist()
    constant = estimate.eddy_constant
    columns["eddy_constant"] = [0.0] * len(head) if constant is None else constant.tolist()
    columns |= {f"eddy_{name}": estimate.eddy[:, k].tolist() for k, name in enumerate(EDDY)}
    columns["prediction_correlation"] = estimate.correlation.tolist()
    columns["slice_outliers"] = estimate.outliers.sum(-1).tolist()
    gtab = estimate.rotated(part.scan.gtab)
    gtab = gtab if part.way is None else gtab.rotated(rotation_part(part.way.matrix).mT)
    columns["bval"] = gtab.bvals.tolist()
    columns |= {f"grad_{letter}": gtab.bvecs[:, k].tolist() for k, letter in enumerate("xyz")}
    return columns


def confound_rows(part: Part) -> list[dict[str, Any]]:
    """One row a volume, with the run and the place in it that the volume has."""
    columns = confound_columns(part)
    n = len(part.scan.gtab)
    whence: dict[str, list[Any]] = {"original_run": [part.run.name] * n, "original_volume": list(range(n))}
    return rows_of(columns | whence) if columns else []
