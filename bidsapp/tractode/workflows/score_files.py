"""The files that a score is made of: one participant's, or one session's of a participant.

A ``unit`` is a participant's label (``01``), with the session where there are sessions (``01/ses-02``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tractode.bids.names import parse
from tractode.errors import InputDataError, MissingInputError, NoMatchError
from tractode.fields import Image
from tractode.io.nifti import read_image


def units(truth: Path, asked: Sequence[str]) -> list[str]:
    """What there is truth of: participants, or their sessions; all, or those of the participants asked for."""
    known = sorted(path.name.removeprefix("sub-") for path in truth.glob("sub-*") if path.is_dir())
    if not known:
        raise NoMatchError(
            "This folder holds no truth",
            id="E-SCORE-TRUTH",
            path=truth,
            needed="derivatives/truth of a dataset made by tractode-simulate",
        )
    labels = [label.removeprefix("sub-") for label in asked] or known
    missing = [label for label in labels if label not in known]
    if missing:
        raise NoMatchError(
            f"No truth for {', '.join(missing)}", id="E-SCORE-LABEL", path=truth, needed=f"some of {', '.join(known)}"
        )
    found = []
    for label in labels:
        sessions = sorted(path.name for path in (truth / f"sub-{label}").glob("ses-*") if path.is_dir())
        found += [f"{label}/{session}" for session in sessions] or [label]
    return found


def stem(unit: str) -> str:
    """How the unit's file names begin, without ``sub-``."""
    return unit.replace("/", "_")


def stored_image(path: Path, unit: str) -> Image:
    """An image in the unit's own world."""
    return read_image(path, f"sub-{stem(unit)}_dwi")[0]


def maybe(folder: Path, unit: str, suffix: str, extension: str, *, datatype: str = "*", **entities: str) -> list[Path]:
    """Files with these entities that are in the participant's own space and belong to no single bundle."""
    wanted = {key.removesuffix("_"): value for key, value in entities.items()}
    found = []
    for path in sorted((folder / f"sub-{unit}").glob(f"**/{datatype}/*_{suffix}{extension}")):
        parsed = parse(path)
        if parsed is None or parsed[1:] != (suffix, extension):
            continue
        has = parsed[0]
        if all(has.get(key) == value for key, value in wanted.items()) and not {"space", "tract"} & (
            set(has) - set(wanted)
        ):
            found.append(path)
    return found


def one(folder: Path, unit: str, suffix: str, extension: str, *, datatype: str = "*", **entities: str) -> Path:
    """The only such file.

    Raises
    ------
    MissingInputError
        There is none.
    InputDataError
        There are several.
    """
    found = maybe(folder, unit, suffix, extension, datatype=datatype, **entities)
    asked = (f"{key.removesuffix('_')}-{value}" for key, value in entities.items())
    what = " ".join([*asked, suffix + extension])
    if not found:
        raise MissingInputError(
            f"No {what} for sub-{stem(unit)}",
            id="E-SCORE-MISSING",
            path=folder,
            needed="the outputs of tractode for this participant, and the truth of tractode-simulate",
        )
    if len(found) > 1:
        raise InputDataError(
            f"Several {what} for sub-{stem(unit)}: {', '.join(path.name for path in found)}",
            id="E-SCORE-SEVERAL",
            path=folder,
            needed="one run a participant",
        )
    return found[0]
