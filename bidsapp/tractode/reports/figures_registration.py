"""Registration overlays that can be flickered: two images of one layout, and the borders that should agree."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from markupsafe import escape

from tractode.fields import Image
from tractode.fields.image import check_same_grid
from tractode.reports.canvas import Sheet, draw_sheet, encode, rows_sheet
from tractode.reports.figures_slices import NEUROLOGICAL, outline_mask, paint, scale_of
from tractode.reports.planes import Box, box_of
from tractode.reports.reportlet import Reportlet, stem

Contour = tuple[Image, str, str]  # mask, colour, what it is


def flicker(
    fixed: Image,
    moving: Image,
    contours: Sequence[Contour] = (),
    *,
    fixed_name: str,
    moving_name: str,
    title: str,
    caption: str = "",
    desc: str,
    run: str = "",
    section: str = "registration",
    suffix: str = "reg",
    mask: Image | None = None,
    columns: int = 7,
) -> Reportlet:
    """Two images on one grid, shown in turn: one layout, one set of borders on both.

    ``moving`` was resampled onto the grid of ``fixed``; ``contours`` are masks with a colour and a name.

    Raises
    ------
    SpaceMismatchError
        The two images are not on one grid.
    """
    check_same_grid(fixed.grid, moving.grid, "A registration overlay")
    sheet = rows_sheet(_shown(fixed, mask), columns, 1400)
    pictures = [
        (fixed_name, _picture(sheet, fixed, contours, mask)),
        (moving_name, _picture(sheet, moving, contours, mask)),
    ]
    lines = " ".join(f"{_COLOUR_NAMES.get(colour, colour).capitalize()} line: {what}." for _, colour, what in contours)
    said = (
        f"{caption} Choose which image is shown, or let them alternate once a second; the lines stay. {lines} {NEUROLOGICAL}"
    ).strip()
    name = stem(run, desc, suffix)
    return Reportlet(name, section, title, said, flicker_fragment(name, pictures), "html", run, alt=title)


_COLOUR_NAMES = {"#ff5252": "red", "#40c4ff": "blue", "#ffd54a": "yellow", "#69f0ae": "green"}


def _shown(fixed: Image, mask: Image | None) -> Box:
    return box_of(fixed, mask, margin=12.0)


def _picture(sheet: Sheet, image: Image, contours: Sequence[Contour], mask: Image | None) -> bytes:
    scale = scale_of(image, "", mask)
    figure, axes = draw_sheet(sheet, paint(sheet, image, scale))
    for region, colour, _ in contours:
        outline_mask(axes, sheet, region, colour, 0.8)
    return encode(figure)


def flicker_fragment(name: str, pictures: Sequence[tuple[str, bytes]]) -> str:
    """HTML with two stacked pictures and radio buttons; style sheet only, so it works where scripts do not."""
    key = "f" + hashlib.sha256(name.encode()).hexdigest()[:12]
    (first, below), (second, above) = pictures
    choices = (
        ("alternate", "Alternate", True),
        ("first", first, False),
        ("second", second, False),
        ("blend", "Blend", False),
    )
    radios = "".join(
        f'<input type="radio" name="{key}" id="{key}-{value}" class="flick-{value}"{" checked" if on else ""}>'
        f'<label for="{key}-{value}">{escape(text)}</label>'
        for value, text, on in choices
    )
    return (
        f'<div class="flicker">{radios}<div class="flicker-stage">'
        f'<img class="below" alt="{escape(first)}" src="{data_uri(below)}">'
        f'<img class="above" alt="{escape(second)}" src="{data_uri(above)}">'
        f'<span class="tag tag-below">{escape(first)}</span><span class="tag tag-above">{escape(second)}</span>'
        "</div></div>"
    )


def data_uri(body: bytes, kind: str = "webp") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(body).decode()}"
