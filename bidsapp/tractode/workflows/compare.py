"""Compares two tractograms, or two folders of bundles, as plain data for JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tractode.errors import MissingInputError, NoMatchError
from tractode.evaluate.agreement import compare_lines
from tractode.evaluate.bundle_distance import bundle_distance
from tractode.evaluate.density import covering_grid, density_agreement
from tractode.fields import ImageGrid, Streamlines
from tractode.io.tractogram import read_tractogram

Record = dict[str, Any]
EXTENSIONS = (".trx", ".tck")


def compare(first: Path, second: Path, voxel_mm: float = 2.0) -> Record:
    """Two files, or two folders whose files of the same name (without extension) are the same bundle.

    Returns ``density_correlation``, ``density_dice`` (weighted) and ``mdf_mm``: of the two files, or as means over the
    bundles that both folders hold, with ``bundles`` and ``missing``. ``lines`` is there where both files carry seeds.
    """
    if first.is_dir() and second.is_dir():
        return _folders(first, second, voxel_mm)
    return _pair(_read(first), _read(second), voxel_mm)


def _folders(first: Path, second: Path, voxel_mm: float) -> Record:
    one, two = _named(first), _named(second)
    common = sorted(one.keys() & two.keys())
    if not common:
        raise NoMatchError(
            "The two folders have no tractogram of the same name",
            id="E-SCORE-PAIRS",
            path=second,
            needed=f"files named as in the first folder: {', '.join(sorted(one)) or 'it has none'}",
        )
    bundles = {name: _pair(_read(one[name]), _read(two[name]), voxel_mm) for name in common}
    means: Record = {}
    for key in ("density_correlation", "density_dice", "mdf_mm"):
        values = [record[key] for record in bundles.values() if record[key] is not None]
        means[key] = sum(values) / len(values) if values else None
    return {"n": len(common), **means, "missing": sorted(one.keys() ^ two.keys()), "bundles": bundles}


def _pair(first: Streamlines, second: Streamlines, voxel_mm: float) -> Record:
    grid: ImageGrid = covering_grid([first, second], voxel_mm)
    density, distance = density_agreement(first, second, grid), bundle_distance(first, second)
    record: Record = {
        "density_correlation": _plain(density.correlation),
        "density_dice": _plain(density.weighted_dice),
        "mdf_mm": _plain(distance.mdf_mm),
        "n": {"first": len(first), "second": len(second), "voxels": density.n},
        "density": {"voxel_mm": voxel_mm, "dice": _plain(density.dice)},
        "mdf": {
            "first_to_second_mm": _plain(distance.forward_mm),
            "second_to_first_mm": _plain(distance.backward_mm),
            "lines_compared": {"first": distance.n_first, "second": distance.n_second},
        },
    }
    if "seed" in first.per_streamline and "seed" in second.per_streamline:
        lines = compare_lines(first, second)
        record["lines"] = {
            "n": lines.n,
            "missing": lines.n_missing,
            "median_hausdorff_mm": _plain(lines.median_hausdorff_mm),
            "within_1_mm": lines.share_within_1mm,
            "within_0_1_mm": lines.share_within_01mm,
        }
    return record


def _named(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in EXTENSIONS}


def _read(path: Path) -> Streamlines:
    if path.is_dir():
        raise MissingInputError(
            "This is a folder and the other is a file",
            id="E-SCORE-FOLDER",
            path=path,
            needed="two tractograms, or two folders of them",
        )
    # Both are in RAS+ mm of one scanner or template; the files do not say which.
    return read_tractogram(path, "world")[0]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
