"""Orientation distributions as glyphs on slices, one glyph a voxel."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Image, ShField
from tractode.ops import sphere
from tractode.ops.spherical_harmonics import basis
from tractode.reports.canvas import Sheet, Tile, draw_sheet, encode
from tractode.reports.figures_gradients import toward_viewer
from tractode.reports.figures_slices import scale_of
from tractode.reports.glyph_raster import render
from tractode.reports.planes import VIEWS, Box, Plane, View, box_of, cut
from tractode.reports.reportlet import Reportlet, stem

_DIM = 0.55  # background images are darkened so that glyphs stand out


def fod_glyphs(
    field: ShField,
    background: Image,
    mask: Image | None = None,
    *,
    at: tuple[float, float, float] | None = None,
    run: str = "",
    section: str = "fod",
    desc: str = "fod",
    space: str = "",
) -> list[Reportlet]:
    """An axial, a coronal and a sagittal plane of glyphs over a background, through ``at`` (mm) or the mask's centre.

    ``space`` is named in the titles where it is not the scan's own.
    """
    box = box_of(background, mask, margin=2.0)
    centre = box.centre if at is None else at
    spacing = float(np.mean(field.grid.voxel_sizes))
    scale = amplitude_scale(field, mask)
    place = f" in {space}" if space else ""
    reportlets = []
    for view in VIEWS:
        picture, position = _glyph_plane(field, background, mask, box, view, centre[view.normal], spacing, scale)
        caption = (
            f"{view.name.capitalize()} plane at {view.coordinate} = {position:.0f} mm seen from {view.seen_from}; one glyph each {spacing:.1f} mm, "
            "all at one scale. The radius along a direction is the fibre orientation density there; colour: red left–right, green "
            "front–back, blue up–down. Lobes should follow the bundles and cross where bundles cross."
        )
        reportlets.append(
            Reportlet(
                stem(run, f"{desc}{view.name}", "dwimap"), section, f"Fibre orientation distributions{place}, {view.name}", caption,
                picture, run=run, alt=f"FOD glyphs{place}, {view.name} plane",
            )
        )  # fmt: skip
    return reportlets


def amplitude_scale(field: ShField, mask: Image | None = None) -> float:
    """The amplitude that fills a voxel: the 90th percentile of the voxels' largest amplitudes."""
    inside = field.coeffs[0] > 0
    if mask is not None and mask.grid.matches(field.grid):
        inside = inside & mask.mask.to(inside.device)
    chosen = inside.nonzero()
    if len(chosen) == 0:
        return 1.0
    i, j, k = chosen[:: max(1, len(chosen) // 20_000)].unbind(-1)
    flat = field.coeffs[:, i, j, k].mT.detach().cpu().to(torch.float32)
    largest = (flat @ basis(sphere.directions(200).to(flat), field.order).mT).amax(1)
    return max(float(torch.quantile(largest, 0.90)), 1e-12)


def _glyph_plane(
    field: ShField,
    background: Image,
    mask: Image | None,
    box: Box,
    view: View,
    position: float,
    spacing: float,
    scale: float,
) -> tuple[bytes, float]:
    plane, cell = Plane(view, position, box).in_cells(spacing)
    glyphs, cover = render(_on_plane(field, mask, plane, spacing), field.order, view, toward_viewer(view), scale, cell)
    shown = cut(background, plane, spacing / cell)[..., 0].numpy()
    height, width = cover.shape
    backdrop = np.zeros((height, width, 3))
    grey = scale_of(background, "", mask)(np.nan_to_num(shown))[:height, :width] * _DIM
    backdrop[: grey.shape[0], : grey.shape[1]] = grey
    picture = glyphs * cover[..., None] + backdrop * (1 - cover[..., None])
    tile = Tile(plane, 0, 0, height, width)
    sheet = Sheet((tile,), width, height + 20, spacing / cell)
    canvas = sheet.blank()
    sheet.paste(canvas, tile, picture)
    figure, _ = draw_sheet(sheet, canvas)
    return encode(figure, 82), position


def _on_plane(field: ShField, mask: Image | None, plane: Plane, spacing: float) -> Float[Tensor, "h w l"]:
    """Coefficients interpolated at the cells' centres, 0 where more than half is outside the mask."""
    values = torch.nan_to_num(cut(Image(field.grid, field.coeffs), plane, spacing))
    return values if mask is None else values * (cut(mask, plane, spacing) > 0.5)
