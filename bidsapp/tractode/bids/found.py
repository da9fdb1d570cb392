"""What discovery found: participants with their dwi runs, anatomical images and field maps, and what was wrong or left aside."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    """A dwi series with its gradient files; ``name`` is its entities without suffix, unique in the dataset.

    Parameters
    ----------
    parts
        The runs that this one is to be made of; its own files are then those of the first.
    done_by
        Who preprocessed it already, in words ("QSIPrep 1.0.0"); empty for a raw scan.
    mask
        The brain mask that came with a preprocessed scan.
    """

    path: Path
    bval: Path
    bvec: Path
    metadata: dict[str, Any]
    entities: dict[str, str]
    session: str | None
    name: str
    sidecars: tuple[Path, ...] = ()
    parts: tuple[DwiRun, ...] = ()
    done_by: str = ""
    mask: Path | None = None

    @property
    def scans(self) -> tuple[DwiRun, ...]:
        """The runs as they were acquired: its parts, or itself."""
        return self.parts or (self,)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read for it, sidecars included."""
        masks = (self.mask,) if self.mask is not None else ()
        own = (path for scan in self.scans for path in (scan.path, scan.bval, scan.bvec, *scan.sidecars))
        return (*own, *masks)


@dataclass(frozen=True)
class FieldmapFile:
    """An image of the ``fmap`` folder. Its gradient table, where an ``epi`` has one, tells which volumes are b=0."""

    path: Path
    entities: dict[str, str]
    suffix: str
    session: str | None
    metadata: dict[str, Any] = field(default_factory=dict)
    sidecars: tuple[Path, ...] = ()
    bval: Path | None = None


@dataclass(frozen=True)
class Encoding:
    """A phase encoding: voxel axis, sign (±1; 0 = not stated), total readout time (s; ``None`` = not stated), how it was come by."""

    axis: int
    sign: int
    readout: float | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        sign = {1: "", -1: "-", 0: "?"}[self.sign]
        return f"{'ijk'[self.axis]}{sign}" + (f", {self.readout:.4g} s" if self.readout else "")


CorrectionKind = Literal["reversed", "phasediff", "phases", "fieldmap", "anatomy", "none"]


@dataclass(frozen=True)
class EncodedFile:
    """One image of a pair of opposite phase encodings: a dwi run's b=0 volumes, or an ``epi`` field map."""

    source: DwiRun | FieldmapFile
    encoding: Encoding

    @property
    def path(self) -> Path:
        return self.source.path


@dataclass(frozen=True)
class Correction:
    """What is to be done about the susceptibility distortion of one run.

    Parameters
    ----------
    scans
        Of a reversed pair: every image, the run itself among them, the same for all runs that share a field.
    maps
        Of a field map: phase difference, two phases or the field, then a magnitude image.
    link, reason
        How the images were found to belong to the run, and why this correction (or none).
    rows
        Every field map looked at: file, how it is linked, what becomes of it.
    """

    run: DwiRun
    kind: CorrectionKind
    reason: str
    encoding: Encoding | None = None
    scans: tuple[EncodedFile, ...] = ()
    maps: tuple[FieldmapFile, ...] = ()
    link: str = ""
    rows: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        images = ", ".join(path.name for path in self.paths)
        said = "; ".join(text for text in (self.reason, self.link) if text)
        if self.kind == "none":
            return f"not corrected: {said}"
        return f"corrected by {self.kind}: {images} ({said})"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The images that tell of the field."""
        return (*(scan.path for scan in self.scans), *(fmap.path for fmap in self.maps))

    @property
    def key(self) -> tuple[str, ...]:
        """The same for runs that one estimate of the field serves."""
        files = self.paths or (self.run.path,)
        return (self.kind, *map(str, files))


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
    corrections: tuple[Correction, ...] = ()

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
