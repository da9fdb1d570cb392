"""What a derivatives folder of tractode holds to learn streamlines from: FODs, the way to the template, tractograms.

Names are those of `docs/outputs.md`. A scan that lacks a piece is not used, and said so; nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tractode.errors import InputDataError, MissingInputError
from tractode.fields.transform import Chain
from tractode.generative.space import SPACE
from tractode.io.transforms import read_transform

DWI = "dwi"
_FOD = "_model-csd_param-fod_dwimap.nii.gz"
_LINES = (".trx", ".tck", ".trk")
_TRANSFORMS = (".h5", ".x5")
_FROM_TO = re.compile(r"_from-([A-Za-z0-9]+)_to-([A-Za-z0-9]+)_mode-image_xfm$")
_BUNDLE = re.compile(r"_(?:tract|bundle)-([A-Za-z0-9]+)_")


@dataclass(frozen=True)
class Step:
    """One transform file; it takes points of ``source`` to points of ``target``."""

    path: Path
    source: str
    target: str


@dataclass(frozen=True)
class Scan:
    """One FOD, its tractograms, and the transforms template → scan and scan → template."""

    participant: str
    name: str
    fod: Path
    tractograms: tuple[Path, ...]
    there_to_here: tuple[Step, ...]
    here_to_there: tuple[Step, ...]

    def files(self) -> tuple[Path, ...]:
        return self.fod, *self.tractograms, *(step.path for step in (*self.there_to_here, *self.here_to_there))


@dataclass(frozen=True)
class LeftOut:
    """A participant or scan that cannot be used, and why."""

    name: str
    reason: str


def find_scans(folders: Sequence[Path], pattern: str = "*") -> tuple[list[Scan], list[LeftOut]]:
    """Every scan of the folders that has all pieces, in the order of the names, and those that have not.

    Parameters
    ----------
    pattern
        Tractograms whose names do not match it (as in a shell) are passed over.

    Raises
    ------
    MissingInputError
        E-COHORT-NONE: there is no participant in a folder.
    InputDataError
        E-COHORT-UNUSABLE: there are participants, and none can be used.
    """
    found: list[Scan] = []
    left_out: list[LeftOut] = []
    for folder in folders:
        participants = sorted(path for path in folder.glob("sub-*") if path.is_dir())
        if not participants:
            raise MissingInputError(
                "There is no participant in this folder",
                id="E-COHORT-NONE",
                path=folder,
                needed="an output folder of tractode, with folders sub-…",
            )
        for participant in participants:
            for scan in _scans_of(participant, pattern):
                if isinstance(scan, Scan):
                    found.append(scan)
                else:
                    left_out.append(scan)
    if not found:
        raise InputDataError(
            "No participant can be learned from: " + "; ".join(f"{one.name} {one.reason}" for one in left_out[:5]),
            id="E-COHORT-UNUSABLE",
            path=folders[0],
            needed=f"FODs, transforms to and from {SPACE}, and tractograms, all written by tractode",
            fix=f"run tractode with --models csd --output-spaces {SPACE} and a tracking method",
        )
    return found, left_out


def chain_of(steps: Sequence[Step]) -> Chain:
    """The transforms as one."""
    return Chain(tuple(read_transform(step.path, step.source, step.target) for step in steps))


def bundle_named_by(path: Path) -> str:
    """What follows ``tract-`` or ``bundle-`` in a tractogram's name; empty if nothing does."""
    found = _BUNDLE.search(path.name)
    return found[1] if found else ""


def _scans_of(participant: Path, pattern: str) -> Iterator[Scan | LeftOut]:
    folders = sorted(participant.glob(f"{DWI}")) + sorted(participant.glob(f"ses-*/{DWI}"))
    fods = [path for folder in folders for path in sorted(folder.glob(f"*{_FOD}")) if "_space-" not in path.name]
    if not fods:
        yield LeftOut(participant.name, f"has no …{_FOD}")
    names = [fod.name.removesuffix(_FOD) for fod in fods]
    for fod, name in zip(fods, names, strict=True):
        longer = tuple(f"{other}_" for other in names if other.startswith(f"{name}_"))
        try:
            yield _scan(participant, fod, name, pattern, longer)
        except _LackingError as error:
            yield LeftOut(name, str(error))


class _LackingError(Exception):
    """A piece of a scan is not there; the text goes on after the scan's name."""


def _scan(participant: Path, fod: Path, name: str, pattern: str, longer: tuple[str, ...]) -> Scan:
    """``longer`` are the beginnings of names of other scans that begin like this one's."""
    _check_encoding(fod)
    folder = fod.parent
    own = [path for path in _unique(folder, name) if not path.name.startswith(longer)]
    lines = tuple(path for path in own if fnmatch(path.name, pattern))
    if not lines:
        raise _LackingError(f"has no tractogram in its own space that matches {pattern!r}")
    anat = (folder.parent / "anat", participant / "anat")
    files = [path for path in folder.glob(f"{name}_from-*") if path.suffix in _TRANSFORMS]
    files += [path for place in dict.fromkeys(anat) for path in sorted(place.glob("*_from-*"))]
    steps = _steps(files)
    return Scan(participant.name, name, fod, lines, _route(steps, SPACE, DWI), _route(steps, DWI, SPACE))


def _check_encoding(fod: Path) -> None:
    sidecar = _json(fod.with_name(fod.name.removesuffix(".nii.gz") + ".json"))
    if sidecar is None:
        raise _LackingError("has no sidecar beside its FOD that says how it is encoded")
    encoding = sidecar.get("OrientationEncoding", {})
    basis = encoding.get("SphericalHarmonicBasis", encoding.get("SphericalHarmonicsBasis"))
    if str(basis).lower() != "mrtrix3" or encoding.get("Reference") != "xyz":
        raise _LackingError(
            f"has an FOD in the basis {basis!r} and the frame {encoding.get('Reference')!r}, not mrtrix3 in xyz"
        )


def _unique(folder: Path, name: str) -> list[Path]:
    """Tractograms in the scan's space that were not drawn from a model; weighted lines stand for the plain ones."""
    paths = [
        path
        for path in sorted(folder.glob(f"{name}_*tractogram*"))
        if path.suffix in _LINES and "_space-" not in path.name and "_track-gentract" not in path.name
    ]
    stems = {path.stem for path in paths}
    paths = [path for path in paths if path.stem.replace("_tractogram", "_desc-weighted_tractogram") not in stems]
    first: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: _LINES.index(path.suffix)):
        first.setdefault(path.stem, path)
    return sorted(first.values())


def _steps(files: Sequence[Path]) -> list[Step]:
    """One step for each pair of spaces; ``from-A_to-B`` takes points of B to points of A."""
    steps: dict[tuple[str, str], Step] = {}
    for path in sorted(files, key=lambda path: (_rank(path.suffix), files.index(path))):
        match = _FROM_TO.search(path.stem)
        if match and path.suffix in _TRANSFORMS and _has_passed(path):
            steps.setdefault((match[2], match[1]), Step(path, match[2], match[1]))
    return list(steps.values())


def _rank(suffix: str) -> int:
    return _TRANSFORMS.index(suffix) if suffix in _TRANSFORMS else len(_TRANSFORMS)


def _has_passed(path: Path) -> bool:
    """Whether the registration passed its quality gate; true where nothing is said."""
    sidecar = _json(path.with_suffix(".json")) or {}
    return bool(sidecar.get("Quality", {}).get("passed", True))


def _route(steps: Sequence[Step], source: str, target: str) -> tuple[Step, ...]:
    """The shortest way from one space to another."""
    ways: list[tuple[Step, ...]] = [(step,) for step in steps if step.source == source]
    for _ in range(3):
        for way in ways:
            if way[-1].target == target:
                return way
        ways = [(*way, step) for way in ways for step in steps if step.source == way[-1].target]
    raise _LackingError(f"has no transforms that passed their checks and lead from {source} to {target}")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
