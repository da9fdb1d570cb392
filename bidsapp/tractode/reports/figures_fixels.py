"""Fixels as sticks on slices: direction by colour, fibre density by length and opacity."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.collections import LineCollection
from torch import Tensor

from tractode.fields import Image
from tractode.reports.canvas import Sheet, Tile, draw_sheet, encode
from tractode.reports.figures_slices import scale_of
from tractode.reports.planes import VIEWS, Box, Plane, View, box_of, cut
from tractode.reports.reportlet import Reportlet, stem

_DIM = 0.45  # the background is darkened so that sticks stand out
_FAINTEST = 0.3


def sticks(
    peaks: Image, densities: Image, mask: Image, *, run: str, section: str = "fod", model: str = ""
) -> list[Reportlet]:
    """An axial, a coronal and a sagittal plane through the mask's centre.

    ``peaks`` has three components a fixel (RAS+), ``densities`` one; the background is the densities' sum.
    """
    box = box_of(mask, mask, margin=2.0)
    total = Image(densities.grid, densities.values.sum(0, keepdim=True))
    # All densities of a voxel count for the scale, so that a crossing's sticks are as long as they are dense.
    known = densities.values[0][mask.mask & (densities.values[0] > 0)].float()
    scale = float(torch.quantile(known[:: max(1, len(known) // 100_000)], 0.9)) if len(known) else 1.0
    shown = []
    for view in VIEWS:
        picture, position, spacing = _plane(peaks, densities, total, mask, box, view, scale)
        caption = (
            f"{view.name.capitalize()} plane at {view.coordinate} = {position:.0f} mm seen from {view.seen_from}; the fixels of one voxel each "
            f"{spacing:.1f} mm. Direction is that of the peak (colour: red left-right, green front-back, blue up-down), length and "
            "opacity show the fibre density; a stick that points at the viewer is short. Sticks should line up from voxel to "
            "voxel, be single in the callosum, cross where bundles cross, and be short or absent in grey matter and CSF."
        )
        shown.append(
            Reportlet(
                stem(run, f"{model}fixels{view.name}", "dwimap"), section, f"Fixels of {model}, {view.name}", caption,
                picture, run=run, alt=f"Fixels of {model} as sticks, {view.name} plane",
            )
        )  # fmt: skip
    return shown


def _plane(
    peaks: Image, densities: Image, total: Image, mask: Image, box: Box, view: View, scale: float
) -> tuple[bytes, float, float]:
    spacing = float(np.mean(peaks.grid.voxel_sizes))
    position = box.centre[view.normal]
    plane, cell = Plane(view, position, box).in_cells(spacing)
    rows, columns = plane.shape(spacing)
    tile = Tile(plane, 0, 0, rows * cell, columns * cell)
    sheet = Sheet((tile,), tile.width, tile.height + 20, spacing / cell)
    canvas = sheet.blank()
    grey = scale_of(total, "", mask)(np.nan_to_num(cut(total, plane, spacing / cell)[..., 0].numpy())) * _DIM
    sheet.paste(canvas, tile, grey[: tile.height, : tile.width])
    figure, axes = draw_sheet(sheet, canvas)
    # A voxel's fixels have no partners in the next voxel to be interpolated with: the nearest voxel's are drawn.
    inside = cut(Image(mask.grid, mask.values.float()), plane, spacing, "nearest") > 0.5
    found = cut(peaks, plane, spacing, "nearest") * inside
    lines, colours = _segments(found, cut(densities, plane, spacing, "nearest") * inside, view, scale, cell)
    axes.add_collection(
        LineCollection(
            list(lines), colors=[tuple(colour) for colour in colours], linewidths=max(0.8, cell / 11), capstyle="round"
        )
    )
    return encode(figure, 84), position, spacing


def _segments(
    peaks: Float[Tensor, "h w c"], densities: Float[Tensor, "h w k"], view: View, scale: float, cell: int
) -> tuple[Float[np.ndarray, "s 2 2"], Float[np.ndarray, "s 4"]]:
    """Ends of the sticks in pixels and their colours, the faintest first."""
    axes = torch.nn.functional.normalize(peaks.unflatten(-1, (-1, 3)), dim=-1)
    share = (densities / scale).clamp(0, 1.2) * (axes.norm(dim=-1) > 0.5)
    row, column, k = (share > 0).nonzero().unbind(-1)
    share, axes = share[row, column, k], axes[row, column, k]
    order = share.argsort(stable=True)
    row, column, share, axes = row[order], column[order], share[order], axes[order]
    middle = torch.stack([(column + 0.5) * cell, (row + 0.5) * cell], -1)
    # Rows count downwards.
    half = torch.stack([axes[:, view.across], -axes[:, view.up]], -1) * (0.5 * cell * share)[:, None]
    opacity = (_FAINTEST + (1 - _FAINTEST) * share).clamp(max=1)
    colours = torch.cat([axes.abs(), opacity[:, None]], -1)
    return torch.stack([middle - half, middle + half], 1).numpy(), colours.numpy()
