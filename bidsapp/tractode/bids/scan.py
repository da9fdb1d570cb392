"""A participant's folder read once: which files could be used, and why every other one is left aside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tractode.bids import names

IMAGES = (".nii", ".nii.gz")
DATATYPES = ("anat", "dwi", "fmap")


@dataclass(frozen=True)
class IgnoredFile:
    """A file or folder (written with a final slash) that will not be used, relative to the dataset, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ScannedFile:
    """A file whose name makes sense where it lies."""

    path: Path
    entities: dict[str, str]
    suffix: str
    extension: str
    datatype: str

    @property
    def session(self) -> str | None:
        return self.entities.get("ses")

    @property
    def stem(self) -> str:
        return names.stem(self.entities)


def scan_participant(bids_dir: Path, label: str) -> tuple[list[ScannedFile], list[IgnoredFile]]:
    """Every file of a participant, sorted: those of anat, dwi and fmap with a good name, and all others with a reason."""
    root = bids_dir / f"sub-{label}"
    kept: list[ScannedFile] = []
    ignored: list[IgnoredFile] = []
    for session, folder in _session_folders(bids_dir, root, ignored):
        for entry in _entries(folder):
            path = folder / entry.name
            if not entry.is_dir():
                ignored.append(_ignore(bids_dir, path, _why_stray(entry)))
            elif entry.name in DATATYPES:
                _scan_datatype(bids_dir, path, label, session, kept, ignored)
            elif not (session is None and entry.name.startswith("ses-")):
                ignored.append(_ignore(bids_dir, path, "a folder of another modality", is_folder=True))
    return kept, ignored


def _session_folders(bids_dir: Path, root: Path, ignored: list[IgnoredFile]) -> Iterator[tuple[str | None, Path]]:
    yield None, root
    for entry in _entries(root):
        if not entry.name.startswith("ses-") or not entry.is_dir():
            continue
        label = entry.name.removeprefix("ses-")
        if names.is_label(label):
            yield label, root / entry.name
        else:
            ignored.append(
                _ignore(bids_dir, root / entry.name, "not a session label: letters and digits only", is_folder=True)
            )


def _scan_datatype(
    bids_dir: Path,
    folder: Path,
    label: str,
    session: str | None,
    kept: list[ScannedFile],
    ignored: list[IgnoredFile],
) -> None:
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.is_dir() and not (folder.name == "dwi" and entry.name.endswith(tuple(f"_dwi{end}" for end in IMAGES))):
            ignored.append(_ignore(bids_dir, path, "a folder inside a modality folder", is_folder=True))
            continue
        parsed = names.parse(entry.name)
        reason = _why_junk(entry) or _why_misplaced(parsed, label, session)
        if reason or parsed is None:
            ignored.append(_ignore(bids_dir, path, reason))
        else:
            kept.append(ScannedFile(path, *parsed, folder.name))


def _why_stray(entry: os.DirEntry[str]) -> str:
    return _why_junk(entry) or "not in a modality folder"


def _why_junk(entry: os.DirEntry[str]) -> str:
    if entry.name.startswith("."):
        return "a hidden file"
    if entry.name.endswith("~") or entry.name.endswith((".bak", ".tmp", ".swp")):
        return "a backup or temporary file"
    if not entry.is_file() and not entry.is_symlink() and not entry.is_dir():
        return "not a regular file"
    return ""


def _why_misplaced(parsed: tuple[dict[str, str], str, str] | None, label: str, session: str | None) -> str:
    if parsed is None:
        return "not a BIDS name"
    entities = parsed[0]
    if entities.get("sub") != label:
        return f"named for another participant ({'sub-' + entities['sub'] if 'sub' in entities else 'none'})"
    if entities.get("ses") != session:
        return "its session differs from its folder"
    derived = sorted(names.derived_entities().intersection(entities))
    if derived:
        return f"a derivative, not a raw scan ({', '.join(derived)} in its name)"
    return ""


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _ignore(bids_dir: Path, path: Path, reason: str, *, is_folder: bool = False) -> IgnoredFile:
    return IgnoredFile(path.relative_to(bids_dir).as_posix() + ("/" if is_folder else ""), reason)
