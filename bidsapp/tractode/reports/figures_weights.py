"""Streamline weights: what equal and fitted weights explain of the data, how the weights are spread, and where the fit is poor."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from tractode.fields import Image
from tractode.reports.canvas import ColourScale, encode, new_figure
from tractode.reports.figures_slices import mosaic
from tractode.reports.reportlet import Reportlet, stem
from tractode.tracking.weight_fit import WeightFit

_WORDS = {
    "fod": ("fibre density of a fixel", "each fibre population's density (the integral of its FOD lobe)", "weight"),
    "signal": ("signal", "the diffusion-weighted signal of each voxel and direction", "weight (mm²)"),
}
_BINS = 120


def weights_panel(
    fit: WeightFit, background: Image, mask: Image, *, run: str = "", track: str = "", section: str = "weights"
) -> list[Reportlet]:
    """Data against their explanation before and after, the weights' histogram, and a map of the explained share."""
    what, said, _ = _WORDS[fit.model]
    before, after = fit.statistics()["before"], fit.statistics()["after"]
    zero = float((fit.weights == 0).double().mean())
    caption = (
        f"How well the streamlines explain {said}: with equal weights (left) and with the weights found (middle); colour: how many on a "
        f"logarithmic scale. On the dashed line data and explanation agree. Root mean squared error {before['rmse']:.3g} before, "
        f"{after['rmse']:.3g} after; R² {before['r2']:.2f} before, {after['r2']:.2f} after, {after['n']:,} values that any streamline reaches. Right: the weights of "
        f"{len(fit.weights):,} streamlines, {zero:.1%} of them 0. {fit.n_iterations} iterations"
        f"{'' if fit.converged else ', stopped before the objective stood still'}."
    )
    panel = Reportlet(
        stem(run, f"{track}weights", "tractogram"), section, f"Streamline weights: {what} before and after", caption,
        encode(_figure(fit, what), 90), run=run, alt="Data against explanation before and after, and histogram of weights",
    )  # fmt: skip
    where = mosaic(
        fit.maps["explained"], mask, desc=f"{track}weightsexplained", section=section, title="Explained share",
        caption=f"Share of each voxel's {what if fit.model == 'signal' else 'squared fibre densities'} that the weighted streamlines explain. "
        "White matter should be bright; dark white matter holds fibres that no streamline follows.",
        run=run, suffix="dwimap", scale=ColourScale(0.0, 1.0, "explained share (no unit)", "inferno"), outlined=False,
    )  # fmt: skip
    return [panel, where]


def _figure(fit: WeightFit, what: str) -> Figure:
    figure = new_figure(1500, 480, "white")
    top = _top(fit.target)
    for column, (title, values) in enumerate((("equal weights", fit.before), ("weights found", fit.after))):
        axes = figure.add_axes((0.055 + 0.325 * column, 0.14, 0.265, 0.75))
        _cloud(axes, fit.target, values, top)
        axes.set_title(title, fontsize=14)
        axes.set_xlabel(what, fontsize=13)
        if column == 0:
            axes.set_ylabel("explained", fontsize=13)
    _histogram(figure.add_axes((0.715, 0.14, 0.27, 0.75)), fit)
    return figure


def _top(target: Float[Tensor, " e"]) -> float:
    """The end of both axes: nearly all the data are below it."""
    if not len(target):
        return 1.0
    values = target[:: max(1, len(target) // 1_000_000)].float()
    return max(1.15 * float(torch.quantile(values, 0.998)), 1e-6)


def _cloud(axes: Axes, target: Float[Tensor, " e"], explained: Float[Tensor, " e"], top: float) -> None:
    # What lies beyond the picture is drawn at its edge, so that nothing is hidden.
    x, y = (np.clip(values.numpy(), 0, top * 0.9999) for values in (target, explained))
    counts, edges, _ = np.histogram2d(x, y, bins=_BINS, range=((0, top), (0, top)))
    shown = np.ma.masked_equal(counts.T, 0)
    if counts.any():
        axes.pcolormesh(edges, edges, shown, norm=LogNorm(1, max(float(counts.max()), 2.0)), cmap="viridis")
    axes.plot([0, top], [0, top], "--", color="#dc2626", lw=1.4)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _histogram(axes: Axes, fit: WeightFit) -> None:
    weights = fit.weights.numpy()
    positive = weights[weights > 0]
    if len(positive):
        low, high = (float(x) for x in np.quantile(positive, (0.002, 0.998)))
        bins = np.geomspace(max(low, high * 1e-4, 1e-12), max(high, low * 1.01, 1e-11), 61)
        axes.hist(np.clip(positive, bins[0], bins[-1]), bins=bins.tolist(), color="#2563eb")
        axes.set_xscale("log")
    axes.set_title("weights above 0", fontsize=14)
    axes.set_xlabel(_WORDS[fit.model][2], fontsize=13)
    axes.set_ylabel("streamlines", fontsize=13)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
