"""The verdict on distortion in the report: which correction ran, how much it helped, a banner where none did."""

from __future__ import annotations

from typing import Any

import torch

from tractode.fields import Image, ImageGrid
from tractode.reports import figures_distortion

RECORD: dict[str, Any] = {
    "kind": "phasediff", "why": "a field map serves this run", "link": "no link given: serves the dwi runs of its session",
    "encoding": "j-, 0.05 s", "images": ["a_phasediff.nii.gz"], "notes": [], "applied": True, "reason": "agrees better",
    "measure": "difference", "before": 0.11, "after": 0.10, "turned": 0.12, "rows": [["<b>a</b>", "IntendedFor", "used"]],
}  # fmt: skip


def test_what_ran_and_how_much_it_helped() -> None:
    body = str(figures_distortion.verdict(RECORD, run="sub-01").body)
    assert "banner good" in body
    for said in ("phase-difference field map", "no link given", "0.11", "0.1 (-9%)", "0.12", "IntendedFor"):
        assert said in body
    assert "&lt;b&gt;a&lt;/b&gt;" in body
    assert "<b>a</b>" not in body


def test_a_banner_says_that_nothing_ran_and_why() -> None:
    record = {**RECORD, "kind": "none", "applied": False, "reason": "its sidecar <says> nothing", "rows": []}
    record = {key: value for key, value in record.items() if key not in ("before", "after", "turned", "measure")}
    body = str(figures_distortion.verdict(record, run="sub-01").body)
    assert "banner bad" in body
    assert "Not corrected for susceptibility distortion: its sidecar &lt;says&gt; nothing" in body
    assert "no field maps" in body


def test_the_field_is_shown_in_hz(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((12, 14, 10), oblique_affine, "scan")
    mask = torch.zeros(1, 12, 14, 10)
    mask[:, 3:9, 3:11, 2:8] = 1
    figure = figures_distortion.field(Image(grid, torch.full_like(mask, 12.0)), Image(grid, mask), run="sub-01")
    assert figure.section == "distortion"
    assert "median +12.0" in figure.caption
    assert isinstance(figure.body, bytes)
