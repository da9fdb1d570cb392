"""Borders of tissues and regions over the mean b=0 image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tractode.fields import Image
from tractode.preprocess.five_tissue import CSF, SUBCORTICAL, WHITE, dominant
from tractode.reports.canvas import draw_sheet, encode, rows_sheet
from tractode.reports.figures_slices import NEUROLOGICAL, outline_mask, paint, scale_of
from tractode.reports.planes import box_of, cut
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
    section: str = "tissues",
    suffix: str = "dwi",
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
    return Reportlet(stem(run, desc, suffix), section, title, said, encode(figure), run=run, alt=title)


def anatomy(
    image: Image,
    five: Image,
    *,
    fractions: Image,
    title: str,
    desc: str,
    suffix: str,
    caption: str,
    run: str = "",
) -> list[Reportlet]:
    """Tissues of an anatomical image: borders over it, and the fractions of grey matter, white matter and CSF as colours."""
    brain = Image(five.grid, five.values.sum(0, keepdim=True) > 0.5)
    kind = dominant(five)[None]
    names = {"white matter": WHITE, "subcortical grey matter": SUBCORTICAL, "CSF": CSF}
    regions = {name: Image(five.grid, kind == number) for name, number in names.items()}
    regions = {name: region for name, region in regions.items() if bool(region.mask.any())}
    lines = borders(
        image, brain, {"brain": brain, **regions}, title=title, desc=desc, run=run, suffix=suffix, caption=caption, section="anatomy",
    )  # fmt: skip
    name = stem(run, f"{desc}fractions", suffix)
    # The pictures belong to the participant, not to a run; their file names keep the image's.
    return [replace(lines, run=""), _fractions(image, fractions, brain, title, name)]


def _fractions(image: Image, fractions: Image, brain: Image, title: str, name: str) -> Reportlet:
    """Red, green and blue are grey matter, white matter and CSF."""
    sheet = rows_sheet(box_of(image, brain))
    canvas = sheet.blank()
    for tile in sheet.tiles:
        values = cut(fractions, tile.plane, sheet.step).numpy()[: tile.height, : tile.width]
        sheet.paste(canvas, tile, np.clip(np.nan_to_num(values), 0, 1))
    figure, _ = draw_sheet(sheet, canvas, None)
    said = (
        f"Red: grey matter. Green: white matter. Blue: CSF. Mixed colours: voxels that hold two of them. {NEUROLOGICAL}"
    )
    return Reportlet(name, "anatomy", f"{title}, fractions", said, encode(figure), alt=title)
