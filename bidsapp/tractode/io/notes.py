"""What reading an input had to say: facts and warnings with a stable ID, for the log, the report and the manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """One remark about an input that was nevertheless accepted.

    ``id`` is ``N-…`` for a fact and ``W-…`` for a warning; documented in ``docs/errors.md``.
    """

    id: str
    level: Literal["info", "warning"]
    message: str

    def record(self) -> dict[str, str]:
        """The note as plain data."""
        return asdict(self)


def info(id: str, message: str) -> Note:
    """A fact worth printing."""
    return Note(id, "info", message)


def warning(id: str, message: str) -> Note:
    """Something a person should look at."""
    return Note(id, "warning", message)
