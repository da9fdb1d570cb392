"""Pictures of a model's maps, whatever the model: slices, colours, glyphs, tissues, and an overview where there are many maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from tractode.contracts import MapSpec, SignalModel
from tractode.fields import Image, ShField
from tractode.fields.sh import order_of
from tractode.reports import figures_glyphs, figures_slices
from tractode.reports.canvas import draw_sheet, encode, new_figure, rows_sheet
from tractode.reports.figures_slices import NEUROLOGICAL, robust_window
from tractode.reports.planes import VIEWS, Plane, box_of, cut
from tractode.reports.reportlet import Reportlet, stem

_FEW = 6  # up to so many scalar maps each has a picture of its own
_COLUMNS = 4
_PIXELS = 260
_STEP_MM = 1.0
_FRACTION_UNITS = ("fraction", "1")
_TISSUES = ("csf", "gm", "wm")  # red, green, blue, as programs of deconvolution show them
#: Display windows that make pictures of two people comparable, by ``param``.
_WINDOWS = {
    "fa": (0.0, 1.0), "kfa": (0.0, 1.0), "gfa": (0.0, 0.3), "odi": (0.0, 1.0), "icvf": (0.0, 1.0), "isovf": (0.0, 1.0),
    "fwf": (0.0, 1.0), "awf": (0.0, 1.0), "ballvf": (0.0, 1.0), "mk": (0.0, 2.0), "ak": (0.0, 2.0), "rk": (0.0, 3.0),
    "mkt": (0.0, 2.0), "msk": (0.0, 2.0), "md": (0.0, 3e-3), "ad": (0.0, 3e-3), "rd": (0.0, 3e-3), "msd": (0.0, 3e-3),
}  # fmt: skip


def figures(kind: type[SignalModel], image_of: Callable[[str], Image], mask: Image, run: str) -> list[Reportlet]:
    """Every picture of a fitted model; ``image_of`` makes one map at a time, so that not all are in memory together."""
    section = section_of(kind)
    scalars = [spec for spec in kind.maps if spec.components == "scalar"]
    shown: list[Reportlet] = []
    fractions = {
        name: spec for spec in scalars if (name := spec.param.removesuffix("vf")) in _TISSUES and name != spec.param
    }
    if {"wm", "csf"} <= fractions.keys():
        shown.append(tissues({name: image_of(spec.param) for name, spec in fractions.items()}, mask, run, section))
        scalars = [spec for spec in scalars if spec.param.removesuffix("vf") not in _TISSUES]
    if len(scalars) > _FEW:
        shown.append(overview(scalars, image_of, mask, run, section, kind.label))
        scalars = []
    for spec in scalars:
        shown.append(
            figures_slices.scalar_map(
                image_of(spec.param), mask, spec.param, description=spec.description, units=spec.units, run=run,
                model=kind.label, section=section,
            )
        )  # fmt: skip
    params = {spec.param for spec in kind.maps}
    if {"fa", "direction"} <= params:
        fa, direction = image_of("fa"), image_of("direction")
        shown.append(figures_slices.colour_fa(fa, direction, mask, run=run, section=section, model=kind.label))
    harmonics = next((spec.param for spec in kind.maps if spec.components == "sh"), None)
    if harmonics is not None:
        image = image_of(harmonics)
        background = next((name for name in ("afd", "gfa", "qa", "s0") if name in params), None)
        shown += figures_glyphs.fod_glyphs(
            ShField(image.grid, image.values, order_of(len(image.values))),
            Image(image.grid, image.values[:1]) if background is None else image_of(background), mask, run=run, section=section,
            desc="fod" if kind.label == "csd" else f"{kind.label}{harmonics}",
        )  # fmt: skip
    return shown


def section_of(kind: type[SignalModel]) -> str:
    """The section of the report that a model's pictures stand in."""
    return "fod" if {"fod", "wm"} & {spec.param for spec in kind.maps if spec.components == "sh"} else kind.label


def overview(
    specs: Sequence[MapSpec], image_of: Callable[[str], Image], mask: Image, run: str, section: str, model: str
) -> Reportlet:
    """An axial slice of every scalar map, each with its own scale."""
    figure = _panel(specs, image_of, mask)
    legend = " ".join(f"{spec.param}: {spec.description}{_units(spec)}." for spec in specs)
    caption = f"The scalar maps of the model on one axial slice, each with its own scale. {legend} {NEUROLOGICAL}"
    return Reportlet(
        stem(run, f"{model}maps", "dwimap"), section, f"Maps of {model}", caption, encode(figure), run=run,
        alt=f"Axial slices of the maps of {model}",
    )  # fmt: skip


def spread(
    specs: Sequence[MapSpec], image_of: Callable[[str], Image], mask: Image, run: str, model: str
) -> list[Reportlet]:
    """An axial slice of the standard deviation of every map."""
    if not specs:
        return []
    figure = _panel(specs, image_of, mask, windowed=False)
    legend = " ".join(f"{spec.param}: {spec.description}{_units(spec)}." for spec in specs)
    caption = (
        "How far noise alone would move each map, on one axial slice. It should be largest where the signal is weak or the "
        f"model is least determined, and grow smoothly towards the middle of the head. {legend} {NEUROLOGICAL}"
    )
    return [
        Reportlet(
            stem(run, f"{model}sd", "dwimap"), "uncertainty", f"Uncertainty of {model}", caption, encode(figure), run=run,
            alt=f"Axial slices of the standard deviations of {model}",
        )
    ]  # fmt: skip


def tissues(fractions: dict[str, Image], mask: Image, run: str, section: str) -> Reportlet:
    """Tissue fractions as colours: CSF red, grey matter green, white matter blue."""
    first = next(iter(fractions.values()))
    sheet = rows_sheet(box_of(first, mask))
    canvas = sheet.blank()
    for channel, name in enumerate(_TISSUES):
        if name not in fractions:
            continue
        for tile in sheet.tiles:
            values = cut(fractions[name], tile.plane, sheet.step)[..., 0].numpy()[: tile.height, : tile.width]
            rows, columns = slice(tile.y, tile.y + values.shape[0]), slice(tile.x, tile.x + values.shape[1])
            canvas[rows, columns, channel] = np.clip(np.nan_to_num(values), 0, 1)
    figure, _ = draw_sheet(sheet, canvas, None)
    named = {"csf": "red: CSF", "gm": "green: grey matter", "wm": "blue: white matter"}
    caption = (
        f"Signal fractions of the tissues as the deconvolution found them ({'; '.join(named[n] for n in _TISSUES if n in fractions)}). "
        f"Ventricles should be red, the cortex green, the white matter blue. {NEUROLOGICAL}"
    )
    return Reportlet(
        stem(run, "tissues", "dwimap"), section, "Tissue fractions", caption, encode(figure, 90), run=run,
        alt="Tissue fractions as colours, slices",
    )  # fmt: skip


def _panel(specs: Sequence[MapSpec], image_of: Callable[[str], Image], mask: Image, *, windowed: bool = True) -> Figure:
    rows = -(-len(specs) // _COLUMNS)
    figure = new_figure(_COLUMNS * _PIXELS, rows * _PIXELS, "black")
    view = next(view for view in VIEWS if view.name == "axial")
    box = box_of(mask, mask)
    plane = Plane(view, box.centre[view.normal], box)
    inside = mask.mask
    for number, spec in enumerate(specs):
        image = image_of(spec.param)
        values = image.values[:1]
        low, high = robust_window(values[0][inside], high=0.995 if windowed else 0.98)
        window = _WINDOWS.get(spec.param) if windowed else None
        low, high = window or (0.0 if low > 0 and low < 0.5 * high else low, high)
        picture = np.nan_to_num(cut(Image(image.grid, values), plane, _STEP_MM)[..., 0].numpy())
        row, column = divmod(number, _COLUMNS)
        left, bottom = column / _COLUMNS, 1 - (row + 1) / rows
        axes = figure.add_axes((left + 0.005, bottom + 0.12 / rows, 0.99 / _COLUMNS, 0.78 / rows))
        shown = axes.imshow(picture, cmap="inferno", vmin=low, vmax=high, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(spec.param, color="white", fontsize=9, pad=2)
        bar = figure.add_axes((left + 0.2 / _COLUMNS, bottom + 0.09 / rows, 0.6 / _COLUMNS, 0.025 / rows))
        figure.colorbar(shown, cax=bar, orientation="horizontal", ticks=[low, (low + high) / 2, high])
        bar.tick_params(colors="white", labelsize=6, length=2)
        bar.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    return figure


def _units(spec: MapSpec) -> str:
    return "" if spec.units in ("", "arbitrary", *_FRACTION_UNITS) else f" ({spec.units})"
