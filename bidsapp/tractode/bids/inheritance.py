"""The inheritance principle: which sidecars and gradient files apply to an image, from the dataset's root down to its folder.

At each level a file applies if its suffix is the image's and its entities are among the image's. One that has exactly
the image's entities stands alone at its level; two others at one level contradict each other, which BIDS forbids.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tractode.bids import names
from tractode.bids.scan import ScannedFile
from tractode.errors import InputDataError
from tractode.io.sidecar_reader import read_sidecar


@dataclass(frozen=True)
class Level:
    """The files of one folder that may apply to images below it, listed once."""

    folder: Path

    @cached_property
    def files(self) -> tuple[tuple[Path, dict[str, str], str, str], ...]:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                # The root of a large dataset holds thousands of folders: only names that can matter are parsed.
                if entry.name.endswith((".json", ".bval", ".bvec")) and not entry.is_dir():
                    parsed = names.parse(entry.name) or _without_entities(entry.name)
                    if parsed:
                        found.append((self.folder / entry.name, *parsed))
        return tuple(found)


class Levels:
    """Folders from the root of a dataset to an image, remembered between images."""

    def __init__(self, bids_dir: Path) -> None:
        self.bids_dir = bids_dir
        self._levels: dict[Path, Level] = {}

    def above(self, path: Path) -> list[Level]:
        """From the root down to the image's own folder."""
        parts = path.parent.relative_to(self.bids_dir).parts
        folders = [self.bids_dir.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
        return [self._levels.setdefault(folder, Level(folder)) for folder in folders]

    def applicable(self, image: ScannedFile, extension: str) -> list[Path]:
        """The file that applies at each level that has one, the most general first.

        Raises
        ------
        InputDataError
            Two files of one level apply.
        """
        found = []
        for level in self.above(image.path):
            candidates = [
                (path, entities)
                for path, entities, suffix, ending in level.files
                if ending == extension and suffix == image.suffix and entities.items() <= image.entities.items()
            ]
            exact = [path for path, entities in candidates if entities == image.entities]
            chosen = exact or [path for path, _ in candidates]
            if len(chosen) > 1:
                raise InputDataError(
                    f"Two files of one folder apply to this image: {', '.join(path.name for path in chosen)}",
                    id="E-DATA-AMBIGUOUS",
                    path=image.path,
                    needed=f"one {extension} file for it in a folder",
                    fix="rename or remove one, or give the image its own",
                )
            found += chosen
        return found

    def nearest(self, image: ScannedFile, extension: str) -> Path | None:
        """The file that wins whole, for formats that do not merge (bval, bvec)."""
        applicable = self.applicable(image, extension)
        return applicable[-1] if applicable else None

    def metadata(self, image: ScannedFile) -> tuple[dict[str, Any], tuple[Path, ...]]:
        """Merged sidecars, nearer ones winning, and the files they came from.

        Raises
        ------
        MissingInputError
            A sidecar was not fetched.
        InputDataError
            A sidecar is not JSON, not an object, or a field that we use is of the wrong kind.
        """
        merged: dict[str, Any] = {}
        paths = self.applicable(image, ".json")
        for path in paths:
            merged |= read_sidecar(path)
        return merged, tuple(paths)


def _without_entities(name: str) -> tuple[dict[str, str], str, str] | None:
    """Sidecars at the root may have a suffix only: ``dwi.json``, ``dwi.bval``."""
    stem, dot, rest = name.partition(".")
    return ({}, stem, dot + rest) if stem.isalnum() else None
