"""The brain mask of a prepared scan: by several methods, with a word and a picture where they disagree."""

from __future__ import annotations

from collections.abc import Callable

from tractode.bids.found import DwiRun
from tractode.bids.manifest import StepWriter
from tractode.fields import DWI, Image
from tractode.interfaces.step import save_reportlets
from tractode.io.builtin_template import load_builtin
from tractode.io.notes import Note, warning
from tractode.preprocess.mask import dwi_reference
from tractode.preprocess.mask_consensus import MaskVerdict, scan_mask
from tractode.reports import figures_tissues
from tractode.reports.reportlet import Reportlet

_TEMPLATE_MM = 2.0


def voted_mask(
    writer: StepWriter, participant: str, scan: DWI, given: Callable[[Image], Image | None], method: str, run: DwiRun
) -> tuple[Image, list[Note]]:
    """The mask that came with a run, else that of the method; what is to be said of it goes into the facts too.

    Parameters
    ----------
    given
        The mask that came with the run, for an image on its grid; ``None`` where there is none, or it is empty or on another grid.
    """
    reference = dwi_reference(scan)
    came = given(reference)
    if run.mask is not None and came is not None:
        writer.facts["brain_mask"] = {
            "used": ["given"],
            "passed": True,
            "reason": f"{run.mask.name} came with the scan",
        }
        return came, []
    notes: list[Note] = []
    if run.mask is not None:
        text = (
            f"{run.name}: {run.mask.name}, which came with the scan, is empty or lies on another grid, and was not used"
        )
        notes = [warning("W-MASK-GRID", text)]
    verdict = scan_mask(scan, method, lambda: (load_builtin("T1w", _TEMPLATE_MM), load_builtin("mask", _TEMPLATE_MM)))
    writer.facts["brain_mask"] = verdict.record()
    if len(verdict.masks) > 1:
        save_reportlets(writer, participant, [figure(scan, verdict, run.name)])
    if verdict.passed:
        return verdict.mask, notes
    return verdict.mask, [*notes, warning("W-MASK-DOUBT", f"{run.name}: the brain mask is in doubt: {verdict.reason}")]


def figure(scan: DWI, verdict: MaskVerdict, run: str) -> Reportlet:
    """The borders that the methods found, over the mean b=0 image."""
    used = ", ".join(verdict.used)
    return figures_tissues.borders(
        dwi_reference(scan), verdict.mask, dict(verdict.masks), title="Brain mask by several methods", desc="masks",
        run=run, section="dwi", caption=f"{verdict.reason[:1].upper()}{verdict.reason[1:]}. Used: {used}.",
    )  # fmt: skip
