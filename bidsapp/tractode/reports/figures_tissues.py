"""Borders of tissues and regions over the mean b=0 image."""

from __future__ import annotations

from collections.abc import Mapping

from tractode.fields import Image
from tractode.reports.canvas import draw_sheet, encode, rows_sheet
from tractode.reports.figures_slices import NEUROLOGICAL, outline_mask, paint, scale_of
from tractode.reports.planes import box_of
from tractode.reports.reportlet import Reportlet, stem

COLOURS = ("#ffd54a", "#69f0ae", "#40c4ff", "#ff5252", "#e040fb", "#ffffff")
_NAMES = ("Yellow", "Green", "Blue", "Red", "Violet", "White")


def borders(
    background: Image,
    mask: Image,
    regions: Mapping[str, Image],
    *,
    title: str,
    desc: str,
    run: str = "",
    caption: str = "",
) -> Reportlet:
    """The borders of masks (any grid of the background's space), each in a colour, with a legend in the caption."""
    sheet = rows_sheet(box_of(background, mask))
    scale = scale_of(background, "signal (arbitrary units)", mask)
    figure, axes = draw_sheet(sheet, paint(sheet, background, scale), scale)
    legend = []
    for index, (name, region) in enumerate(regions.items()):
        outline_mask(axes, sheet, region, COLOURS[index % len(COLOURS)], 0.8)
        legend.append(f"{_NAMES[index % len(COLOURS)]}: {name}.")
    said = " ".join(part for part in (caption, *legend, NEUROLOGICAL) if part)
    return Reportlet(stem(run, desc, "dwi"), "tissues", title, said, encode(figure), run=run, alt=title)
