"""What discovery found: participants with their dwi runs, anatomical images and fieldmaps, and what was wrong or left aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tractode.bids.scan import IgnoredFile
from tractode.errors import TractodeError
from tractode.io.notes import Note


@dataclass(frozen=True)
class AnatFile:
    """An anatomical image. ``sidecars`` are the files its metadata came from."""

    path: Path
    metadata: dict[str, Any]
    entities: dict[str, str]
    modality: str
    session: str | None
    sidecars: tuple[Path, ...] = ()


@dataclass(frozen=True)
class DwiRun:
    """A dwi series with its gradient files; ``name`` is its entities without suffix, unique in the dataset."""

    path: Path
    bval: Path
    bvec: Path
    metadata: dict[str, Any]
    entities: dict[str, str]
    session: str | None
    name: str
    sidecars: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FieldmapFile:
    """An image of the ``fmap`` folder, found but not used yet."""

    path: Path
    entities: dict[str, str]
    suffix: str
    session: str | None


@dataclass(frozen=True)
class Failure:
    """A run (or a whole participant: ``sub-X``) that was found and cannot be processed."""

    name: str
    error: TractodeError


@dataclass(frozen=True)
class Participant:
    """What was found of one participant; ``failures`` are runs that exist and cannot be used."""

    label: str
    anats: tuple[AnatFile, ...] = ()
    runs: tuple[DwiRun, ...] = ()
    fmaps: tuple[FieldmapFile, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def sessions(self) -> tuple[str | None, ...]:
        """Sessions that have a run, in order; ``None`` is the participant without sessions."""
        return tuple(dict.fromkeys(run.session for run in self.runs))


@dataclass(frozen=True)
class Discovery:
    """The answer to one request. Participants come in the order of their labels."""

    participants: tuple[Participant, ...]
    ignored: tuple[IgnoredFile, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(failure for participant in self.participants for failure in participant.failures)
