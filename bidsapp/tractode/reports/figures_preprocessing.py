"""What preprocessing did to a run: the steps, the noise, before and after, motion, slices that lost signal, the coils' shading."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tractode.fields import DWI, GradientTable, Image
from tractode.reports import figures_registration, figures_slices
from tractode.reports.canvas import ColourScale, encode, new_figure
from tractode.reports.reportlet import Reportlet, stem

SECTION = "preprocessing"
_MOST_VOXELS = 1200
_CONTRAST = 0.5  # of a voxel's own mean over its shell, at which the carpet is black or white
_TITLES = {
    "denoising": "noise",
    "unringing": "Gibbs ringing",
    "motion": "head motion, eddy currents",
    "outliers": "slices that lost signal",
    "bias": "coil shading (B1 bias)",
    "combining": "runs combined",
}
_AXES = ("left–right", "back–front", "down–up")


@dataclass(frozen=True, eq=False)
class Glance:
    """As much of a series as pictures need.

    Parameters
    ----------
    weighted
        Mean of the volumes of the largest shell (of b=0, if there is none).
    shell
        What that is, in words.
    voxels
        Flat indices of voxels all over the brain, slice by slice.
    sample
        Their signals.
    """

    weighted: Image
    shell: str
    voxels: Int[Tensor, " v"]
    sample: Float[Tensor, "n v"]
    gtab: GradientTable

    @classmethod
    def of(cls, scan: DWI, slice_axis: int = 2, voxels: Sequence[Tensor] = ()) -> Glance:
        """``voxels`` of an earlier glance are looked at again."""
        shells = scan.gtab.shells()
        index = shells[-1][1] if shells else scan.gtab.is_b0.nonzero()[:, 0]
        said = f"{len(index)} volumes at b={shells[-1][0]:.0f} s/mm²" if shells else f"{len(index)} volumes at b=0"
        chosen = voxels[0] if len(voxels) else _spread(scan.mask, slice_axis)
        sample = scan.signal.flatten(1)[:, chosen].cpu()
        return cls(Image(scan.grid, scan.signal[index].mean(0, keepdim=True)), said, chosen, sample, scan.gtab)


def _spread(mask: Bool[Tensor, "i j k"], slice_axis: int) -> Int[Tensor, " v"]:
    """Voxels of the mask, evenly, in the order of their slices."""
    flat = torch.arange(mask.numel()).reshape(mask.shape).movedim(slice_axis, 0).reshape(-1)
    inside = flat[mask.movedim(slice_axis, 0).reshape(-1)]
    return inside[:: max(1, len(inside) // _MOST_VOXELS)]


# --- the steps ------------------------------------------------------------------------------------------------------------


def steps_table(records: Mapping[str, Mapping[str, Any]], *, run: str = "") -> Reportlet:
    """Every step, whether it was done, and how or why not."""
    rows = Markup("").join(
        Markup("<tr><th>{}</th><td>{}</td><td>{}</td></tr>").format(
            _TITLES.get(name, name), "done" if record["done"] else "not done", record["why"]
        )
        for name, record in records.items()
    )
    head = Markup("<thead><tr><th>step</th><th></th><th>how, or why not</th></tr></thead>")
    body = Markup('<div class="scroll"><table class="facts">{}<tbody>{}</tbody></table></div>').format(head, rows)
    said = (
        "In this order. What moves things (motion, eddy currents, distortion) is undone together, in one interpolation."
    )
    return Reportlet(stem(run, "steps", "dwi"), SECTION, "Steps", said, str(body), "html", run)


def noise(sigma: Image, mask: Image, *, run: str = "") -> Reportlet:
    """The noise map."""
    inside = sigma.values[0][mask.mask]
    _, high = figures_slices.robust_window(inside if len(inside) else sigma.values)
    caption = (
        f"Standard deviation of the noise, median in the brain {float(inside.median()) if len(inside) else 0.0:.3g}. It should be "
        "smooth, following the coils; anatomy showing through means that motion or ringing were taken for noise."
    )
    return figures_slices.mosaic(
        sigma, mask, desc="noise", section=SECTION, title="Noise", caption=caption, run=run, outlined=False,
        scale=ColourScale(0.0, high, "noise (signal units)", "viridis"),
    )  # fmt: skip


def before_after(before: Image, after: Image, mask: Image, shell: str, *, run: str = "") -> Reportlet:
    """The mean weighted image as acquired and as given on, in turn."""
    caption = (
        f"Mean of {shell}. After the correction borders should be sharper: volumes that lay apart blur their mean."
    )
    return figures_registration.flicker(
        before, after, [(mask, "#ff5252", "border of the brain mask")], fixed_name="as acquired", moving_name="preprocessed",
        title="Mean weighted image before and after", caption=caption, desc="weighted", run=run, section=SECTION,
        suffix="dwi", mask=mask,
    )  # fmt: skip


def shading(field: Image, mask: Image, *, run: str = "") -> Reportlet:
    """The coils' sensitivity that the scan was divided by."""
    inside = field.values[0][mask.mask]
    low, high = figures_slices.robust_window(inside if len(inside) else field.values)
    top = max(abs(np.log(max(low, 1e-3))), abs(np.log(max(high, 1e-3))), 0.05)
    return figures_slices.mosaic(
        field, mask, desc="bias", section=SECTION, title="Coil shading",
        caption="The factor by which each place is too bright; its mean in the brain is 1. It should know no anatomy.", run=run,
        scale=ColourScale(float(np.exp(-top)), float(np.exp(top)), "factor", "RdBu_r"), framed=True,
    )  # fmt: skip


# --- volume by volume -----------------------------------------------------------------------------------------------------


def motion_traces(
    columns: Mapping[str, Sequence[float]], is_b0: Bool[Tensor, " n"], *, run: str = "", part: str = ""
) -> Reportlet:
    """Shifts, turns, framewise displacement and correlation with the prediction, volume by volume."""
    figure = new_figure(1250, 760, "white")
    n = len(columns["trans_x"])
    rows: list[tuple[str, list[tuple[str, np.ndarray]]]] = [
        ("shift (mm)", [(_AXES[k], np.asarray(columns[f"trans_{c}"])) for k, c in enumerate("xyz")]),
        ("turn (°) about", [(_AXES[k], np.rad2deg(columns[f"rot_{c}"])) for k, c in enumerate("xyz")]),
        ("displacement\n(mm a volume)", [("", np.asarray(columns["framewise_displacement"]))]),
        ("correlation with\nthe prediction", [("", np.asarray(columns["prediction_correlation"]))]),
    ]
    for number, (label, lines) in enumerate(rows):
        axes = figure.add_axes((0.09, 0.775 - 0.235 * number, 0.89, 0.185))
        for colour, (name, values) in enumerate(lines):
            axes.plot(np.arange(n), values, "-", lw=1.3, color=f"C{colour}" if name else "#444444", label=name)
        _mark_b0(axes, is_b0)
        axes.set_ylabel(label, fontsize=9)
        axes.set_xlim(-0.5, n - 0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=number == len(rows) - 1, labelsize=8)
        if lines[0][0]:
            axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 0.97), borderpad=0)
    axes.set_xlabel("volume")
    displacement = np.asarray(columns["framewise_displacement"])
    caption = (
        f"{_of(part)}The head against its mean place in the b=0 volumes. Mean displacement from volume to volume "
        f"{displacement[1:].mean() if n > 1 else 0:.2f} mm, largest {displacement.max():.2f} mm. Grey: b=0 volumes. "
        "A volume that correlates far less with its prediction than others of its shell is damaged."
    )
    title = "Head motion" + (f", {part}" if part else "")
    return Reportlet(
        stem(run, f"motion{_key(part)}", "dwi"), SECTION, title, caption, encode(figure), run=run, alt=title
    )


def slice_map(
    deviation: Float[Tensor, "n s"],
    outliers: Bool[Tensor, "n s"],
    is_b0: Bool[Tensor, " n"],
    *,
    run: str = "",
    part: str = "",
) -> Reportlet:
    """How far every slice's mean lies from its prediction, those that were replaced outlined."""
    values = deviation.mT.numpy()
    figure = new_figure(1250, 420, "white")
    axes = figure.add_axes((0.07, 0.16, 0.83, 0.78))
    picture = axes.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-8, vmax=8, origin="lower", interpolation="none")
    for volume, slice_ in outliers.nonzero().tolist():
        axes.plot(
            [volume - 0.5, volume + 0.5, volume + 0.5, volume - 0.5, volume - 0.5],
            [slice_ - 0.5, slice_ - 0.5, slice_ + 0.5, slice_ + 0.5, slice_ - 0.5], "-", color="black", lw=1.2,
        )  # fmt: skip
    _mark_b0(axes, is_b0, above=True)
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.set_ylim(-0.5, values.shape[0] - 0.5)
    axes.set_xlabel("volume")
    axes.set_ylabel("slice")
    _bar(figure, axes, picture, "standard deviations\nfrom the prediction")
    n = int(outliers.sum())
    caption = (
        f"{_of(part)}Signal of every slice against its prediction from the other volumes, in robust standard deviations: blue has lost "
        f"signal. {n} of {outliers.numel()} slices were replaced{' (black frames)' if n else ''}. Grey, above: b=0 volumes."
    )
    title = "Slices that lost signal" + (f", {part}" if part else "")
    return Reportlet(
        stem(run, f"slices{_key(part)}", "dwi"), SECTION, title, caption, encode(figure), run=run, alt=title
    )


def carpet(before: Sequence[Glance], after: Glance, *, run: str = "") -> Reportlet:
    """Signals of voxels all over the brain, slice by slice downwards, volume by volume along, before and after."""
    figure = new_figure(1250, 760, "white")
    pictures = [np.concatenate([_carpet(glance) for glance in before], axis=1), _carpet(after)]
    for number, (name, values) in enumerate(zip(("as acquired", "preprocessed"), pictures, strict=True)):
        axes = figure.add_axes((0.07, 0.55 - 0.46 * number, 0.83, 0.41))
        shown = axes.imshow(
            values, aspect="auto", cmap="gray", vmin=-_CONTRAST, vmax=_CONTRAST, origin="lower", interpolation="none"
        )
        _mark_b0(axes, after.gtab.is_b0, above=True)
        axes.set_xlim(-0.5, values.shape[1] - 0.5)
        axes.set_yticks([])
        axes.set_ylabel(f"{name}\nvoxels, by slice", fontsize=9)
        axes.tick_params(labelbottom=number == 1, labelsize=8)
        _bar(figure, axes, shown, "signal against the\nvoxel's own mean")
    axes.set_xlabel("volume")
    caption = (
        f"Each row is a voxel of the brain (one in many), lowest slices at the bottom, as a difference from its own mean over the shell, "
        f"±{_CONTRAST:.0%}. Lost slices are dark dashes, a moved head a vertical seam. Grey, above: b=0 volumes."
    )
    return Reportlet(stem(run, "carpet", "dwi"), SECTION, "Carpet", caption, encode(figure), run=run, alt="Carpet plot")


def _carpet(glance: Glance) -> Float[np.ndarray, "v n"]:
    out = torch.zeros_like(glance.sample)
    groups = [glance.gtab.is_b0.nonzero()[:, 0], *(index for _, index in glance.gtab.shells())]
    for index in groups:
        if len(index):
            own = glance.sample[index]
            mean = own.mean(0, keepdim=True)
            out[index] = torch.where(mean > 0, own / mean.clamp_min(1e-9) - 1, 0.0)
    return out.mT.numpy()


def _mark_b0(axes: Axes, is_b0: Bool[Tensor, " n"], *, above: bool = False) -> None:
    """A bar under the b=0 volumes, or over the frame of a picture that a bar would hide part of."""
    low, high = (1.005, 1.035) if above else (0.0, 0.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for volume in is_b0.nonzero()[:, 0].tolist():
        axes.axvspan(volume - 0.5, volume + 0.5, ymin=low, ymax=high, color="#777777", lw=0, clip_on=False)


def _bar(figure: Figure, axes: Axes, picture: Any, label: str) -> None:
    place = axes.get_position()
    beside = figure.add_axes((place.x1 + 0.01, place.y0, 0.012, place.height))
    figure.colorbar(picture, cax=beside).set_label(label, fontsize=9)


def _of(part: str) -> str:
    return f"Of {part}. " if part else ""


def _key(part: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", part)
