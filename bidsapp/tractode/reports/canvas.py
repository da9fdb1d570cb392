"""Sheets of slices on one canvas, and figures as encoded bytes: plain `Figure` objects, no pyplot state."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from tractode.reports.planes import AXIAL, CORONAL, SAGITTAL, VIEWS, Box, Plane, View, positions

DPI = 100
BACKGROUND = "#000000"
INK = "#e9edf2"
_GAP = 6  # pixels between tiles
_LABEL = 24  # pixels under a tile for its position


@dataclass(frozen=True)
class ColourScale:
    """How numbers become colours, and the words at the colour bar."""

    low: float
    high: float
    label: str
    cmap: str = "gray"
    factor: float = 1.0  # shown number = value × factor, for units such as 10⁻³ mm²/s

    def __call__(self, values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
        unit = np.clip((values - self.low) / max(self.high - self.low, 1e-30), 0, 1)
        return colormaps[self.cmap](unit)[..., :3]


@dataclass(frozen=True)
class Tile:
    """A plane and its top left corner on the canvas, pixels."""

    plane: Plane
    x: int
    y: int
    height: int
    width: int


@dataclass(frozen=True)
class Sheet:
    """Tiles laid out on a canvas at one common scale of ``step`` mm a pixel."""

    tiles: tuple[Tile, ...]
    width: int
    height: int
    step: float

    def blank(self) -> Float[np.ndarray, "h w 3"]:
        canvas = np.empty((self.height, self.width, 3))
        canvas[:] = tuple(int(BACKGROUND[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return canvas

    def paste(self, canvas: Float[np.ndarray, "h w 3"], tile: Tile, picture: Float[np.ndarray, "a b 3"]) -> None:
        canvas[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = picture


def rows_sheet(box: Box, columns: int = 8, width: int = 1560, views: tuple[View, ...] = VIEWS) -> Sheet:
    """One row a view; every row fills the width with as many slices as fit at the common scale."""
    widest = max(box.size[view.across] for view in views)
    narrow = min(box.size[view.across] for view in views)
    step = max(narrow * columns / (width - (_GAP + 1) * columns), widest / width, 0.05)
    tiles: list[Tile] = []
    y = 0
    for view in views:
        rows, cols = Plane(view, 0.0, box).shape(step)
        count = max(1, min(columns, (width + _GAP) // (cols + _GAP)))
        spread = (width - count * cols) / max(count, 1)
        for index, position in enumerate(positions(box, view, count)):
            x = min(int(index * (cols + spread) + spread / 2), width - cols)
            tiles.append(Tile(Plane(view, position, box), max(x, 0), y, rows, min(cols, width)))
        y += rows + _LABEL
    return Sheet(tuple(tiles), width, y, step)


def line_sheet(box: Box, at: tuple[float, float, float], width: int = 1560) -> Sheet:
    """One axial, one coronal and one sagittal plane through a point, side by side."""
    planes = [Plane(view, at[view.normal], box) for view in (AXIAL, CORONAL, SAGITTAL)]
    total = sum(box.size[plane.view.across] for plane in planes)
    step = max(total / (width - 2 * _GAP - 3), 0.05)
    shapes = [plane.shape(step) for plane in planes]
    tallest = max(rows for rows, _ in shapes)
    tiles, x = [], 0
    for plane, (rows, cols) in zip(planes, shapes, strict=True):
        tiles.append(Tile(plane, x, (tallest - rows) // 2, rows, cols))
        x += cols + _GAP
    return Sheet(tuple(tiles), max(width, x - _GAP), tallest + _LABEL, step)


def draw_sheet(
    sheet: Sheet, canvas: Float[np.ndarray, "h w 3"], scale: ColourScale | None = None, *, with_positions: bool = True
) -> tuple[Figure, Axes]:
    """A figure of exactly the canvas's pixels (and a colour bar beside it) with letters and positions in mm."""
    margin = 110 if scale is not None else 0
    width, height = sheet.width + margin, sheet.height + 8
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 4 / height, sheet.width / width, sheet.height / height))
    axes.set_axis_off()
    axes.imshow(canvas, interpolation="none", aspect="auto", extent=(0, sheet.width, sheet.height, 0))
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(sheet.height, 0)
    lettered: set[str] = set()
    for tile in sheet.tiles:
        if with_positions:
            middle = tile.x + tile.width / 2
            axes.text(
                middle,
                tile.y + tile.height + _LABEL / 2,
                f"{tile.plane.label()} mm",
                ha="center",
                va="center",
                color=INK,
                fontsize=10,
            )
        if tile.plane.view.name not in lettered:
            letter_tile(axes, tile)
            lettered.add(tile.plane.view.name)
    if scale is not None:
        _colour_bar(figure, scale, sheet.width / width, 40 / width)
    return figure, axes


def letter_tile(axes: Axes, tile: Tile, size: float = 13) -> None:
    """The four letters of a view at the edges of its tile."""
    view = tile.plane.view
    x0, x1, y0, y1 = tile.x + 3, tile.x + tile.width - 3, tile.y + 2, tile.y + tile.height - 2
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    outlined: dict[str, Any] = {
        "color": "#ffd54a",
        "fontsize": size,
        "fontweight": "bold",
        "path_effects": [withStroke(linewidth=2, foreground="black")],
    }
    axes.text(x0, middle_y, view.left, ha="left", va="center", **outlined)
    axes.text(x1, middle_y, view.right, ha="right", va="center", **outlined)
    axes.text(middle_x, y0, view.top, ha="center", va="top", **outlined)
    axes.text(middle_x, y1, view.bottom, ha="center", va="bottom", **outlined)


def outline(axes: Axes, tile: Tile, inside: Bool[np.ndarray, "h w"], colour: str, width: float = 0.9) -> None:
    """The border of a region drawn on its tile; nothing where the region is empty or fills the tile."""
    if not inside.any() or inside.all():
        return
    x = tile.x + np.arange(inside.shape[1]) + 0.5
    y = tile.y + np.arange(inside.shape[0]) + 0.5
    axes.contour(x, y, inside.astype(float), levels=[0.5], colors=[colour], linewidths=width)


def new_figure(width: int, height: int, face: str = BACKGROUND) -> Figure:
    """A figure of a size in pixels that no global state knows of."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=face)
    FigureCanvasAgg(figure)
    return figure


def encode(figure: Figure, quality: int = 86) -> bytes:
    """The figure as WebP; its artists are dropped so that long runs do not grow."""
    stream = io.BytesIO()
    figure.savefig(
        stream, format="webp", dpi=DPI, facecolor=figure.get_facecolor(), pil_kwargs={"quality": quality, "method": 4}
    )
    figure.clear()
    return stream.getvalue()


def _colour_bar(figure: Figure, scale: ColourScale, left: float, width: float) -> None:
    axes = figure.add_axes((left + width * 0.35, 0.2, width * 0.4, 0.6))
    cmap: Colormap = colormaps[scale.cmap]
    norm = Normalize(scale.low * scale.factor, scale.high * scale.factor)
    bar = figure.colorbar(ScalarMappable(norm, cmap), cax=axes)
    bar.set_label(scale.label, color=INK, fontsize=11)
    bar.ax.tick_params(colors=INK, labelsize=10)
    bar.outline.set_edgecolor("#69717c")
