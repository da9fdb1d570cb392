"""The group level of the command line."""

from __future__ import annotations

from tractode.cli import folders
from tractode.cli.logs import logging_to
from tractode.settings import Settings


def run_group(settings: Settings) -> int:
    """Write the group's table and page; ``bids_dir`` is not looked at."""
    from tractode.workflows.group import write_group

    if settings.output_dir.is_dir():
        folders.check_output(settings.output_dir)
    with logging_to(None, settings.verbosity):
        result = write_group(settings.output_dir, settings.participants)
    for path in (result.table, result.dictionary, result.page, *result.responses):
        print(path)
    for note in result.notes:
        print(f"Note: {note}")
    return 0
