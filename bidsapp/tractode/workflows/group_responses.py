"""Response functions of a group: the average over the participants in an output folder, and where a run finds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tractode.bids.manifest import Ledger
from tractode.errors import InputDataError, MissingInputError
from tractode.interfaces.responses import TISSUES
from tractode.io.response import load_response, save_response
from tractode.models.tissue_response import mean_response
from tractode.settings import Settings

_SUFFIX = "response.txt"


def group_file(output_dir: Path, label: str, tissue: str) -> Path:
    """Where the group level puts the average of a model's tissue."""
    return output_dir / f"group_model-{label}_desc-{tissue}_{_SUFFIX}"


def response_files(settings: Settings, label: str) -> list[str]:
    """The files that a model's responses come from, white matter first; empty where the scan itself tells.

    Raises
    ------
    MissingInputError
        The group's are asked for and were not made.
    """
    if not settings.response_group:
        return list(settings.response)
    for tissues in sorted(TISSUES.values(), key=len, reverse=True):
        paths = [group_file(settings.output_dir, label, tissue) for tissue in tissues]
        if all(path.is_file() for path in paths):
            return [str(path) for path in paths]
    raise MissingInputError(
        f"The output folder has no average response of {label}",
        id="E-RESPONSE-AVERAGE",
        path=settings.output_dir,
        needed="the group level, after participants were fitted with their own responses",
        fix="run without --response-group for all participants, then the group level, then again with --response-group",
    )


def average_responses(output_dir: Path, ledgers: Sequence[Ledger]) -> tuple[list[Path], list[str]]:
    """Write the average of every model's tissues over all runs that estimated theirs; the files, and what had no average."""
    found: dict[tuple[str, str], list[Path]] = {}
    for ledger in ledgers:
        for record in ledger.records():
            # A run that was fitted with given responses says nothing of its own.
            for role in record.facts.get("own_responses", []):
                label, tissue = str(record.facts["label"]), role.removeprefix("response-")
                found.setdefault((label, tissue), []).append(output_dir / record.roles[role])
    written, notes = [], []
    for (label, tissue), paths in sorted(found.items()):
        target = group_file(output_dir, label, tissue)
        target.unlink(missing_ok=True)  # what is there may be of participants that are gone
        try:
            save_response(mean_response([load_response(path, tissue) for path in sorted(paths)]), target)
            written.append(target)
        except InputDataError as error:
            notes.append(f"No average response of {label}, {tissue}: {error.found}")
    return written, notes
