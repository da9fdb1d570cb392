"""Corrected series of one session put together on one grid, at one brightness.

Each series is resampled once, straight onto the first one's grid: the rigid way between the two joins its motion, eddy currents and
susceptibility in the one interpolation (`resample`). The ways come from the field's estimate where one field serves both, else from
registering the mean b=0 images by local structure (`registration.refine`). Brightness: M. Cieslak et al., *QSIPrep*, Nature Methods
18:775 (2021), doi:10.1038/s41592-021-01185-5 (b=0 images of all series to one mean).

Departures: one factor a series, the ratio of the medians of its b=0 and the first one's over the brain, so that no image is reshaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from tractode.errors import InputDataError
from tractode.fields import DWI, Affine, GradientTable, Image
from tractode.registration.refine import refine


def way_between(first: Image, other: Image, first_mask: Image) -> Affine:
    """Rigid, from the first b=0 image's space to the other's; both as good as undistorted, and near one another."""
    start = Affine(torch.eye(4, dtype=torch.float64), first.grid.space, other.grid.space)
    return refine(first, other, [start], fixed_mask=first_mask)


def merged(series: Sequence[DWI]) -> tuple[DWI, list[float]]:
    """Series of one grid as one, each as bright as the first, and the factors used."""
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
    signal = torch.cat([one.signal * factor for one, factor in zip(series, factors, strict=True)])
    return DWI(first.grid, signal, joined_tables([one.gtab for one in series]), common), factors


def joined_tables(tables: Sequence[GradientTable]) -> GradientTable:
    """One table after the other; what not all of them tell is left out."""
    parts: dict[str, Any] = {}
    for name in (item.name for item in fields(GradientTable)):
        each = [getattr(table, name) for table in tables]
        parts[name] = None if any(value is None for value in each) else torch.cat(each)
    return GradientTable(**parts)
