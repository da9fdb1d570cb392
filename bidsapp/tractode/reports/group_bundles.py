"""The group page's map of bundles: a point for each bundle of each participant, where its latent lies."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from tractode.evaluate.latent_map import FEWEST_FOR_TSNE, MOST_FOR_TSNE, neighbour_map, principal_plane
from tractode.reports.bundle_colours import colour_of, short
from tractode.reports.canvas import encode, new_figure


def bundle_map(bundles: Sequence[str], latents: Float[Tensor, "n d"]) -> tuple[str, str]:
    """The picture as the text of an ``src`` attribute, and its caption; ``bundles`` names the bundle of each latent."""
    plane, (first, second) = principal_plane(latents)
    near = neighbour_map(latents)
    across = 1 if near is None else 2
    figure = new_figure(760 * across, 700, "white")
    left = figure.add_axes((0.1 / across, 0.08, 0.88 / across, 0.88))
    _scatter(left, bundles, plane.numpy())
    left.set_xlabel(f"first principal component ({first:.0%} of the variance)", fontsize=10)
    left.set_ylabel(f"second ({second:.0%})", fontsize=10)
    if near is not None:
        right = figure.add_axes((0.5 + 0.04 / across, 0.08, 0.92 / across, 0.88))
        _scatter(right, bundles, near.numpy())
        right.set_xticks([])
        right.set_yticks([])
        right.set_xlabel("t-SNE: neighbours only, distances between far groups mean nothing", fontsize=10)
    caption = (
        f"One point for each of {len(bundles):,} bundles of all participants and methods: the codec's latent of the bundle's mean course, in the colour that the bundle has in every report. "
        "Participants whose bundle lies far from the same bundle of the others deserve a look: it has another shape, the registration is wrong, or it was named wrongly."
    )
    if near is None:
        caption += f" t-SNE needs {FEWEST_FOR_TSNE} to {MOST_FOR_TSNE:,} points."
    return f"data:image/webp;base64,{base64.b64encode(encode(figure, 92)).decode()}", caption


def _scatter(axes: Axes, bundles: Sequence[str], points: Float[np.ndarray, "n 2"]) -> None:
    names = np.asarray(bundles)
    kinds, counts = np.unique(names, return_counts=True)
    for name in kinds:
        mine = points[names == name]
        axes.plot(mine[:, 0], mine[:, 1], "o", ms=5, color=colour_of(str(name)), mec="#1c2430", mew=0.3, alpha=0.9)
    axes.margins(x=0.1)
    reach = max(float(np.ptp(points, axis=0).max()), 1e-6) if len(points) else 1.0
    taken = np.empty((0, 2))
    for name in kinds[np.argsort(-counts, kind="stable")]:
        x, y = np.median(points[names == name], axis=0)
        # A label is wide and low; one that would lie on another is left out, the colour still tells.
        if (np.abs(taken - (x, y)) < (0.16 * reach, 0.022 * reach)).all(1).any():
            continue
        taken = np.vstack([taken, (x, y)])
        axes.annotate(
            short(str(name), 26), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=6, color="#1c2430"
        )
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
