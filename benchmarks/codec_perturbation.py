"""Noise on latents, relative to the latent's own spread, before and after the bottleneck: how far the decoded lines move.

The paper adds a constant to the decoder's input, whatever its spread, and shows pictures. Here every number gets normal noise of
a given share of its own standard deviation (of its channel, for pictures) over the test groups. A codec whose numbers are all
needed moves more than one that spreads the same knowledge over many: the numbers a streamline has are told beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from codec_coders import Coder, Latents
from codec_scores import Record, distances
from codec_test_set import TestSet

LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def perturbation(coder: Coder, tests: TestSet, n_groups: int) -> Record:
    """Error in mm at each level, against the true lines, and how far the lines moved from those without noise."""
    chosen = torch.linspace(0, len(tests.lines) - 1, n_groups).long().unique()
    one = TestSet(
        tests.names, tests.lines[chosen], tests.truth[chosen], tests.bundle[chosen], tests.n_persons, tests.n_distinct
    )
    truth = one.truth.flatten(0, 1)
    before = coder.before(one.streamlines())
    after = coder.after(before)
    still = coder.lines(after)
    found: Record = {
        "noise": list(LEVELS), "n": len(truth),
        "numbers_per_streamline": {"before": before.numel() / len(truth), "after": after.numel() / len(truth)},
    }  # fmt: skip
    for place, latents in (("before", before), ("after", after)):
        told: Record = {"error_mm": [], "moved_mm": []}
        for level in LEVELS:
            generator = torch.Generator().manual_seed(round(1000 * level))
            noisy = latents + level * _spread(latents) * torch.randn(latents.shape, generator=generator)
            lines = coder.lines(coder.after(noisy) if place == "before" else noisy)
            told["error_mm"].append(round(float(distances(lines, truth).mean()), 4))
            told["moved_mm"].append(round(float(distances(lines, still).mean()), 4))
        found[place] = told
    return found


def _spread(latents: Latents) -> Latents:
    """The standard deviation of each number, or of each channel of a picture."""
    if latents.ndim == 2:
        return latents.std(0)
    return latents.transpose(0, 1).flatten(1).std(1).reshape(1, -1, *(1,) * (latents.ndim - 2))


def drawn(results: Record, names: Sequence[str], path: Path) -> None:
    """Both places side by side, all models."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    colours = plt.get_cmap("tab10")
    families = list(dict.fromkeys(name.partition("_faithful")[0] for name in names))
    for name in names:
        colour = "black" if name == "tractode" else colours(families.index(name.partition("_faithful")[0]) % 10)
        style = "--" if name.endswith("_faithful") else "-"
        for axis, place in zip(axes, ("before", "after"), strict=True):
            axis.plot(
                results[name]["noise"], results[name][place]["error_mm"], style, color=colour, marker="o", markersize=3,
                linewidth=2.2 if name == "tractode" else 1.3, label=name.replace("_faithful", " (as published)"),
            )  # fmt: skip
            axis.set_title(f"noise {place} the bottleneck")
            axis.set_xlabel("noise, share of each number's standard deviation")
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean point error, mm")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
