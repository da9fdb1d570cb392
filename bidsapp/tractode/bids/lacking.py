"""What is missing from a dataset: nothing to process at all, or a participant without a dwi image; in words for the user."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tractode.bids import names
from tractode.bids.found import Failure, Participant
from tractode.bids.index import Index
from tractode.bids.scan import IgnoredFile
from tractode.errors import MissingInputError, NoMatchError
from tractode.io.notes import Note, warning


def check_something_found(
    found: list[Participant],
    bids_dir: Path,
    sessions: tuple[str, ...],
    index: Index,
    ignored: list[IgnoredFile],
) -> None:
    """Raise where no participant has anything to process, with the likeliest reason."""
    if any(participant.runs or participant.failures for participant in found):
        return
    reasons = {file.reason for file in ignored}
    if sessions and "its session was not asked for" in reasons:
        raise NoMatchError(
            f"No dwi run belongs to session {', '.join(sessions)}",
            id="E-MATCH-SESSION",
            path=bids_dir,
            needed=f"sessions that exist: {', '.join(_sessions_of(ignored)) or 'none, the participants have no sessions'}",
            fix="correct --session-label",
        )
    if index.is_filtered("dwi") and "left out by --bids-filter-file" in reasons:
        raise NoMatchError(
            "The filters match no dwi run",
            id="E-MATCH-FILTER",
            path=bids_dir,
            fix="correct the file given with --bids-filter-file",
        )
    raise MissingInputError(
        f"There is no dwi image for {', '.join('sub-' + participant.label for participant in found[:8])}",
        id="E-DATA-NODWI",
        path=bids_dir,
        needed="sub-*/[ses-*/]dwi/*_dwi.nii.gz",
        fix="see --dry-run for the files that were found and why they were left aside",
    )


def without_dwi(
    found: list[Participant], bids_dir: Path, *, are_asked_for: bool
) -> tuple[list[Participant], list[Note]]:
    """Participants without any run, among others that have some: asked for by name they fail, else they are left out."""
    kept: list[Participant] = []
    left_out: list[str] = []
    for participant in found:
        if participant.runs or participant.failures:
            kept.append(participant)
        elif are_asked_for:
            name = f"sub-{participant.label}"
            error = MissingInputError(
                f"There is no dwi image for {name} among the sessions and files asked for",
                id="E-DATA-NODWI",
                path=bids_dir / name,
                needed=f"{name}/[ses-*/]dwi/*_dwi.nii.gz",
                fix="leave this participant out, or see --dry-run for the files that were left aside",
            )
            kept.append(replace(participant, failures=(Failure(name, error),)))
        else:
            left_out.append(f"sub-{participant.label}")
    if not left_out:
        return kept, []
    shown = ", ".join(left_out[:8]) + (" …" if len(left_out) > 8 else "")
    return kept, [warning("W-DATA-NODWI", f"{len(left_out)} participant(s) without a dwi image are left out: {shown}")]


def _sessions_of(ignored: list[IgnoredFile]) -> list[str]:
    parsed = (names.parse(file.path) for file in ignored if file.reason == "its session was not asked for")
    return sorted({entry[0]["ses"] for entry in parsed if entry and "ses" in entry[0]})
