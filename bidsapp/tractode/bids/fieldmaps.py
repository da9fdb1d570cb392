"""Which measurement of the magnetic field serves which dwi run; opens no image beyond its header.

Links are read as BIDS has them: ``B0FieldSource``/``B0FieldIdentifier`` first, then ``IntendedFor``. A field map that names no
image serves every dwi run of its session, never one of another session. What is preferred: a reversed pair (the scan's own
distortion, measured), a field map, the anatomy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tractode.bids import names
from tractode.bids.found import (
    Correction,
    CorrectionKind,
    DwiRun,
    EncodedFile,
    Encoding,
    Failure,
    FieldmapFile,
    Participant,
)
from tractode.bids.phase_encoding import Labelled, are_opposite, encoding_of, signed
from tractode.errors import InputDataError

Sdc = Literal["auto", "reversed", "fieldmap", "anatomy", "none"]
NO_LINK = "no link given: serves the dwi runs of its session"
_ROLES = {"phasediff": ("phasediff",), "phases": ("phase1", "phase2"), "fieldmap": ("fieldmap",)}
_TITLES = {"reversed": "reversed phase encoding", "anatomy": "the anatomical image"} | dict.fromkeys(
    _ROLES, "field map"
)


@dataclass(frozen=True)
class FieldmapRequest:
    """What was found of a participant, and what is wanted.

    Parameters
    ----------
    ignore_fieldmaps
        Leave the ``fmap`` folder aside.
    needs_correction
        A run that cannot be corrected is an error.
    geometries
        Path of a dwi image → what its header says of its grid; runs of different grids are not paired.
    """

    bids_dir: Path
    participant: Participant
    sdc: Sdc = "auto"
    ignore_fieldmaps: bool = False
    needs_correction: bool = False
    geometries: Mapping[Path, Any] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[DwiRun, ...]:
        return self.participant.runs

    @property
    def fmaps(self) -> tuple[FieldmapFile, ...]:
        return self.participant.fmaps


def plan_correction(run: DwiRun, request: FieldmapRequest) -> Correction:
    """What will correct a run.

    Raises
    ------
    InputDataError
        A link leads nowhere (``E-FMAP-INTENDED``, ``E-FMAP-SOURCE``), two images named for opposite encodings say they are
        encoded alike and nothing else is there (``E-FMAP-SAMEWAY``), or nothing can correct a run that must be
        (``E-SDC-NONE``).
    """
    plan = _Plan(run, request)
    correction = plan.made()
    if correction.kind == "none" and request.needs_correction and not run.done_by:
        raise InputDataError(
            f"The susceptibility distortion of {run.name} cannot be corrected: {correction.reason}",
            id="E-SDC-NONE",
            path=run.path,
            needed="a pair of opposite phase encodings, a field map or an anatomical image, and PhaseEncodingDirection",
            fix="complete the sidecars, or leave out --require-sdc",
        )
    return correction


def with_corrections(request: FieldmapRequest) -> Participant:
    """The participant with what will correct each run; a run whose links contradict the files is a failure."""
    from tractode.io.nifti_affine import read_geometry

    participant = request.participant
    if request.sdc not in ("none", "anatomy") and len(participant.runs) > 1:
        request = replace(request, geometries={run.path: read_geometry(run.path) for run in participant.runs})
    made, failures = [], list(participant.failures)
    for run in participant.runs:
        try:
            made.append(plan_correction(run, request))
        except InputDataError as error:
            failures.append(Failure(run.name, error))
    kept = tuple(correction.run for correction in made)
    return replace(participant, runs=kept, corrections=tuple(made), failures=tuple(failures))


class _Plan:
    """The reading of the links of one run."""

    def __init__(self, run: DwiRun, request: FieldmapRequest) -> None:
        self.run, self.request = run, request
        self.sources = _texts(run.metadata.get("B0FieldSource"))
        self.uses: dict[Path, str] = {}
        self.links: dict[Path, str] = {}

    def made(self) -> Correction:
        run, sdc = self.run, self.request.sdc
        if run.done_by:
            return Correction(run, "none", f"the scan was preprocessed already by {run.done_by}")
        if sdc == "none":
            return Correction(run, "none", "it was not asked for (--sdc none)")
        encoding = encoding_of(run.metadata)
        if encoding is None:
            return self._none("its sidecar has neither PhaseEncodingDirection nor PhaseEncodingAxis", None)
        matched = [] if sdc == "anatomy" else self._matched()
        found: list[Correction] = []
        if sdc in ("auto", "reversed"):
            found += self._reversed(encoding, [fmap for fmap in matched if fmap.suffix == "epi"])
        if sdc in ("auto", "fieldmap"):
            found += self._maps(encoding, [fmap for fmap in matched if fmap.suffix != "epi"])
        if sdc in ("auto", "anatomy") and self.request.participant.anats:
            # Its sign and readout time only scale the field: what moves is found in the image itself.
            (scaled,) = signed([Labelled(encoding, "")])
            found.append(Correction(run, "anatomy", "no field was measured that serves this run", scaled))
        self._check_same_way(matched, found)
        if not found:
            wanted = {"auto": "there is no reversed pair, no field map and no anatomical image for it"}
            named = {"reversed": "opposite phase encoding", "fieldmap": "field map", "anatomy": "anatomical image"}
            return self._none(wanted.get(sdc, f"--sdc {sdc} was asked for, and there is no {named.get(sdc)}"), encoding)
        return self._chosen(found)

    def _chosen(self, found: list[Correction]) -> Correction:
        first = found[0]
        for other in found[1:]:
            for path in other.paths:
                self.uses.setdefault(path, f"not used: {_TITLES[first.kind]} is preferred")
        for path in first.paths:
            self.uses[path] = "used"
        reason = first.reason
        if first.kind == "anatomy" and self.request.sdc == "anatomy":
            reason = "--sdc anatomy was asked for"
        return Correction(
            first.run, first.kind, reason, first.encoding, first.scans, first.maps, first.link, self._rows()
        )

    def _none(self, reason: str, encoding: Encoding | None) -> Correction:
        return Correction(self.run, "none", reason, encoding, rows=self._rows())

    def _rows(self) -> tuple[tuple[str, str, str], ...]:
        return tuple(
            (fmap.path.name, self.links.get(fmap.path, "not looked at"), self.uses.get(fmap.path, "not used"))
            for fmap in self.request.fmaps
            if not fmap.suffix.startswith("magnitude") or fmap.path in self.uses
        )

    # --- links --------------------------------------------------------------------------------------------------

    def _matched(self) -> list[FieldmapFile]:
        """Field maps that are linked to the run; `links` says how, of those that are not as well."""
        if self.request.ignore_fieldmaps:
            self.uses = dict.fromkeys((fmap.path for fmap in self.request.fmaps), "not used: --ignore fieldmaps")
            return []
        if self.sources:
            return self._by_source()
        matched, stale = [], []
        for fmap in self.request.fmaps:
            targets = _texts(fmap.metadata.get("IntendedFor"))
            if not targets:
                is_here = fmap.session == self.run.session
                self.links[fmap.path] = NO_LINK if is_here else f"of another session ({fmap.session or 'none'})"
                matched += [fmap] if is_here else []
                continue
            is_for, lost = self._intended(fmap, targets)
            self.links[fmap.path] = "IntendedFor" if is_for else "IntendedFor names other images"
            if is_for:
                matched.append(fmap)
            elif fmap.session == self.run.session:
                stale += [(fmap, target) for target in lost]
        if stale and not matched:
            listed = "; ".join(f"{fmap.path.name} → {target}" for fmap, target in stale[:4])
            raise InputDataError(
                f"IntendedFor names dwi images that do not exist: {listed}",
                id="E-FMAP-INTENDED",
                path=stale[0][0].path,
                needed="paths of the dwi images, as a BIDS URI (bids::sub-…) or relative to the participant's folder",
                fix="correct IntendedFor in the JSON file, or leave field maps aside with --ignore fieldmaps",
            )
        return matched

    def _by_source(self) -> list[FieldmapFile]:
        everything: list[DwiRun | FieldmapFile] = [*self.request.fmaps, *self.request.runs]
        known = {name for image in everything for name in _texts(image.metadata.get("B0FieldIdentifier"))}
        if not known.intersection(self.sources):
            raise InputDataError(
                f"B0FieldSource of {self.run.name} names {', '.join(map(repr, self.sources))}, and no image has that B0FieldIdentifier",
                id="E-FMAP-SOURCE",
                path=self.run.path,
                needed=f"one of {', '.join(sorted(known))}"
                if known
                else "B0FieldIdentifier in the field map's JSON file",
                fix="correct B0FieldSource or B0FieldIdentifier, or leave field maps aside with --ignore fieldmaps",
            )
        matched = []
        for fmap in self.request.fmaps:
            shared = [name for name in self.sources if name in _texts(fmap.metadata.get("B0FieldIdentifier"))]
            self.links[fmap.path] = f"B0FieldSource {shared[0]!r}" if shared else "not named by B0FieldSource"
            matched += [fmap] if shared else []
        return matched

    def _intended(self, fmap: FieldmapFile, targets: Sequence[str]) -> tuple[bool, list[str]]:
        """Whether the run is among the targets, and those that are dwi images and do not exist."""
        lost, is_for = [], False
        for target in targets:
            places = _places(target, self.request.bids_dir, self.run.entities["sub"])
            if self.run.path in places:
                is_for = True
            elif "/dwi/" in f"/{target}" and not any(place.exists() for place in places):
                lost.append(target)
        return is_for, lost

    # --- candidates ---------------------------------------------------------------------------------------------

    def _reversed(self, encoding: Encoding, epis: list[FieldmapFile]) -> list[Correction]:
        """The run, the runs of its grid and the field maps, if they are not all encoded one way."""
        images: list[tuple[DwiRun | FieldmapFile, Encoding]] = []
        for other in self.request.runs:
            found = encoding_of(other.metadata)
            if other is self.run or (found and found.axis == encoding.axis and self._is_partner(other)):
                images.append((other, found or encoding))
        for epi in epis:
            found = encoding_of(epi.metadata)
            if found is None:
                self.uses[epi.path] = "not used: its sidecar has no PhaseEncodingDirection"
            else:
                images.append((epi, found))
        labelled = [Labelled(e, image.entities.get("dir", ""), isinstance(image, FieldmapFile)) for image, e in images]
        scans = tuple(EncodedFile(image, e) for (image, _), e in zip(images, signed(labelled), strict=True))
        if len({(scan.encoding.axis, scan.encoding.sign) for scan in scans}) < 2:
            for epi in epis:
                self.uses.setdefault(epi.path, "not used: encoded the same way as the run")
            return []
        own = next(scan.encoding for scan in scans if scan.source is self.run)
        link = next((self.links[epi.path] for epi in epis), "dwi runs of opposite phase encoding in one session")
        if self.sources and not epis:
            link = f"B0FieldSource {self.sources[0]!r}"
        return [Correction(self.run, "reversed", "opposite phase encodings measure it best", own, scans, link=link)]

    def _is_partner(self, other: DwiRun) -> bool:
        """Whether another run is of the same session and grid, and of the named source where one is named."""
        if other.session != self.run.session:
            return False
        if self.sources and not set(self.sources) & set(_texts(other.metadata.get("B0FieldIdentifier"))):
            return False
        here, there = (self.request.geometries.get(run.path) for run in (self.run, other))
        return here is None or there is None or here == there

    def _maps(self, encoding: Encoding, matched: list[FieldmapFile]) -> list[Correction]:
        """Phase differences, pairs of phases and fields, each with a magnitude image."""
        together: dict[str, dict[str, FieldmapFile]] = defaultdict(dict)
        for fmap in self.request.fmaps:
            together[names.stem(fmap.entities)][fmap.suffix] = fmap
        if encoding.readout is None:
            for fmap in matched:
                self.uses[fmap.path] = "not used: the run's sidecar has no readout time"
            return []
        kinds: tuple[CorrectionKind, ...] = ("phasediff", "phases", "fieldmap")
        found = []
        for kind in kinds:
            for files in together.values():
                parts = [files[suffix] for suffix in _ROLES[kind] if suffix in files]
                if len(parts) == len(_ROLES[kind]) and any(part in matched for part in parts):
                    correction = self._map(kind, parts, files, encoding)
                    found += [correction] if correction else []
        return found

    def _map(
        self, kind: CorrectionKind, parts: list[FieldmapFile], files: Mapping[str, FieldmapFile], encoding: Encoding
    ) -> Correction | None:
        magnitude = next((files[name] for name in ("magnitude1", "magnitude", "magnitude2") if name in files), None)
        lack = "" if magnitude else "it has no magnitude image"
        if kind == "phasediff" and not {"EchoTime1", "EchoTime2"} <= parts[0].metadata.keys():
            lack = "its sidecar has no EchoTime1 and EchoTime2"
        if kind == "phases" and not all("EchoTime" in part.metadata for part in parts):
            lack = "their sidecars have no EchoTime"
        if lack or magnitude is None:
            self.uses.update(dict.fromkeys((part.path for part in parts), f"not used: {lack}"))
            return None
        link = next((self.links[part.path] for part in parts if part.path in self.links), "")
        return Correction(self.run, kind, "a field map serves this run", encoding, maps=(*parts, magnitude), link=link)

    def _check_same_way(self, matched: list[FieldmapFile], found: list[Correction]) -> None:
        """Images named for opposite encodings whose sidecars say one: an error unless something else corrects the run."""
        if any(correction.kind == "reversed" for correction in found) or self.request.sdc not in ("auto", "reversed"):
            return
        mine, label = self.run.metadata.get("PhaseEncodingDirection"), self.run.entities.get("dir", "")
        others: list[DwiRun | FieldmapFile] = [run for run in self.request.runs if self._is_partner(run)]
        others += [fmap for fmap in matched if fmap.suffix == "epi"]
        alike = [
            image
            for image in others
            if mine and image.metadata.get("PhaseEncodingDirection") == mine
            and are_opposite(image.entities.get("dir", ""), label)
        ]  # fmt: skip
        if alike and not found:
            raise InputDataError(
                f"{self.run.path.name} and {alike[0].path.name} are named for opposite phase encodings, and both sidecars say {mine!r}",
                id="E-FMAP-SAMEWAY",
                path=self.run.path,
                needed="PhaseEncodingDirection as each was acquired",
                fix="correct the wrong JSON file, or go on without correction: --sdc none",
            )


def _texts(value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _places(target: str, bids_dir: Path, label: str) -> list[Path]:
    """Where a target of ``IntendedFor`` may lie: a BIDS URI, a path below the participant's folder, or below the dataset."""
    if target.startswith("bids:"):
        _, _, rest = target.partition(":")
        _, _, inside = rest.partition(":")
        return [bids_dir / inside]
    return [bids_dir / f"sub-{label}" / target, bids_dir / target]
