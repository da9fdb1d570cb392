"""Tractograms: still views from three sides, slabs over slices, and a view that can be rotated."""

from __future__ import annotations

import base64
import json

import numpy as np
import torch
from jaxtyping import Float
from markupsafe import escape
from torch import Tensor

from tractode.fields import Image, Streamlines
from tractode.reports.canvas import Sheet, draw_sheet, encode, line_sheet
from tractode.reports.figures_gradients import toward_viewer
from tractode.reports.figures_slices import paint, scale_of
from tractode.reports.planes import AXIAL, VIEWS, Box, Plane, box_of, cut
from tractode.reports.reportlet import Reportlet, stem

_COLOURS = "Colour is the local direction: red left–right, green front–back, blue up–down."
_UNIT = 0.02  # mm a step of the 16-bit coordinates sent to the browser
_SPACING = 2.5  # mm between the points sent to the browser
_SUPERSAMPLE = 2


def static_views(
    streamlines: Streamlines,
    background: Image,
    mask: Image | None = None,
    *,
    run: str = "",
    section: str = "tractogram",
    desc: str = "tractogram",
    title: str = "Tractogram",
    n_total: int | None = None,
    max_streamlines: int = 10_000,
    slab: float = 3.0,
) -> list[Reportlet]:
    """The whole tractogram from above, behind and the right, and the parts within ``slab`` mm of three slices."""
    shown = evenly(streamlines, max_streamlines)
    box = box_of(background, mask, margin=4.0)
    said = _sentence(streamlines, len(shown), n_total)
    sheet = line_sheet(box, box.centre)
    points, directions = dense(shown, sheet.step / _SUPERSAMPLE)
    whole = sheet.blank()
    sliced = paint(sheet, background, scale_of(background, "", mask))
    for tile in sheet.tiles:
        size = (tile.height, tile.width)
        picture, cover = splat(points, directions, tile.plane, sheet.step, size, box)
        sheet.paste(whole, tile, picture)
        near = (points[:, tile.plane.view.normal] - tile.plane.position).abs() <= slab
        picture, cover = splat(points[near], directions[near], tile.plane, sheet.step, size, None)
        under = sliced[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] * 0.7
        sheet.paste(sliced, tile, picture * cover[..., None] + under * (1 - cover[..., None]))
    sides = f"From above, from behind and from the right. {said} {_COLOURS} Nearer streamlines are brighter."
    slabs = (
        f"Streamlines within {slab:g} mm of each slice, over the slice. {_COLOURS} Bundles should lie in white matter."
    )
    return [
        _reportlet(
            sheet, whole, stem(run, desc, "tractogram"), section, f"{title} from three sides", sides, run, False
        ),
        _reportlet(
            sheet, sliced, stem(run, f"{desc}slabs", "tractogram"), section, f"{title} on slices", slabs, run, True
        ),
    ]


def _reportlet(
    sheet: Sheet,
    canvas: Float[np.ndarray, "h w 3"],
    name: str,
    section: str,
    title: str,
    caption: str,
    run: str,
    with_positions: bool,
) -> Reportlet:
    figure, _ = draw_sheet(sheet, canvas, with_positions=with_positions)
    return Reportlet(name, section, title, caption, encode(figure, 88), run=run, alt=title)


def _sentence(streamlines: Streamlines, n_shown: int, n_total: int | None) -> str:
    total = len(streamlines) if n_total is None else n_total
    if n_shown == 0:
        return "No streamline was made."
    lengths = streamlines.lengths().detach().cpu().to(torch.float32)
    low, middle, high = (float(torch.quantile(lengths, q)) for q in (0.05, 0.5, 0.95))
    return f"{n_shown:,} of {total:,} streamlines shown; median length {middle:.0f} mm (5 % below {low:.0f}, 5 % above {high:.0f})."


def evenly(streamlines: Streamlines, most: int) -> Streamlines:
    """At most ``most`` streamlines, evenly spread over the set: the same ones every time."""
    n = len(streamlines)
    if n <= most:
        return streamlines
    return streamlines.select(torch.linspace(0, n - 1, most).round().long().to(streamlines.points.device))


def dense(streamlines: Streamlines, step: float) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p 3"]]:
    """Points no farther than ``step`` mm apart along every streamline, and the unit direction at each."""
    points = streamlines.points.detach().cpu().to(torch.float32)
    owner = streamlines.streamline_of_point.cpu()
    same = owner[1:] == owner[:-1]
    start, move = points[:-1][same], points.diff(dim=0)[same]
    length = move.norm(dim=-1)
    # Very long steps are one broken streamline, not millions of pixels.
    count = (length / step).ceil().long().clamp(1, 2000)
    which = torch.repeat_interleave(torch.arange(len(count)), count)
    within = torch.arange(len(which)) - torch.repeat_interleave(count.cumsum(0) - count, count)
    part = (within / count[which])[:, None]
    unit = move / length.clamp(min=1e-9)[:, None]
    return start[which] + part * move[which], unit[which]


def splat(
    points: Float[Tensor, "p 3"],
    directions: Float[Tensor, "p 3"],
    plane: Plane,
    step: float,
    size: tuple[int, int],
    depth_box: Box | None,
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Points projected onto a plane, the nearest to the viewer on top, as colours on black and their cover.

    With ``depth_box`` brightness falls from its near side to its far side.
    """
    view, factor = plane.view, _SUPERSAMPLE
    height, width = size[0] * factor, size[1] * factor
    pixel_size = step / factor
    lower = plane.box.lower
    rows_mm = plane.shape(step)[0] * step
    column = ((points[:, view.across] - lower[view.across]) / pixel_size).floor().long()
    row = ((rows_mm - (points[:, view.up] - lower[view.up])) / pixel_size).floor().long()
    seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    near = points[seen, view.normal] * toward_viewer(view)
    pixel = row[seen] * width + column[seen]
    depth = torch.full((height * width,), -torch.inf)
    depth.scatter_reduce_(0, pixel, near, "amax")
    winner = near >= depth[pixel]
    colour = torch.zeros(height * width, 3)
    tone = directions[seen][winner].abs()
    if depth_box is not None:
        low, high = depth_box.lower[view.normal], depth_box.upper[view.normal]
        far = min(low * toward_viewer(view), high * toward_viewer(view))
        tone = tone * (0.25 + 0.75 * ((near[winner] - far) / max(high - low, 1e-6)).clamp(0, 1))[:, None]
    colour[pixel[winner]] = tone
    picture = colour.reshape(size[0], factor, size[1], factor, 3).mean((1, 3))
    cover = torch.isfinite(depth).to(torch.float32).reshape(size[0], factor, size[1], factor).mean((1, 3))
    # Averaged colours of partly covered pixels are already weighted; divide so that cover can blend them.
    return (
        picture / cover.clamp(min=1e-6)[..., None] * (1 if depth_box is None else cover[..., None])
    ).numpy(), cover.numpy()


def interactive(
    streamlines: Streamlines,
    background: Image | None = None,
    mask: Image | None = None,
    *,
    run: str = "",
    section: str = "tractogram",
    desc: str = "tractogram3d",
    title: str = "Tractogram in three dimensions",
    n_total: int | None = None,
    max_streamlines: int = 2000,
) -> Reportlet:
    """A view that can be rotated: at most ``max_streamlines`` streamlines and three slices, as data for the page's viewer."""
    shown = evenly(streamlines, max_streamlines)
    box = _box_for(shown, background, mask)
    slices = _slices(background, mask, box)
    data = {**_encoded(shown, box), "slices": slices, "box": {"lower": box.lower, "upper": box.upper}}
    buttons = "".join(
        f'<button type="button" data-view="{name}">{escape(label)}</button>'
        for name, label in (
            ("left", "Left"), ("right", "Right"), ("front", "Front"), ("behind", "Behind"), ("above", "Above"), ("below", "Below"), ("oblique", "Oblique"),
        )
    )  # fmt: skip
    payload = json.dumps(data).replace("<", "\\u003c")
    toggles = "".join(
        f'<label><input type="checkbox"{" checked" if part["shown"] else ""}> {part["name"]} ({part["label"]} mm)</label>'
        for part in slices
    )
    shown_slices = f"<span>Slices:</span>{toggles}" if slices else ""
    body = (
        f'<div class="viewer3d"><div class="viewer3d-bar">View from: {buttons}{shown_slices}</div>'
        '<div class="viewer3d-plot"><p>The view is drawn when it is scrolled to.</p></div>'
        f'<script type="application/json">{payload}</script></div>'
    )
    caption = f"{_sentence(streamlines, len(shown), n_total)} Drag to rotate, scroll to zoom, right-drag to move. {_COLOURS} Letters mark the patient's sides."
    return Reportlet(stem(run, desc, "tractogram"), section, title, caption, body, "html", run)


def _box_for(streamlines: Streamlines, background: Image | None, mask: Image | None) -> Box:
    if background is not None:
        return box_of(background, mask, margin=4.0)
    if len(streamlines.points) == 0:
        return Box((-90.0, -120.0, -70.0), (90.0, 90.0, 90.0))
    low, high = streamlines.points.amin(0).tolist(), streamlines.points.amax(0).tolist()
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _encoded(streamlines: Streamlines, box: Box) -> dict[str, object]:
    """Points about `_SPACING` mm apart as 16-bit steps of `_UNIT` mm from the box's centre, little-endian, base64."""
    centre = torch.tensor(box.centre, dtype=torch.float32)
    lines, counts = [], []
    for line, length in zip(streamlines, streamlines.lengths().tolist(), strict=True):
        if len(line) < 2:
            continue
        keep = max(2, min(len(line), round(length / _SPACING) + 1, 120))
        chosen = line[torch.linspace(0, len(line) - 1, keep).round().long()].detach().cpu().to(torch.float32)
        lines.append(chosen)
        counts.append(keep)
    steps = (torch.cat(lines) - centre) / _UNIT if lines else torch.zeros(0, 3)
    raw = steps.round().clamp(-32767, 32767).numpy().astype("<i2").tobytes()
    return {"points": base64.b64encode(raw).decode(), "counts": counts, "unit": _UNIT, "centre": centre.tolist()}


def _slices(background: Image | None, mask: Image | None, box: Box, step: float = 2.0) -> list[dict[str, object]]:
    """Grey slices, the axial one low and the others through the box's centre, with the world position of their first pixel and of the next ones."""
    if background is None:
        return []
    scale = scale_of(background, "", mask)
    out: list[dict[str, object]] = []
    for view in VIEWS:
        # A low axial slice is a floor that hides nothing; the others are shown on request.
        height = 0.3 if view is AXIAL else 0.5
        plane = Plane(view, box.lower[view.normal] + height * box.size[view.normal], box)
        values = np.nan_to_num(cut(background, plane, step)[..., 0].numpy())
        grey = (np.clip((values - scale.low) / (scale.high - scale.low), 0, 1) * 255).astype(np.uint8)
        where = plane.points(step)
        corner = where[0, 0]
        down = where[1, 0] - corner if where.shape[0] > 1 else torch.zeros(3)
        across = where[0, 1] - corner if where.shape[1] > 1 else torch.zeros(3)
        out.append({
            "name": view.name, "label": plane.label(), "shown": view is AXIAL, "pixels": base64.b64encode(grey.tobytes()).decode(), "shape": list(grey.shape),
            "corner": corner.tolist(), "down": down.tolist(), "across": across.tolist(),
        })  # fmt: skip
    return out
