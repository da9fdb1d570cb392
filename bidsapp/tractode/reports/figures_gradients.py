"""The gradient table as pictures: where the directions lie, which shells there are, and the verdict of the check."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tractode.fields import GradientTable
from tractode.reports.canvas import encode, new_figure
from tractode.reports.planes import VIEWS, View
from tractode.reports.reportlet import Reportlet, stem

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")


def sphere(
    gtab: GradientTable, verdict: Mapping[str, object] | None = None, *, run: str = "", section: str = "gradients"
) -> Reportlet:
    """Directions on the sphere seen from above, behind and the right, and b-values by volume."""
    figure = _sphere_figure(gtab)
    shells = gtab.shells()
    counts = (
        ", ".join(f"{len(index)} directions at b = {round(b)} s/mm²" for b, index in shells)
        or "no diffusion-weighted volume"
    )
    n_b0 = int(gtab.is_b0.sum())
    nearest = _nearest_angle(gtab)
    spread = f" Smallest angle between two different directions: {nearest:.1f}°." if nearest is not None else ""
    said = (
        f"{n_b0} volume{'' if n_b0 == 1 else 's'} at b = 0 and {counts}. Directions are in the scanner's frame after the BIDS rule; "
        f"filled points lie on the viewer's side, open points are the opposite ends (g and −g measure the same).{spread}"
    )
    if verdict:
        said += f" Verdict of the gradient check: {verdict.get('verdict', 'not run')}."
    return Reportlet(
        stem(run, "gradients", "dwi"), section, "Sampling scheme", said, encode(figure, 90), run=run,
        alt="Diffusion directions on the sphere and b-values by volume",
    )  # fmt: skip


def _sphere_figure(gtab: GradientTable) -> Figure:
    figure = new_figure(1500, 400, "white")
    shells = gtab.shells()
    vectors = gtab.bvecs.detach().cpu().to(torch.float64).numpy()
    for column, view in enumerate(VIEWS):
        axes = figure.add_axes((0.005 + 0.205 * column, 0.03, 0.2, 0.86))
        _globe(axes, view)
        for index, (_, volumes) in enumerate(shells):
            _points(axes, view, vectors[volumes.numpy()], _COLOURS[index % len(_COLOURS)])
    axes = figure.add_axes((0.675, 0.16, 0.315, 0.7))
    bvals = gtab.bvals.detach().cpu().numpy()
    zero = gtab.is_b0.cpu().numpy()
    axes.vlines(np.arange(len(bvals)), 0, bvals, color="#cbd5e1", lw=1)
    axes.plot(np.flatnonzero(zero), bvals[zero], "s", ms=4.5, color="#334155", label="b = 0")
    for index, (b, volumes) in enumerate(shells):
        axes.plot(
            volumes.numpy(),
            bvals[volumes.numpy()],
            "o",
            ms=4,
            color=_COLOURS[index % len(_COLOURS)],
            label=f"b = {round(b)}",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("volume", fontsize=13)
    axes.set_ylabel("b (s/mm²)", fontsize=13)
    axes.tick_params(labelsize=11)
    axes.set_ylim(-0.03 * max(float(bvals.max()), 1.0), 1.25 * max(float(bvals.max()), 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, fontsize=12, loc="upper center")
    axes.set_title("b-value of each volume", fontsize=14)
    return figure


def _globe(axes: Axes, view: View) -> None:
    """An empty sphere in orthographic projection, seen from the view's positive normal side, with its letters."""
    axes.set_aspect("equal")
    axes.set_xlim(-1.24, 1.24)
    axes.set_ylim(-1.24, 1.24)
    axes.set_axis_off()
    turn = np.linspace(0, 2 * np.pi, 181)
    axes.fill(np.cos(turn), np.sin(turn), color="#f1f5f9")
    axes.plot(np.cos(turn), np.sin(turn), color="#94a3b8", lw=1)
    for tilt in (30, 60):
        radius = np.sin(np.deg2rad(tilt))
        axes.plot(radius * np.cos(turn), radius * np.sin(turn), color="#cbd5e1", lw=0.6)
    axes.plot([-1, 1], [0, 0], color="#cbd5e1", lw=0.6)
    axes.plot([0, 0], [-1, 1], color="#cbd5e1", lw=0.6)
    for x, y, letter in ((-1.13, 0, view.left), (1.13, 0, view.right), (0, -1.13, view.bottom), (0, 1.13, view.top)):
        axes.text(x, y, letter, ha="center", va="center", fontsize=15, fontweight="bold", color="#b45309")
    axes.set_title(f"from {view.seen_from}", fontsize=14)


def toward_viewer(view: View) -> float:
    """+1 where the viewer stands on the positive side of the normal: above for axial, at the right for sagittal; behind is −y."""
    return -1.0 if view.normal == 1 else 1.0


def _points(axes: Axes, view: View, vectors: np.ndarray, colour: str) -> None:
    front = vectors[:, view.normal] * toward_viewer(view) >= 0
    for sign, near in ((1.0, front), (-1.0, ~front)):
        axes.plot(
            sign * vectors[near, view.across],
            sign * vectors[near, view.up],
            "o",
            ms=6,
            color=colour,
            mec="white",
            mew=0.6,
        )
        axes.plot(
            -sign * vectors[near, view.across],
            -sign * vectors[near, view.up],
            "o",
            ms=4.5,
            mfc="none",
            mec=colour,
            mew=0.7,
            alpha=0.55,
        )


def _nearest_angle(gtab: GradientTable) -> float | None:
    """Smallest angle between two axes of the table that are not repeats (more than 1° apart), degrees."""
    vectors = gtab.bvecs[~gtab.is_b0].detach().cpu().to(torch.float64)
    if len(vectors) < 2:
        return None
    cosine = (vectors @ vectors.mT).abs().clamp(max=1)
    angles = torch.rad2deg(torch.acos(cosine))[torch.triu(torch.ones(len(vectors), len(vectors), dtype=torch.bool), 1)]
    different = angles[angles > 1.0]
    return float(different.min()) if len(different) else None


def verdict_table(record: Mapping[str, object], *, run: str = "", section: str = "gradients") -> Reportlet:
    """The record of the gradient check, every value shown as it was written."""
    verdict = str(record.get("verdict", "not run")).upper()
    tone = {"PASS": "good", "FAIL": "bad"}.get(verdict, "unsure")
    shown = {key: value for key, value in record.items() if key != "verdict"}
    long: dict[str, object] = {key: shown.pop(key) for key in ("stages", "scores") if key in shown}
    body = (
        f'<p><span class="badge {tone}">{escape(verdict)}</span></p><div class="scroll">{_facts(shown)}'
        f"<details><summary>Stages and scores of all tables</summary>{_facts(long)}</details></div>"
    )
    said = (
        "The check asks whether another permutation or sign of the axes would make the principal directions run more coherently "
        "through white matter. PASS: none does. FAIL: one clearly does. INCONCLUSIVE: the data cannot tell. Nothing is ever changed silently."
    )
    return Reportlet(stem(run, "gradientcheck", "dwi"), section, "Gradient check", said, body, "html", run)


def _facts(record: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(key).replace('_', ' '))}</th><td>{_value(value)}</td></tr>"
        for key, value in record.items()
    )
    return f'<table class="facts">{rows}</table>'


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        cells = "".join(f"<tr><th>{escape(str(k))}</th><td>{_value(v)}</td></tr>" for k, v in value.items())
        return f'<table class="inner">{cells}</table>'
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, Mapping) for item in value):
            return "".join(_value(item) for item in value)
        return str(Markup(", ").join(_value(item) for item in value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(escape(f"{value:.4g}"))
    return str(escape("—" if value is None else str(value)))
