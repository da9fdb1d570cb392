"""Named bundles, each in its own colour: all of them from three sides with a legend, the best known one by one, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from markupsafe import escape
from matplotlib.axes import Axes
from torch import Tensor

from tractode.fields import Image, Streamlines
from tractode.reports.bundle_colours import FAMILIES, colour_of, parts_of, readable, rgb_of, short
from tractode.reports.canvas import (
    INK,
    ColourScale,
    Sheet,
    Tile,
    draw_sheet,
    encode,
    letter_tile,
    line_sheet,
    new_figure,
)
from tractode.reports.figures_slices import scale_of
from tractode.reports.figures_tractogram import dense, evenly, splat
from tractode.reports.planes import AXIAL, CORONAL, SAGITTAL, Plane, View, box_of, cut
from tractode.reports.reportlet import Reportlet, stem

SECTION = "bundles"
_TOGETHER, _ALONE = 80, 200
_FEWEST_ALONE, _ALONE_TILES, _FAMILY_TILES, _ACROSS = 5, 30, 4, 6
_FEW = 40
_LEGEND_COLUMNS, _LEGEND_ROW = 5, 19
_GALLERY_TILE = 258
_HEADINGS = ("Bundle", "group", "streamlines", "mean length (mm)", "width (mm)", "mean confidence")


def bundle_figures(
    lines: Mapping[str, Streamlines], facts: Mapping[str, Any], background: Image, mask: Image, *, run: str, track: str
) -> list[Reportlet]:
    """``lines`` are some of each bundle's; ``facts`` are those of `EncodeBundles`: ``bundles``, ``coding``, ``compression``."""
    rows = sorted(facts["bundles"], key=lambda row: _place(row["Name"]))
    options = {"run": run, "track": track}
    found = [_together(lines, rows, facts, background, mask, **options)]
    alone = _best_known(rows)
    if alone:
        found.append(_one_by_one(lines, alone, background, mask, **options))
    return [*found, _table(rows, facts, **options)]


def _place(name: str) -> tuple[int, str]:
    """The order in which bundles are listed: the best known families first."""
    family = parts_of(name)[1]
    known = list(FAMILIES)
    return (known.index(family) if family in known else len(known)), name


def _best_known(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first that have enough lines, no more than a few of a family."""
    found: list[Mapping[str, Any]] = []
    families: dict[str, int] = {}
    for row in rows:
        family = parts_of(row["Name"])[1]
        if row["Streamlines"] >= _FEWEST_ALONE and families.get(family, 0) < _FAMILY_TILES:
            families[family] = families.get(family, 0) + 1
            found.append(row)
    return found[:_ALONE_TILES]


def _together(
    lines: Mapping[str, Streamlines],
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    background: Image,
    mask: Image,
    *,
    run: str,
    track: str,
) -> Reportlet:
    box = box_of(background, mask, margin=4.0)
    sheet = line_sheet(box, box.centre)
    canvas, points, colours = sheet.blank(), *_coloured(lines, sheet.step / 2, _TOGETHER)
    for tile in sheet.tiles:
        picture, _ = splat(points, colours, tile.plane, sheet.step, (tile.height, tile.width), box)
        sheet.paste(canvas, tile, picture)
    coding, n_named, n_other = facts["coding"], facts["coding"]["Named"], facts["coding"]["Other"]
    caption = (
        f"From above, from behind and from the right, at most {_TOGETHER} lines of each of {len(rows)} bundles, each in the colour it has in every report; nearer lines are brighter. "
        f"{n_named:,} of {n_named + n_other:,} streamlines were named, each with a confidence of at least {coding['MinimumConfidence']:g}; the others ({n_other:,}) belong to no bundle of "
        "the atlas, or to none surely enough, and are not drawn. Legend: number of streamlines and mean confidence. Names were given by a classifier trained on an atlas and on simulated "
        f"participants, in {coding['Space']}, where the lines were brought by registration ({coding['Registration']}): where that is wrong, so are the names."
    )
    body = _with_legend(sheet, canvas, rows)
    return Reportlet(
        stem(run, f"{track}bundles3views", "tractogram"), SECTION, f"Named bundles ({track})", caption, body,
        run=run, alt="Named bundles in their colours from three sides, with a legend",
    )  # fmt: skip


def _coloured(
    lines: Mapping[str, Streamlines], step: float, most: int
) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p 3"]]:
    """Points along the lines of all bundles, and the colour of each; where lines are few they are drawn thicker."""
    points, colours = [torch.zeros(0, 3)], [torch.zeros(0, 3)]
    for name, some in lines.items():
        along, _ = dense(evenly(some, most), step)
        points.append(along)
        colours.append(torch.tensor(rgb_of(name)).expand(len(along), 3))
    at, tone = torch.cat(points), torch.cat(colours)
    if sum(min(len(some), most) for some in lines.values()) > _FEW * len(lines):
        return at, tone
    aside = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)]) * step
    return (at[None] + aside[:, None]).flatten(0, 1), tone.repeat(len(aside), 1)


def _with_legend(sheet: Sheet, canvas: Float[np.ndarray, "h w 3"], rows: Sequence[Mapping[str, Any]]) -> bytes:
    per_column = -(-max(len(rows), 1) // _LEGEND_COLUMNS)
    height, below = sheet.height + 8, per_column * _LEGEND_ROW + 16
    figure, views = draw_sheet(sheet, canvas, with_positions=False)
    figure.set_size_inches(sheet.width / 100, (height + below) / 100)
    views.set_position((0, below / (height + below), 1, sheet.height / (height + below)))
    axes = figure.add_axes((0, 0, 1, below / (height + below)))
    axes.set_axis_off()
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(below, 0)
    for number, row in enumerate(rows):
        column, line = divmod(number, per_column)
        _legend_entry(axes, row, 10 + column * sheet.width / _LEGEND_COLUMNS, 12.0 + line * _LEGEND_ROW)
    return encode(figure, 90)


def _legend_entry(axes: Axes, row: Mapping[str, Any], x: float, y: float) -> None:
    axes.plot([x, x + 16], [y, y], color=colour_of(row["Name"]), lw=6, solid_capstyle="butt")
    text = f"{short(row['Name'])}  {row['Streamlines']:,} · {row['Confidence']:.2f}"
    axes.text(x + 22, y, text, color=INK, fontsize=8.2, va="center")


def _one_by_one(
    lines: Mapping[str, Streamlines],
    rows: Sequence[Mapping[str, Any]],
    background: Image,
    mask: Image,
    *,
    run: str,
    track: str,
) -> Reportlet:
    box = box_of(background, mask, margin=4.0)
    step = max(box.size) / (_GALLERY_TILE - 6)
    down = -(-len(rows) // _ACROSS)
    width, row_height = _GALLERY_TILE * _ACROSS, _GALLERY_TILE + 22
    figure = new_figure(width, row_height * down)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    canvas = np.zeros((row_height * down, width, 3))
    tiles, scale = [], scale_of(background, "", mask)
    for number, row in enumerate(rows):
        line, column = divmod(number, _ACROSS)
        some = evenly(lines[row["Name"]], _ALONE)
        view = _best_view([lines[other["Name"]] for other in rows if _is_partner(other["Name"], row["Name"])])
        plane = Plane(view, float(some.points[:, view.normal].median()), box)
        height, across = plane.shape(step)
        x, y = column * _GALLERY_TILE + (_GALLERY_TILE - across) // 2, line * row_height + 22
        tiles.append(Tile(plane, x, y, height, across))
        canvas[y : y + height, x : x + across] = _picture(row["Name"], some, background, scale, plane, step)
    axes.imshow(canvas, interpolation="none", aspect="auto", extent=(0, width, row_height * down, 0))
    axes.set_xlim(0, width)
    axes.set_ylim(row_height * down, 0)
    for row, tile in zip(rows, tiles, strict=True):
        letter_tile(axes, tile, 9.0)
        middle = tile.x + tile.width / 2
        title: dict[str, Any] = {
            "color": colour_of(row["Name"]),
            "fontsize": 8.5,
            "fontweight": "bold",
            "ha": "center",
            "va": "bottom",
        }
        axes.text(middle, tile.y - 3, short(row["Name"]), **title)
    caption = (
        f"The {len(rows)} best known of the bundles that have at least {_FEWEST_ALONE} lines, each seen from where it is widest (from the left or right, from behind, or from above; "
        "letters mark the patient's sides), over the slice of the b=0 image through its middle. A bundle that does not lie where anatomy has it was named wrongly, or the registration is wrong."
    )
    return Reportlet(
        stem(run, f"{track}bundlesalone", "tractogram"), SECTION, f"Bundles one by one ({track})", caption, encode(figure, 88),
        run=run, alt="Bundles one by one over slices",
    )  # fmt: skip


def _is_partner(other: str, name: str) -> bool:
    """Whether it is the same bundle, of either side."""
    return parts_of(other)[1::2] == parts_of(name)[1::2]


def _best_view(bundles: Sequence[Streamlines]) -> View:
    """The view across the axis along which the bundles extend least, each by itself."""
    spread = torch.zeros(3, dtype=torch.float64)
    for lines in bundles:
        points = lines.points.double()
        spread += torch.quantile(points, 0.95, 0) - torch.quantile(points, 0.05, 0)
    return (SAGITTAL, CORONAL, AXIAL)[int(spread.argmin())]


def _picture(
    name: str, lines: Streamlines, background: Image, scale: ColourScale, plane: Plane, step: float
) -> Float[np.ndarray, "h w 3"]:
    under = scale(np.nan_to_num(cut(background, plane, step)[..., 0].numpy())) * 0.55
    points, colours = _coloured({name: lines}, step / 2, _ALONE)
    picture, cover = splat(points, colours, plane, step, plane.shape(step), None)
    return picture * cover[..., None] + under * (1 - cover[..., None])


def _table(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], *, run: str, track: str) -> Reportlet:
    head = "".join(f"<th>{escape(title)}</th>" for title in _HEADINGS)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    table = f'<div class="scroll"><table class="grid"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    absent = [readable(name) for name in facts["coding"]["Bundles"] if name not in {row["Name"] for row in rows}]
    size, coding = facts["compression"], facts["coding"]
    error, kept = size["PointErrorMillimetres"], size["StreamlinesKeptAsPoints"]
    written = (
        f" The compressed tractogram has {size['Bytes'] / 1e6:.2f} MB, {size['RatioToTRXFloat16']:.0f} times less than TRX with float16 positions "
        f"({size['RatioToTRXFloat16At20Points']:.1f} times less than 20 such points a line, {size['RatioToTRXFloat16AtFewestPoints']:.1f} times less than the fewest that keep the same bound); its points are {error['Mean']:.2f} mm from the truth in the mean, "
        f"{error['Percentile95']:.2f} mm at the 95th percentile, and none is farther than {size['LargestErrorAllowedMillimetres']:g} mm: {kept:,} lines that the code would move "
        "farther are kept as points."
        if error["Mean"] is not None
        else ""
    )
    aside = sum(coding["SetAside"].values())
    caption = (
        "Length: mean of the lines, in the scan. Width: root mean square distance of the lines from their mean course, in the template. Confidence: mean calibrated probability of the name."
        f" Weights: {coding['Weights']['Name']}. {aside:,} streamlines were set aside before coding (not finite, too short, or outside the template's box).{written}"
        + (f" Without lines: {', '.join(absent)}." if absent else "")
    )
    return Reportlet(
        stem(run, f"{track}bundletable", "tractogram"), SECTION, f"The {len(rows)} bundles that have lines ({track})", caption,
        f"<details><summary>Show the table</summary>{table}</details>", "html", run,
    )  # fmt: skip


def _cells(row: Mapping[str, Any]) -> str:
    swatch = f'<span style="display:inline-block;width:14px;height:14px;border-radius:3px;vertical-align:-2px;margin-right:7px;background:{colour_of(row["Name"])}"></span>'
    numbers = (f"{row['Streamlines']:,}", f"{row['Length']:.0f}", f"{row['Width']:.1f}", f"{row['Confidence']:.2f}")
    texts = (parts_of(row["Name"])[0] or "–", *numbers)
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    return f"<td>{swatch}{escape(readable(row['Name']))}</td>{cells}"
