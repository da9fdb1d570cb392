"""The input dataset as a whole: its description, its participants, and the labels that were asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from tractode.bids.names import is_label
from tractode.bids.scan import IgnoredFile
from tractode.errors import InvalidDatasetError, MissingInputError, NoMatchError
from tractode.io.notes import Note, warning
from tractode.io.sidecar_reader import read_sidecar


def participant_labels(bids_dir: Path) -> tuple[list[str], list[IgnoredFile]]:
    """Labels of all participants, sorted, and folders that look like one but are not.

    Raises
    ------
    MissingInputError
        The folder does not exist.
    InvalidDatasetError
        It is not a folder, or has no participant.
    """
    if not bids_dir.exists():
        raise MissingInputError(
            "The dataset does not exist", id="E-DATA-NODIR", path=bids_dir, fix="correct the first argument"
        )
    if not bids_dir.is_dir():
        raise InvalidDatasetError(
            "The dataset is not a folder",
            id="E-BIDS-NOTDIR",
            path=bids_dir,
            fix="give the folder that holds the sub-* folders",
        )
    labels, ignored = [], []
    with os.scandir(bids_dir) as entries:
        for entry in entries:
            prefix, _, label = entry.name.partition("-")
            if prefix.lower() != "sub" or not entry.is_dir():
                continue
            if prefix == "sub" and is_label(label):
                labels.append(label)
            else:
                ignored.append(
                    IgnoredFile(f"{entry.name}/", "not a participant's folder: sub- and letters or digits only")
                )
    if not labels:
        raise _no_participants(bids_dir)
    return sorted(labels), ignored


def check_description(bids_dir: Path) -> list[Note]:
    """Read ``dataset_description.json``: absent is a warning, unreadable an error.

    Raises
    ------
    InputDataError
        It is not JSON, or not an object.
    """
    path = bids_dir / "dataset_description.json"
    if not path.is_symlink() and not path.exists():
        return [warning("W-BIDS-NODESCRIPTION", f"{path.name} is missing: BIDS requires it; going on without")]
    content = read_sidecar(path)
    if content.get("DatasetType", "raw") == "derivative":
        return [warning("W-BIDS-DERIVATIVE", "the input calls itself a derivative: only files with raw names are used")]
    return []


def check_participants_table(bids_dir: Path, labels: Sequence[str]) -> list[Note]:
    """Warn of a ``participants.tsv`` that is empty or disagrees with the folders; nothing is ever taken from it."""
    path = bids_dir / "participants.tsv"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        return [warning("W-BIDS-PARTICIPANTS", "participants.tsv cannot be read; it is not needed")]
    rows = [line.split("\t")[0].strip() for line in text.splitlines() if line.strip()]
    if not rows or rows[0] != "participant_id":
        return [warning("W-BIDS-PARTICIPANTS", "participants.tsv does not begin with participant_id; it is not needed")]
    listed = {row.removeprefix("sub-") for row in rows[1:]}
    differing = sorted(listed.symmetric_difference(labels))
    if differing:
        shown = ", ".join(differing[:5]) + (" …" if len(differing) > 5 else "")
        return [warning("W-BIDS-PARTICIPANTS", f"participants.tsv and the sub-* folders differ: {shown}")]
    return []


def choose_labels(asked: Sequence[str], available: Sequence[str]) -> list[str]:
    """The asked participants in the dataset's order; all if none was asked for. ``1`` is never taken for ``01``.

    Raises
    ------
    NoMatchError
        Labels that are not there, all of them, with the nearest that are.
    """
    wanted = {label.removeprefix("sub-") for label in asked}
    missing = sorted(wanted.difference(available))
    if missing:
        near = {label: _nearest(label, available) for label in missing}
        hints = "; ".join(f"{label}: did you mean {' or '.join(close)}?" for label, close in near.items() if close)
        raise NoMatchError(
            f"Not in the dataset: {', '.join('sub-' + label for label in missing)}",
            id="E-MATCH-PARTICIPANT",
            needed=f"labels among the {len(available)} that exist ({', '.join(available[:8])}{' …' if len(available) > 8 else ''})",
            fix=hints or "correct --participant-label",
        )
    return [label for label in available if not wanted or label in wanted]


def _nearest(label: str, available: Sequence[str]) -> list[str]:
    stripped = [other for other in available if other.lstrip("0") == label.lstrip("0")]
    lower = {other.lower(): other for other in available}
    close = [lower[match] for match in get_close_matches(label.lower(), list(lower), n=3)]
    return list(dict.fromkeys(stripped + close))[:3]


def _no_participants(bids_dir: Path) -> InvalidDatasetError:
    deeper = []
    for child in sorted(path for path in bids_dir.iterdir() if path.is_dir() and not path.name.startswith(".")):
        with os.scandir(child) as entries:
            if any(entry.name.startswith("sub-") and entry.is_dir() for entry in entries):
                deeper.append(child.name)
    hint = f"give the folder {deeper[0]} inside it" if deeper else "give the folder that holds the sub-* folders"
    return InvalidDatasetError(
        "There is no sub-* folder", id="E-BIDS-NOSUBJECTS", path=bids_dir, needed="a BIDS dataset", fix=hint
    )
