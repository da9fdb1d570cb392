"""Corrected series of one session put together on one grid, at one brightness.

Each series is resampled once, straight onto the first one's grid: the rigid way between the two joins its motion, eddy currents and
susceptibility in the one interpolation (`resample`). The way starts from the field's estimate where one field serves both, else from the
headers, and is refined by registering the corrected mean b=0 images as volumes of one series are (`motion`). Brightness: M. Cieslak et
al., *QSIPrep*, Nature Methods 18:775 (2021), doi:10.1038/s41592-021-01185-5 (b=0 images of all series to one mean).

Departures: one factor a series, the ratio of the medians of its b=0 and the first one's over the brain, so that no image is reshaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from tractode.errors import InputDataError
from tractode.fields import DWI, Affine, GradientTable, Image
from tractode.preprocess.motion import MotionSettings, correct_motion


def way_between(first: Image, other: Image, first_mask: Image, start: Affine | None = None) -> Affine:
    """Rigid, from the first b=0 image's space to the other's, both as good as undistorted.

    ``start`` is where the search begins; without it, where the headers say. The two are registered as volumes of one series are.
    """
    start = start or Affine(torch.eye(4, dtype=torch.float64), first.grid.space, other.grid.space)
    seen = other.sample(start.map(first.grid.centres(torch.float64)).float(), outside="nearest").movedim(-1, 0)
    table = GradientTable(torch.zeros(2), torch.zeros(2, 3), torch.ones(2, dtype=torch.bool))
    pair = DWI(first.grid, torch.cat([first.values[:1], seen]).float(), table, first_mask.mask)
    own, its = correct_motion(pair, None, MotionSettings(eddy=False, outliers=None)).transforms()
    matrix = start.matrix @ its.matrix @ torch.linalg.inv(own.matrix)
    return Affine(matrix, first.grid.space, other.grid.space)


def merged(series: Sequence[DWI]) -> tuple[DWI, list[float]]:
    """Series of one grid as one, each as bright as the first, and the factors used; empty where one of them holds nothing."""
    first = series[0]
    common = torch.stack([one.mask for one in series]).all(0)
    if not bool(common.any()):
        raise InputDataError(
            "The brains of the series to be combined do not overlap",
            id="E-COMBINE-APART",
            needed="series of one session that show the same part of the head",
            fix="leave out --combine-runs",
        )
    levels = [float(one.mean_b0().values[0][common].median()) for one in series]
    factors = [levels[0] / level if level > 0 else 1.0 for level in levels]
    tables = joined_tables([one.gtab for one in series])
    signal, begin = torch.empty(len(tables), *first.grid.shape, dtype=first.signal.dtype), 0
    for one, factor in zip(series, factors, strict=True):
        torch.mul(one.signal, factor, out=signal[begin : begin + len(one.gtab)])
        begin += len(one.gtab)
    # Beyond one's field of view the others' volumes alone would be fitted together with its noughts.
    signal *= torch.stack([one.signal.amax(0) > 0 for one in series]).all(0)
    return DWI(first.grid, signal, tables, common), factors


def joined_tables(tables: Sequence[GradientTable]) -> GradientTable:
    """One table after the other; what not all of them tell is left out."""
    parts: dict[str, Any] = {}
    for name in (item.name for item in fields(GradientTable)):
        each = [getattr(table, name) for table in tables]
        parts[name] = None if any(value is None for value in each) else torch.cat(each)
    return GradientTable(**parts)
