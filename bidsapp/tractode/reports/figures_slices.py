"""Slices of scalar and vector maps: sheets through the whole brain with letters, positions, outlines and colour bars."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from tractode.fields import Image
from tractode.reports.canvas import ColourScale, Sheet, draw_sheet, encode, new_figure, outline, rows_sheet
from tractode.reports.planes import box_of, cut
from tractode.reports.reportlet import Reportlet, stem

NEUROLOGICAL = "Slices are cut along the axes of the scanner or the template; the patient's left (L) is on the left; positions in mm."

# Display windows in the map's own units, chosen once so that pictures of two people can be compared.
_WINDOWS: dict[str, tuple[float, float, str, str, float]] = {
    "fa": (0.0, 1.0, "gray", "FA (no unit)", 1.0),
    "md": (0.0, 3e-3, "gray", "MD (10⁻³ mm²/s)", 1e3),
    "ad": (0.0, 3e-3, "gray", "AD (10⁻³ mm²/s)", 1e3),
    "rd": (0.0, 3e-3, "gray", "RD (10⁻³ mm²/s)", 1e3),
}


def robust_window(values: Float[Tensor, "*v"], low: float = 0.01, high: float = 0.995) -> tuple[float, float]:
    """Quantiles of the finite values; a window of one for constant or empty input."""
    finite = values[torch.isfinite(values)].ravel().to(torch.float32)
    if len(finite) == 0:
        return 0.0, 1.0
    finite = finite[:: max(1, len(finite) // 1_000_000)]
    bottom, top = (float(torch.quantile(finite, q)) for q in (low, high))
    return (bottom, top) if top > bottom else (bottom, bottom + 1.0)


def scale_of(image: Image, label: str, mask: Image | None = None, cmap: str = "gray") -> ColourScale:
    """A window from the values inside the mask, else from those that are not background."""
    values = image.values[0].detach().cpu()
    inside = mask.mask.cpu() if mask is not None and mask.grid.matches(image.grid) else values > 0
    low, high = robust_window(values[inside] if bool(inside.any()) else values)
    return ColourScale(min(low, 0.0) if low < 0.2 * high else low, high, label, cmap)


def paint(sheet: Sheet, image: Image, scale: ColourScale, *, framed: bool = False) -> Float[np.ndarray, "h w 3"]:
    """The first channel of an image on every tile of a sheet; beyond its grid it is 0, or black whatever the scale where ``framed``."""
    canvas = sheet.blank()
    view = Image(image.grid, torch.ones_like(image.values[:1], dtype=torch.float32))
    for tile in sheet.tiles:
        values = cut(image, tile.plane, sheet.step)[..., 0].numpy()[: tile.height, : tile.width]
        if framed:
            share = cut(view, tile.plane, sheet.step)[..., 0].numpy()[: tile.height, : tile.width]
            colours = scale(np.nan_to_num(values / np.maximum(share, 0.5))) * (share > 0.5)[..., None]
        else:
            colours = scale(np.nan_to_num(values))
        sheet.paste(canvas, tile, colours)
    return canvas


def outline_mask(axes: Axes, sheet: Sheet, mask: Image, colour: str, width: float = 0.9) -> None:
    """The border of a mask on every tile."""
    for tile in sheet.tiles:
        inside = cut(mask, tile.plane, sheet.step)[..., 0].numpy()[: tile.height, : tile.width] > 0.5
        outline(axes, tile, inside, colour, width)


def mosaic(
    image: Image,
    mask: Image | None = None,
    *,
    desc: str,
    section: str,
    title: str,
    caption: str,
    units: str = "signal (arbitrary units)",
    run: str = "",
    suffix: str = "dwi",
    outlined: bool = True,
    cmap: str = "gray",
    scale: ColourScale | None = None,
    framed: bool = False,
) -> Reportlet:
    """An image in three rows of slices, with the mask's border where ``outlined``; black beyond its grid where ``framed``."""
    sheet = rows_sheet(box_of(image, mask))
    scale = scale or scale_of(image, units, mask, cmap)
    figure, axes = draw_sheet(sheet, paint(sheet, image, scale, framed=framed), scale)
    said = caption
    if mask is not None and outlined:
        outline_mask(axes, sheet, mask, "#ff5252")
        said += " Red line: border of the brain mask."
    return Reportlet(
        stem(run, desc, suffix),
        section,
        title,
        f"{said} {NEUROLOGICAL}",
        encode(figure),
        run=run,
        alt=f"{title}, slices",
    )


def scalar_map(
    image: Image,
    mask: Image,
    param: str,
    *,
    description: str = "",
    units: str = "",
    section: str = "tensor",
    run: str = "",
    model: str = "tensor",
) -> Reportlet:
    """A model's map inside the mask, in a fixed window where the map has one (FA 0 to 1, diffusivities 0 to 3·10⁻³ mm²/s)."""
    known = _WINDOWS.get(param)
    name = param.upper() if known else (description or param)
    if known:
        low, high, cmap, label, factor = known
        scale = ColourScale(low, high, label, cmap, factor)
    else:
        scale = scale_of(image, f"{param} ({units or 'no unit'})", mask, "inferno")
    inside = image.values[0][mask.mask.to(image.values.device)] if mask.grid.matches(image.grid) else image.values[0]
    median = float(inside.to(torch.float32).median()) * scale.factor if inside.numel() else 0.0
    caption = f"{description or name}. Median inside the mask: {median:.3g} (unit of the colour bar)."
    return mosaic(
        image, mask, desc=f"{model}{param}", section=section, title=name, caption=caption, run=run, outlined=False,
        scale=scale, suffix="dwimap",
    )  # fmt: skip


def colour_fa(
    fa: Image, direction: Image, mask: Image, *, run: str = "", section: str = "tensor", model: str = "tensor"
) -> Reportlet:
    """The principal direction as colour (red left–right, green front–back, blue up–down), as bright as FA."""
    sheet = rows_sheet(box_of(fa, mask))
    weight = fa.values[0].clamp(0, 1) * mask.mask.to(fa.values.device)
    # Directions have no sign and cannot be interpolated; their absolute components times FA can.
    coloured = Image(fa.grid, direction.values.abs() * weight)
    canvas = sheet.blank()
    for tile in sheet.tiles:
        values = cut(coloured, tile.plane, sheet.step).numpy()[: tile.height, : tile.width]
        sheet.paste(canvas, tile, np.clip(np.nan_to_num(values) / 0.7, 0, 1))
    figure, axes = draw_sheet(sheet, canvas, None)
    _colour_key(axes, sheet)
    caption = (
        "Colour: principal diffusion direction in the scanner's frame (red left–right, green front–back, blue up–down); "
        "brightness: FA, full at 0.7. The corpus callosum should be red at the midline, the cingulum green above it, "
        f"the corticospinal tract blue. {NEUROLOGICAL}"
    )
    return Reportlet(
        stem(run, "colourfa" if model == "tensor" else f"{model}colourfa", "dwimap"), section, "Colour FA", caption, encode(figure, 90), run=run,
        alt="Direction-encoded colour FA, slices",
    )  # fmt: skip


def _colour_key(axes: Axes, sheet: Sheet) -> None:
    """A small ball of colours for each plane in the corner of its first tile."""
    radius = 15
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1] / radius
    depth = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    seen: set[str] = set()
    for tile in sheet.tiles:
        view = tile.plane.view
        if view.name in seen or tile.width < 4 * radius:
            continue
        seen.add(view.name)
        colour = np.zeros((*x.shape, 4))
        colour[..., view.across], colour[..., view.up], colour[..., view.normal] = abs(x), abs(y), depth
        colour[..., 3] = x**2 + y**2 <= 1
        left, top = tile.x + 4, tile.y + 4
        axes.imshow(colour, extent=(left, left + 2 * radius, top + 2 * radius, top), zorder=5, aspect="auto")
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(sheet.height, 0)


def volume_profile(signal: Mapping[str, Float[Tensor, " n"]], *, run: str = "", section: str = "dwi") -> Reportlet:
    """Mean signal in the mask volume by volume: ``signal`` maps a legend entry to values, NaN where it has none."""
    figure = new_figure(1100, 280, "white")
    axes = figure.add_axes((0.07, 0.2, 0.91, 0.72))
    for index, (label, values) in enumerate(signal.items()):
        numbers = values.detach().cpu().numpy()
        axes.plot(np.arange(len(numbers)), numbers, "o", ms=4, color=f"C{index}", label=label)
    axes.set_xlabel("volume")
    axes.set_ylabel("mean signal in the mask (a.u.)")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    caption = (
        "Mean signal inside the brain mask, volume by volume. A volume far from the others of its shell may be damaged."
    )
    return Reportlet(
        stem(run, "volumes", "dwi"),
        section,
        "Signal by volume",
        caption,
        encode(figure),
        run=run,
        alt="Mean signal by volume",
    )
