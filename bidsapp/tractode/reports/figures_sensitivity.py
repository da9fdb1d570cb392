"""Sensitivity of a connection: where the signal carries it, in colour over the scan, with the two regions outlined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps

from tractode.fields import Image
from tractode.reports.canvas import ColourScale, Sheet, draw_sheet, encode, rows_sheet
from tractode.reports.figures_slices import NEUROLOGICAL, outline_mask, paint, scale_of
from tractode.reports.planes import box_of, cut
from tractode.reports.reportlet import Reportlet, stem

_DIM = 0.6
_SHOWN = 0.03  # of the scale's top: fainter voxels are left grey
_REGIONS = ("#40c4ff", "#69f0ae")


def maps(
    strength: Image,
    anisotropy_loss: Image,
    background: Image,
    mask: Image,
    ends: Sequence[Image],
    *,
    connection: float,
    n_lines: int,
    abrupt: float = 0.0,
    run: str = "",
    section: str = "sensitivity",
) -> list[Reportlet]:
    """How strongly the connection depends on each voxel, and what a loss of anisotropy there would do to it."""
    said = (
        f"Connection: {connection:.1f} streamlines expected, {n_lines:,} of them contributing; {abrupt:.1%} of it ends where "
        "a rule without derivative says so. Outlined: the two regions."
    )
    strong = _figure(
        strength, background, mask, ends, "inferno", False, "sensitivity (1 % per 1 %)", run=run, section=section,
        desc="sensitivity", title="Signal that the connection depends on",
        caption="Relative change of the connection per relative change of a voxel's signals, norm over the volumes: where "
        f"the scan decides whether the two regions are joined. {said}",
    )  # fmt: skip
    signed = _figure(
        anisotropy_loss, background, mask, ends, "RdBu", True, "change of the connection per loss of anisotropy",
        run=run, section=section, desc="sensitivityanisotropy", title="What a loss of anisotropy would do",
        caption="Relative change of the connection if the voxel's signals moved to their mean, extrapolated from a small "
        f"move. Red: the connection would lose, blue: it would gain. {said}",
    )  # fmt: skip
    return [strong, signed]


def _figure(
    values: Image, background: Image, mask: Image, ends: Sequence[Image], cmap: str, signed: bool, label: str, *,
    run: str, section: str, desc: str, title: str, caption: str,
) -> Reportlet:  # fmt: skip
    top = _top(values)
    scale = ColourScale(-top if signed else 0.0, top, label, cmap)
    sheet = rows_sheet(box_of(background, mask))
    canvas = paint(sheet, background, scale_of(background, "", mask)) * _DIM
    _overlay(sheet, canvas, values, cmap, top, signed)
    figure, axes = draw_sheet(sheet, canvas, scale)
    for end, colour in zip(ends, _REGIONS, strict=False):
        outline_mask(axes, sheet, end, colour)
    return Reportlet(
        stem(run, desc, "dwimap"), section, title, f"{caption} {NEUROLOGICAL}", encode(figure), run=run,
        alt=f"{title}, slices",
    )  # fmt: skip


def _top(values: Image) -> float:
    """The 99th percentile of the values that are not zero, in size."""
    size = values.values[0].abs()
    found = size[size > 0]
    return max(float(torch.quantile(found[:: max(1, len(found) // 500_000)], 0.99)), 1e-12) if len(found) else 1.0


def _overlay(
    sheet: Sheet, canvas: Float[np.ndarray, "h w 3"], values: Image, cmap: str, top: float, signed: bool
) -> None:
    """Colour where there is something to see, stronger the larger it is; the background shows through elsewhere."""
    for tile in sheet.tiles:
        part = np.nan_to_num(cut(values, tile.plane, sheet.step)[..., 0].numpy()[: tile.height, : tile.width])
        place = part / (2 * top) + 0.5 if signed else part / top
        colour = colormaps[cmap](np.clip(place, 0, 1))[..., :3]
        cover = np.clip((np.abs(part) / top - _SHOWN) / 0.15, 0, 1)[..., None]
        under = canvas[tile.y : tile.y + part.shape[0], tile.x : tile.x + part.shape[1]]
        sheet.paste(canvas, tile, colour * cover + under * (1 - cover))
