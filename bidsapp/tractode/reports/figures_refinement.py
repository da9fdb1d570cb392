"""Orientation-field refinement: the same planes of glyphs before and after, and how far each voxel changed."""

from __future__ import annotations

from dataclasses import replace

import torch

from tractode.fields import Image, ShField
from tractode.reports.canvas import ColourScale
from tractode.reports.figures_glyphs import fod_glyphs
from tractode.reports.figures_slices import mosaic
from tractode.reports.reportlet import Reportlet
from tractode.tracking.refinement import Refined

_PARTS = {"signal": "signal", "continuity": "fibre continuity", "negative": "negative lobes"}


def before_and_after(
    first: ShField, refined: ShField, background: Image, mask: Image, terms: Refined, *, run: str = "",
    section: str = "refinement",
) -> list[Reportlet]:  # fmt: skip
    """Glyphs of both fields on the same three planes, in pairs, and the map of the change."""
    before = fod_glyphs(first, background, mask, run=run, section=section, desc="unrefined")
    after = fod_glyphs(refined, background, mask, run=run, section=section, desc="refined")
    pairs = []
    for one, two in zip(before, after, strict=True):
        pairs.append(replace(one, title=f"{one.title}, as fitted"))
        pairs.append(replace(two, title=f"{two.title}, refined"))
    return [_change(first, refined, mask, terms, run, section), *pairs]


def _change(first: ShField, refined: ShField, mask: Image, terms: Refined, run: str, section: str) -> Reportlet:
    change = (refined.coeffs - first.coeffs).norm(dim=0) / first.coeffs.norm(dim=0).clamp_min(1e-6)
    inside = mask.mask.to(change.device)
    values = Image(first.grid, torch.where(inside, change, 0.0)[None].cpu())
    parts = "; ".join(
        f"{name} {terms.before[key]:.3g} → {terms.after[key]:.3g}"
        for key, name in _PARTS.items()
        if key in terms.before
    )
    caption = (
        f"How far the FOD moved, relative to its size as fitted (median {float(change[inside].median()):.2f}). Parts of the "
        f"cost before and after: {parts}. Noise: {100 * terms.noise:.1f} % of the mean b=0 signal. Changes should look like "
        "noise, not like anatomy."
    )
    return mosaic(
        values, mask, desc="refinementchange", section=section, title="Change by the refinement", caption=caption,
        run=run, outlined=False, scale=ColourScale(0.0, 1.0, "change over size (no unit)", "inferno"), suffix="dwimap",
    )  # fmt: skip
