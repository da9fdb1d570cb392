"""From what became of every participant to one exit code and one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tractode.errors import InternalError, TractodeError
from tractode.workflows.outcome import Outcome

MIXED = 1


def exit_code(codes: Iterable[int]) -> int:
    """0 for none, the cause's code where all failures share one, else 1."""
    distinct = {code for code in codes if code}
    if not distinct:
        return 0
    return distinct.pop() if len(distinct) == 1 else MIXED


def errors_of(outcome: Outcome) -> list[dict[str, Any]]:
    """The errors of a participant. Promises not kept without any error are an error of ours: never silent."""
    if outcome.errors or outcome.complete:
        return list(outcome.errors)
    missing = ", ".join(outcome.missing[:5]) or "everything"
    silent = InternalError(
        f"Outputs are missing and no step reported an error: {missing}",
        id="E-BUG-INCOMPLETE",
        fix="please report it with the crash bundle",
    )
    return [{"step": "", **silent.record()}]


def text_of(record: Mapping[str, Any]) -> str:
    """An error record as the one line that `TractodeError` makes."""
    return str(
        TractodeError(
            str(record.get("found", "")),
            id=str(record.get("id", "E-UNKNOWN")),
            needed=str(record.get("needed", "")),
            fix=str(record.get("fix", "")),
            path=record.get("path") or None,
        )
    )


def print_table(
    outcomes: Sequence[Outcome], locked: Mapping[str, TractodeError], console: Console | None = None
) -> None:
    """One row a run: complete or not, and why."""
    table = Table("participant", "run", "result", "why", title="tractode", title_justify="left")
    for outcome in outcomes:
        errors = errors_of(outcome)
        runs = outcome.runs or {"": outcome.complete}
        for run, is_complete in runs.items():
            why = [
                f"{record.get('id')} ({record.get('exit_code')})"
                for record in errors
                if _concerns(record, run, outcome)
            ]
            table.add_row(
                f"sub-{outcome.participant}",
                run,
                "complete" if is_complete and not why else "failed",
                "\n".join(dict.fromkeys(why)),
            )
        for record in errors:
            if not any(_concerns(record, run, outcome) for run in runs):
                table.add_row(
                    f"sub-{outcome.participant}",
                    str(record.get("step", "")),
                    "failed",
                    f"{record.get('id')} ({record.get('exit_code')})",
                )
    for label, error in locked.items():
        table.add_row(f"sub-{label}", "", "locked", f"{error.id} ({error.exit_code})")
    (console or Console(soft_wrap=True)).print(table)


def _concerns(record: Mapping[str, Any], run: str, outcome: Outcome) -> bool:
    """Whether an error happened in a step of this run: steps are named ``<run>_<step>``."""
    step = str(record.get("step", ""))
    owners = [name for name in outcome.runs if step == name or step.startswith(f"{name}_")]
    return (bool(owners) and max(owners, key=len) == run) or (not step and not outcome.runs)
