"""Generated streamlines: how sure the model was of them, what it drew of every bundle, and how they compare with tracked ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import escape
from torch import Tensor

from tractode.fields import Image, Streamlines
from tractode.reports.canvas import encode, line_sheet, new_figure
from tractode.reports.figures_tractogram import dense, evenly, splat
from tractode.reports.planes import box_of
from tractode.reports.reportlet import Reportlet, stem

SECTION = "generation"
WHAT_IT_IS = (
    "These streamlines were not tracked. A trained model drew each of them whole: it starts from a streamline of an atlas and moves it to where "
    "the participant's fibre orientations say. It was trained on {trained_on}, and knows only the bundles of its atlas: "
    "what is not among them cannot be drawn, however plain it is in the scan, and a bundle that the participant lacks may be drawn all the same, with little "
    "confidence."
)
_SHOWN = 6000
_COLUMNS = (
    ("Bundle", "Name"),
    ("drawn", "Generated"),
    ("kept", "Accepted"),
    ("share kept", "Acceptance"),
    ("mean confidence", "MeanConfidence"),
    ("spread (mm)", "SpreadMillimetres"),
)


def bundle_panel(
    confidences: Float[Tensor, " d"], generation: Mapping[str, Any], *, run: str, track: str, method: str
) -> list[Reportlet]:
    """A histogram of confidence, and a table of the bundles. ``generation`` is the sidecar's ``StreamlineGeneration``."""
    rows, least = generation["Bundles"], float(generation["MinimumConfidence"])
    kept, drawn = (sum(row[key] for row in rows) for key in ("Accepted", "Generated"))
    weights = generation["Weights"]
    sums = ", ".join(f"{digest[:12]}…" for name, digest in weights["SHA256"].items() if name.endswith(".safetensors"))
    caption = (
        f"{WHAT_IT_IS.format(trained_on=weights['TrainedOn'])} {method} with the weights {weights['Name']} (sha256 {sums}) drew {drawn:,} lines in {generation['Space']}, where the scan was brought by "
        f"registration ({generation['Registration']}); {kept:,} were kept. Histogram: the model's probability that a line is one of this participant's, for every line drawn; "
        f"those below {least:g} (dashed) were left out. {generation['StreamlinesLeavingBrainMask']:,} of the lines kept leave the brain mask somewhere, with "
        f"{generation['ShareOfPointsOutsideBrainMask']:.1%} of all points outside; they were not cut."
    )
    histogram = Reportlet(
        stem(run, f"{track}confidence", "tractogram"), SECTION, "How sure the model was", caption,
        _histogram(confidences.numpy(), least), run=run, alt="Histogram of the confidence of generated streamlines",
    )  # fmt: skip
    shown = sorted((row for row in rows if row["Generated"]), key=lambda row: -row["Accepted"])
    absent = [row["Name"] for row in rows if not row["Generated"]]
    note = f" Never drawn: {', '.join(absent)}." if absent else ""
    table = Reportlet(
        stem(run, f"{track}bundles", "tractogram"), SECTION, f"The {len(shown)} bundles that were drawn",
        "Share kept: lines that were sure enough and passed every rule, of those drawn. Spread: how far repeated draws of one line lie apart (root mean square), which is what the "
        f"model does not know of the place; it does not see its own errors.{note}",
        _table(shown), "html", run,
    )  # fmt: skip
    return [histogram, table]


def _histogram(confidences: Float[np.ndarray, " d"], least: float) -> bytes:
    figure = new_figure(1100, 380, "white")
    axes = figure.add_axes((0.075, 0.17, 0.9, 0.78))
    axes.hist(confidences, bins=np.linspace(0, 1, 41).tolist(), color="#2563eb")
    axes.axvline(least, ls="--", color="#dc2626", lw=1.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("confidence", fontsize=13)
    axes.set_ylabel("lines drawn", fontsize=13)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return encode(figure, 90)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in _COLUMNS)
    lines = (
        "".join(f"<td>{escape(_text(key, row.get(key)))}</td>" for _, key in _COLUMNS)
        for row in rows
    )  # fmt: skip
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<details><summary>Show the table</summary><div class="scroll">{table}</div></details>'


def _text(key: str, value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return {"Acceptance": f"{value:.0%}", "SpreadMillimetres": f"{value:.1f}"}.get(key, f"{value:.2f}")
    return f"{value:,}" if isinstance(value, int) else str(value)


def beside(
    named: Sequence[tuple[str, Streamlines]], background: Image, mask: Image, *, run: str, track: str
) -> Reportlet:
    """The same three views of several tractograms, one under the other, as many lines of each."""
    box = box_of(background, mask, margin=4.0)
    sheet = line_sheet(box, box.centre)
    most = min(_SHOWN, *(max(len(lines), 1) for _, lines in named))
    figure = new_figure(sheet.width, (sheet.height + 8) * len(named))
    for number, (name, lines) in enumerate(named):
        canvas = sheet.blank()
        points, directions = dense(evenly(lines, most), sheet.step / 2)
        for tile in sheet.tiles:
            picture, _ = splat(points, directions, tile.plane, sheet.step, (tile.height, tile.width), box)
            sheet.paste(canvas, tile, picture)
        axes = figure.add_axes((0, 1 - (number + 1) / len(named), 1, 1 / len(named)))
        axes.set_axis_off()
        axes.imshow(canvas, interpolation="none", aspect="auto")
        axes.text(10, 8, name, color="#ffd54a", fontsize=14, fontweight="bold", va="top")
    caption = (
        f"From above, from behind and from the right, {most:,} lines of each, coloured by direction (red left–right, green front–back, blue up–down). "
        "Generated lines look smoother and more complete than tracked ones because the model only draws whole bundles; that is no proof that they are right. "
        "Bundles that are in one row and not in the other are worth a look."
    )
    return Reportlet(
        stem(run, f"{track}beside", "tractogram"), SECTION, "Generated beside tracked", caption, encode(figure, 88),
        run=run, alt="Generated and tracked streamlines from three sides",
    )  # fmt: skip


def comparison_table(comparison: Mapping[str, Any], *, run: str, track: str) -> Reportlet:
    """Each method's lines against the scan, and the density of generated lines against that of tracked ones.

    ``comparison`` is what `CompareGenerated` writes: method → ``alignment``, and for tracked ones ``density``.
    """
    columns = (
        ("in white matter", lambda a: f"{a['in_white_matter']:.0%}", "in_white_matter"),
        ("angle to nearest peak", lambda a: f"{a['angle_deg']:.1f}°", "angle_deg"),
        ("… by chance", lambda a: f"{a['angle_by_chance_deg']:.1f}°", "angle_by_chance_deg"),
        ("FOD along the lines", lambda a: f"{a['amplitude']:.3f}", "amplitude"),
        ("… by chance", lambda a: f"{a['amplitude_by_chance']:.3f}", "amplitude_by_chance"),
    )
    head = "".join(f"<th>{escape(title)}</th>" for title, *_ in (("Method",), *columns, ("density",)))
    body = ""
    for name, facts in comparison.items():
        alignment, density = facts["alignment"], facts.get("density")
        cells = [show(alignment) if alignment[key] is not None else "–" for _, show, key in columns]
        known = density is not None and density["correlation"] is not None
        cells.append(f"{density['correlation']:.2f}" if known else "–")
        body += f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    table = f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    caption = (
        "Means over the length of the lines. White matter: where FA is above 0.2, or the tissue map says so. Peaks: the largest three of each voxel; chance: random directions at the "
        "same places. Trackers follow the peaks by construction, the model does not, so its angle is larger; what matters is how far it is from chance. "
        f"Density: the correlation, over voxels that either visits, of the number of lines with that of {track}; since the model draws its own bundles in its own numbers, 1 is not to be expected."
    )
    name = stem(run, f"{track}comparison", "tractogram")
    return Reportlet(name, SECTION, "Against the scan", caption, f'<div class="scroll">{table}</div>', "html", run)
