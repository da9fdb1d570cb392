"""Susceptibility distortion: which correction ran and why, the images before and after, and the field in Hz."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from markupsafe import Markup, escape
from torch import Tensor

from tractode.fields import Image
from tractode.ops import smooth
from tractode.registration.reverse_encoding import EncodedScan, FieldEstimate, undistort
from tractode.reports import figures_registration, figures_slices
from tractode.reports.canvas import ColourScale
from tractode.reports.reportlet import Reportlet, stem

SECTION = "distortion"
METHODS = {
    "reversed": "scans of opposite phase encoding",
    "phasediff": "a phase-difference field map",
    "phases": "a field map of two phases",
    "fieldmap": "a stored field map",
    "anatomy": "registration to the anatomical image along the phase-encoding axis",
    "none": "nothing",
}
_RED = "#ff5252"


def verdict(record: Mapping[str, Any], *, run: str = "") -> Reportlet:
    """What was done and how much it helped; a banner where nothing was."""
    method = METHODS[record["kind"]]
    if record["applied"]:
        banner = f'<p class="banner good">Corrected by {escape(method)}: {escape(record["reason"])}.</p>'
    else:
        banner = f'<p class="banner bad">Not corrected for susceptibility distortion: {escape(record["reason"])}.</p>'
    why = record.get("why", "")
    tried = record["kind"] != "none"
    facts: dict[str, object] = {"method": method if tried else "", "why this one": why if tried else ""}
    facts["link"] = record.get("link")
    facts |= {"phase encoding": record.get("encoding"), "images": ", ".join(record.get("images", []))}
    facts |= {"to be noted": "; ".join(record.get("notes", []))}
    facts |= _numbers(record)
    rows = Markup("").join(
        Markup("<tr><th>{}</th><td>{}</td></tr>").format(key, value) for key, value in facts.items() if value
    )
    body = f'{banner}<table class="facts">{rows}</table>{_fieldmaps(record.get("rows", []))}'
    said = "A field moves what is in the scan along its phase-encoding axis; the correction fetches it back, with its brightness."
    return Reportlet(stem(run, "sdc", "fieldmap"), SECTION, "Correction of distortion", said, body, "html", run)


def _numbers(record: Mapping[str, Any]) -> dict[str, object]:
    """The differences before and after, where they were measured."""
    before, after, turned = (record.get(key) for key in ("before", "after", "turned"))
    if before is None or after is None or not math.isfinite(before):
        return {}
    numbers: dict[str, object] = {"measure": record["measure"], "before": f"{before:.4g}"}
    numbers["after"] = f"{after:.4g} ({(after - before) / before:+.0%})"
    if turned is not None:
        numbers["corrected the wrong way round"] = f"{turned:.4g}"
    return numbers


def _fieldmaps(rows: Sequence[Sequence[str]]) -> Markup:
    """Every field map that was looked at, matched or not."""
    if not rows:
        return Markup("<p>There are no field maps of this participant.</p>")
    lines = Markup("").join(Markup("<tr><td>{}</td><td>{}</td><td>{}</td></tr>").format(*row) for row in rows)
    head = "<thead><tr><th>field map</th><th>link to this run</th><th>use</th></tr></thead>"
    return (
        Markup('<div class="scroll"><table class="facts">')
        + Markup(head)
        + Markup("<tbody>")
        + lines
        + Markup("</tbody></table></div>")
    )


def pair(
    scans: Sequence[EncodedScan], labels: Sequence[str], estimate: FieldEstimate, mask: Image, *, run: str
) -> list[Reportlet]:
    """A scan and one encoded the other way, in turn: as acquired, and corrected. And the field.

    ``mask`` is the brain on the field's grid.
    """
    other = next((n for n, scan in enumerate(scans) if float(scan.direction @ scans[0].direction) <= 0), len(scans) - 1)
    still = Image(estimate.field.grid, torch.zeros_like(estimate.field.values))
    acquired = [undistort(scans[n], still) for n in (0, other)]
    put_right = [undistort(scans[n], estimate.field, estimate.motions[n]) for n in (0, other)]
    names = [labels[0], labels[other]]
    figures = []
    for desc, title, images in (
        ("pairbefore", "Opposite encodings as acquired", acquired),
        ("pairafter", "Opposite encodings, corrected", put_right),
    ):
        figures.append(
            figures_registration.flicker(
                images[0], images[1], [(mask, _RED, "border of the brain after the correction")], fixed_name=names[0],
                moving_name=names[1], title=title, desc=desc, run=run, section=SECTION, suffix="fieldmap", mask=mask,
            )
        )  # fmt: skip
    return [*figures, field(estimate.field, mask, run=run)]


def single(before: Image, after: Image, hz: Image, mask: Image, *, run: str) -> list[Reportlet]:
    """A scan as acquired and corrected, in turn; and the field on its grid."""
    figure = figures_registration.flicker(
        before, after, [(mask, _RED, "border of the brain as acquired")], fixed_name="as acquired", moving_name="corrected",
        title="Mean b=0 image as acquired and corrected", desc="beforeafter", run=run, section=SECTION, suffix="fieldmap",
        mask=mask,
    )  # fmt: skip
    return [figure, field(hz, mask, run=run)]


def field(hz: Image, mask: Image, *, run: str) -> Reportlet:
    """The field in colour, symmetric about 0, as far as 99 % of the brain goes."""
    inside = hz.values[0][mask.mask].abs()
    top = max(float(torch.quantile(inside[:: max(1, len(inside) // 500_000)], 0.99)), 1.0) if len(inside) else 1.0
    within = hz.values[0][mask.mask]
    caption = (
        f"Field in Hz where things really are: median {float(within.median()):+.1f}, half of the brain within "
        f"{_middle(within)} Hz. A constant moves the whole scan along its encoding and is harmless."
    )
    return figures_slices.mosaic(
        hz, mask, desc="field", section=SECTION, title="Field", caption=caption, run=run, suffix="fieldmap",
        scale=ColourScale(-top, top, "field (Hz)", "RdBu_r"), framed=True,
    )  # fmt: skip


def _middle(values: Float[Tensor, " v"]) -> str:
    if not len(values):
        return "0"
    part = values[:: max(1, len(values) // 500_000)]
    low, high = (float(torch.quantile(part, q)) for q in (0.25, 0.75))
    return f"{low:+.1f} to {high:+.1f}"


def against_anatomy(
    anatomy: Image,
    before: Image,
    after: Image,
    mask: Image,
    *,
    run: str,
    modality: str,
    unlikeness: tuple[float, float],
) -> Reportlet:
    """The b=0 image on the anatomical grid, as acquired and corrected, under the borders of the anatomy."""
    old, new = unlikeness
    caption = (
        f"Each is aligned with the {modality} image as well as it goes. Difference of neighbourhood descriptors from it: "
        f"{old:.4f} as acquired, {new:.4f} corrected ({(new - old) / old:+.1%})."
    )
    borders = [
        (mask, _RED, f"border of the brain in {modality}"),
        (_bright(anatomy, mask), "#ffd54a", f"border of the brighter tissue in {modality}"),
    ]
    return figures_registration.flicker(
        before, after, borders, fixed_name="b=0 as acquired", moving_name="b=0 corrected", section=SECTION, mask=mask,
        title=f"Before and after, on the {modality} image", caption=caption, desc=f"{modality}sdc", run=run, suffix="fieldmap",
    )  # fmt: skip


def _bright(anatomy: Image, mask: Image) -> Image:
    """The brighter tissue in the mask, smoothed a little: white matter in a T1w image, fluid in a T2w."""
    values = anatomy.values[:1].to(torch.float32)
    soft = smooth.gaussian(values, (0.7, 0.7, 0.7))
    inside = soft[0][mask.mask]
    if not len(inside):
        return Image(anatomy.grid, torch.zeros_like(soft))
    level = torch.quantile(inside[:: max(1, len(inside) // 500_000)], 0.6)
    return Image(anatomy.grid, ((soft > level) & mask.mask[None]).to(torch.float32))
