"""What became of a participant's run: computed from the ledger, never from the absence of an exception."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tractode.bids.manifest import Ledger


@dataclass(frozen=True)
class Outcome:
    """``complete`` means that every promised step left its outputs and that their bytes are as written.

    ``errors`` are the records of `TractodeError`, each with the step it happened in; ``missing`` are promised steps
    without an intact result, those that only waited for a failed one included.
    """

    participant: str
    complete: bool
    errors: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    runs: dict[str, bool] = field(default_factory=dict)


def outcome(output_dir: Path, participant: str) -> Outcome:
    """Verify a participant's promises against the files on disk."""
    ledger = Ledger(output_dir, participant)
    steps = ledger.plan()["steps"]
    missing = ledger.unkept()
    runs: dict[str, bool] = {}
    for entry in steps:
        runs[entry["run"]] = runs.get(entry["run"], True) and entry["step"] not in missing
    return Outcome(participant, bool(steps) and not missing, ledger.errors(), missing, runs)
