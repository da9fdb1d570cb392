"""What a dataset holds for us: participants, their dwi runs with gradients and inherited metadata, their anatomy.

No image is opened here beyond its first bytes. What concerns the whole request raises; what concerns one run or one
participant becomes a `Failure`, so that the others can go on. Every file that is not used is listed with the reason.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tractode.bids.combine import combined
from tractode.bids.fieldmaps import FieldmapRequest, Sdc, with_corrections
from tractode.bids.found import AnatFile, Discovery, DwiRun, Failure, FieldmapFile, Participant
from tractode.bids.index import Index
from tractode.bids.inheritance import Levels
from tractode.bids.lacking import check_something_found, without_dwi
from tractode.bids.preprocessed import (
    InputType,
    PreprocessedRequest,
    find_preprocessed,
    input_type_of,
    processed_by,
)
from tractode.bids.raw_dataset import check_description, check_participants_table, choose_labels, participant_labels
from tractode.bids.scan import IMAGES, IgnoredFile, ScannedFile, scan_participant
from tractode.errors import InputDataError, MissingInputError, TractodeError
from tractode.io.notes import Note, warning
from tractode.io.sniff import check_content as check_fetched


def find_participants(
    bids_dir: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filters: Mapping[str, Any] | None = None,
    anat_modality: str = "T1w",
    validate: bool = True,
    sdc: Sdc = "auto",
    ignore_fieldmaps: bool = False,
    needs_correction: bool = False,
    input_type: Literal["auto"] | InputType = "auto",
    combine_runs: bool = False,
) -> Discovery:
    """Everything to be processed, and everything that will not be.

    Parameters
    ----------
    participants, sessions
        Labels with or without ``sub-`` / ``ses-``; empty means all.
    filters
        The parsed file of ``--bids-filter-file``: query → pybids entities, null for none, ``"*"`` for any.
    anat_modality
        ``T1w``, ``T2w``, or ``none`` to leave the anatomy aside.
    validate
        Whether to look at the dataset's description and table of participants; what is used is always checked.
    sdc, ignore_fieldmaps, needs_correction
        What may correct susceptibility distortion: see `FieldmapRequest`.
    input_type
        Raw scans, or which layout of preprocessed ones (`tractode.bids.preprocessed`); ``auto`` looks.
    combine_runs
        Whether runs of one session and grid become one: see `tractode.bids.combine`.

    Raises
    ------
    InvalidDatasetError
        No ``sub-*`` folder, or nothing laid out as ``input_type`` wants it.
    NoMatchError
        A participant's label is not there, or sessions or filters matched no dwi run.
    MissingInputError
        The folder does not exist, or no participant has a dwi image.
    InputDataError
        ``dataset_description.json`` cannot be read.
    ConfigurationError
        The filters cannot be understood.
    """
    # Normalised, links kept: the same text pybids makes of it.
    bids_dir = Path(os.path.abspath(bids_dir))
    kind = input_type_of(bids_dir) if input_type == "auto" else input_type
    if kind != "bids":
        discovery = find_preprocessed(PreprocessedRequest(bids_dir, kind, participants, sessions, anat_modality))
        people, more = without_dwi(list(discovery.participants), bids_dir, are_asked_for=bool(participants))
        unused = {"--combine-runs": combine_runs, "--bids-filter-file": bool(filters)}
        more += [
            warning("W-INPUT-UNUSED", f"{option} does nothing for input that came preprocessed ({kind})")
            for option, is_given in unused.items()
            if is_given
        ]
        return Discovery(tuple(people), discovery.ignored, (*discovery.notes, *more))
    available, ignored = participant_labels(bids_dir)
    notes = check_description(bids_dir) if validate else []
    labels = choose_labels(participants, available)
    notes += check_participants_table(bids_dir, available) if validate else []
    wanted_sessions = tuple(dict.fromkeys(label.removeprefix("ses-") for label in sessions))
    index = Index(bids_dir, labels, filters or {})
    levels = Levels(bids_dir)
    found = []
    for label in labels:
        files, left_aside = scan_participant(bids_dir, label)
        reader = _Reader(bids_dir, index, levels, label, files, wanted_sessions, anat_modality)
        participant = reader.read()
        request = FieldmapRequest(bids_dir, participant, sdc, ignore_fieldmaps, needs_correction)
        person, more = combined(with_corrections(request)) if combine_runs else (with_corrections(request), [])
        found.append(person)
        ignored += left_aside + reader.ignored
        notes += [*reader.notes, *more]
    check_something_found(found, bids_dir, wanted_sessions, index, ignored)
    found, more = without_dwi(found, bids_dir, are_asked_for=bool(participants))
    notes += more
    return Discovery(tuple(found), tuple(sorted(ignored, key=lambda file: file.path)), tuple(notes))


def choose_anat(participant: Participant, session: str | None, reference: str = "sessionwise") -> AnatFile | None:
    """The anatomical image that the runs of a session are registered to; `None` if there is none.

    Images of the same session come first (not for the ``first-lex`` reference), then those of the earliest session. Among
    them: intensity-normalised before ``acq-nonorm``, fewest entities, lowest run and echo, then the order of the names.
    """
    own = session if reference != "first-lex" else min((anat.session or "" for anat in participant.anats), default="")
    return min(
        participant.anats, key=lambda anat: ((anat.session or "") != (own or ""), *_anat_order(anat)), default=None
    )


def explain_anat(participant: Participant, session: str | None) -> str:
    """Why `choose_anat` chose what it did, for the report."""
    chosen = choose_anat(participant, session)
    if chosen is None:
        return "no anatomical image: the diffusion reference is registered to the template itself"
    if len(participant.anats) == 1:
        return f"{chosen.path.name}, the only one"
    others = ", ".join(anat.path.name for anat in participant.anats if anat is not chosen)
    where = "" if chosen.session == session else f" of another session ({chosen.session or 'none'})"
    return f"{chosen.path.name}{where}, rather than {others}: normalised before nonorm, then the plainest name, then the first run"


def _anat_order(anat: AnatFile) -> tuple:
    entities = anat.entities
    return (
        anat.session or "",
        "nonorm" in entities.get("acq", "").lower(),
        len(entities),
        int(entities.get("run", 0)),
        int(entities.get("echo", 0)),
        anat.path.name,
    )


class _Reader:
    """Turns one participant's scanned files into runs, anatomy and failures."""

    def __init__(
        self,
        bids_dir: Path,
        index: Index,
        levels: Levels,
        label: str,
        files: Iterable[ScannedFile],
        sessions: tuple[str, ...],
        anat_modality: str,
    ) -> None:
        self.bids_dir, self.index, self.levels, self.label = bids_dir, index, levels, label
        self.files, self.sessions, self.anat_modality = tuple(files), sessions, anat_modality
        self.ignored: list[IgnoredFile] = []
        self.notes: list[Note] = []
        self.failures: list[Failure] = []
        self.used: set[Path] = set()
        self.anat_errors: dict[Path, TractodeError] = {}

    def read(self) -> Participant:
        images = [file for file in self.files if file.extension in IMAGES and self._is_file(file)]
        anats = self._anats([image for image in images if image.datatype == "anat"])
        if self._is_mixed():
            runs: list[DwiRun] = []
        else:
            runs = self._runs([image for image in images if image.datatype == "dwi"])
        fmaps = self._fmaps([image for image in images if image.datatype == "fmap"])
        participant = Participant(self.label, tuple(anats), tuple(runs), tuple(fmaps))
        kept = [run for run in runs if self._has_good_anat(participant, run)]
        self._leave_unused_companions()
        self._check_phase_encoding(kept)
        return Participant(self.label, tuple(anats), tuple(kept), tuple(fmaps), tuple(self.failures))

    def _is_file(self, image: ScannedFile) -> bool:
        """A folder in place of a run is that run's failure: no index of files knows it."""
        if not image.path.is_dir():
            return True
        self.used.add(image.path)
        try:
            check_fetched(image.path)
        except InputDataError as error:
            self.failures.append(Failure(image.stem, error))
        return False

    def _runs(self, images: list[ScannedFile]) -> list[DwiRun]:
        by_name: dict[str, list[ScannedFile]] = defaultdict(list)
        for image in self._selected("dwi", images):
            if image.entities.get("part", "mag") != "mag":
                self._ignore(image, "not a magnitude image")
            else:
                by_name[image.stem].append(image)
        runs = []
        for name, twins in by_name.items():
            self.used.update(twin.path for twin in twins)
            try:
                runs.append(self._run(name, twins))
            except (InputDataError, MissingInputError) as error:
                self.failures.append(Failure(name, error))
        return runs

    def _run(self, name: str, twins: list[ScannedFile]) -> DwiRun:
        self._check_single(twins)
        image = twins[0]
        check_fetched(image.path)
        metadata, sidecars = self.levels.metadata(image)
        bval, bvec = self._gradients(image, ".bval"), self._gradients(image, ".bvec")
        self.used.update((bval, bvec, *sidecars))
        done_by = processed_by(metadata)
        return DwiRun(image.path, bval, bvec, metadata, image.entities, image.session, name, sidecars, done_by=done_by)

    def _gradients(self, image: ScannedFile, extension: str) -> Path:
        path = self.levels.nearest(image, extension)
        if path is None:
            raise MissingInputError(
                f"There is no {extension} file for this image, neither beside it nor above it",
                id="E-DATA-NOBVAL" if extension == ".bval" else "E-DATA-NOBVEC",
                path=image.path,
                needed=f"{image.path.name.partition('.')[0]}{extension}",
                fix="convert the scan again with dcm2niix, or copy the gradient table into the dataset",
            )
        check_fetched(path)
        return path

    def _anats(self, images: list[ScannedFile]) -> list[AnatFile]:
        wanted = [image for image in images if image.suffix == self.anat_modality]
        for image in images:
            if image not in wanted:
                self._ignore(image, f"not used with --anat-modality {self.anat_modality}")
        if self.anat_modality == "none":
            return []
        found = []
        by_name: dict[str, list[ScannedFile]] = defaultdict(list)
        for image in self._selected(self.anat_modality.lower(), wanted):
            if image.entities.get("part", "mag") == "mag":
                by_name[image.stem].append(image)
            else:
                self._ignore(image, "not a magnitude image")
        for twins in by_name.values():
            self.used.update(twin.path for twin in twins)
            found.append(self._anat(twins))
        return found

    def _anat(self, twins: list[ScannedFile]) -> AnatFile:
        image = twins[0]
        metadata: dict[str, Any] = {}
        sidecars: tuple[Path, ...] = ()
        try:
            self._check_single(twins)
            check_fetched(image.path)
            metadata, sidecars = self.levels.metadata(image)
        except (InputDataError, MissingInputError) as error:
            # Kept until it is known whether any run needs this image.
            self.anat_errors[image.path] = error
        self.used.update(sidecars)
        return AnatFile(image.path, metadata, image.entities, image.suffix, image.session, sidecars)

    def _has_good_anat(self, participant: Participant, run: DwiRun) -> bool:
        anat = choose_anat(participant, run.session)
        error = self.anat_errors.get(anat.path) if anat else None
        if error is not None:
            self.failures.append(Failure(run.name, error))
        return error is None

    def _fmaps(self, images: list[ScannedFile]) -> list[FieldmapFile]:
        return [self._fmap(image) for image in self._selected("fmap", images)]

    def _fmap(self, image: ScannedFile) -> FieldmapFile:
        try:
            metadata, sidecars = self.levels.metadata(image)
        except (InputDataError, MissingInputError) as error:
            metadata, sidecars = {}, ()
            self.notes.append(warning("W-FMAP-SIDECAR", f"{image.path.name} is used without its sidecar: {error}"))
        bval = self.levels.nearest(image, ".bval")
        self.used.update((image.path, *sidecars, *([bval] if bval else [])))
        return FieldmapFile(image.path, image.entities, image.suffix, image.session, metadata, sidecars, bval)

    def _selected(self, query: str, images: list[ScannedFile]) -> list[ScannedFile]:
        """Images in the asked sessions and of the user's filters; the rest is listed as ignored."""
        allowed = self.index.select(query, self.label)
        kept = []
        for image in images:
            if self.sessions and image.session not in self.sessions:
                self._ignore(image, "its session was not asked for")
            elif image.path in allowed:
                kept.append(image)
            elif query == "dwi" and image.suffix != "dwi":
                self._ignore(image, f"{image.suffix} images are not used")
            else:
                self._ignore(image, "left out by --bids-filter-file")
        return kept

    def _is_mixed(self) -> bool:
        """Whether dwi runs lie both in and outside sessions, which only the user can sort out."""
        found = {image.session for image in self.files if image.datatype == "dwi" and image.suffix == "dwi"}
        if self.sessions or None not in found or len(found) == 1:
            return False
        error = InputDataError(
            "Some dwi files lie in session folders and others outside",
            id="E-DATA-SESSIONS",
            path=self.bids_dir / f"sub-{self.label}",
            needed="all of them in sessions, or none",
            fix="move them, or name the sessions to process with --session-label",
        )
        self.failures.append(Failure(f"sub-{self.label}", error))
        return True

    def _check_single(self, twins: list[ScannedFile]) -> None:
        if len(twins) > 1:
            raise InputDataError(
                f"The same image exists more than once: {', '.join(twin.path.name for twin in twins)}",
                id="E-DATA-DUPLICATE",
                path=twins[0].path,
                needed="one file",
                fix="keep the right one and remove the others",
            )

    def _leave_unused_companions(self) -> None:
        already = {file.path for file in self.ignored}
        for file in self.files:
            relative = file.path.relative_to(self.bids_dir).as_posix()
            if file.path in self.used or relative in already or file.extension in IMAGES:
                continue
            # A sidecar goes with its image: it needs a line of its own only if it has none.
            if not any(other.extension in IMAGES and other.stem == file.stem for other in self.files):
                self.ignored.append(IgnoredFile(relative, "belongs to no image that is used"))

    def _check_phase_encoding(self, runs: list[DwiRun]) -> None:
        seen: dict[tuple[str | None, str], DwiRun] = {}
        for run in runs:
            direction = run.metadata.get("PhaseEncodingDirection")
            other = seen.setdefault((run.session, str(direction)), run) if direction else run
            labels = {run.entities.get("dir"), other.entities.get("dir")}
            if labels in ({"AP", "PA"}, {"LR", "RL"}, {"SI", "IS"}):
                self.notes.append(
                    warning(
                        "W-DATA-PHASE",
                        f"{other.name} and {run.name} are named for opposite phase encodings, "
                        f"but both sidecars say {direction!r}: one of them is wrong",
                    )
                )

    def _ignore(self, file: ScannedFile, reason: str) -> None:
        self.ignored.append(IgnoredFile(file.path.relative_to(self.bids_dir).as_posix(), reason))
