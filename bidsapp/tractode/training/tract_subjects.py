"""The subjects that generative tractography learns from: the library of bundles, and subjects made once and kept on disk.

A subject's file holds the coefficients of the voxels that are seen, as float16, and how far each point of the library moved.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tractode.errors import ConfigurationError
from tractode.generative.space import SPACE, training_grid
from tractode.io.atomic import atomic_path, write_text
from tractode.io.builtin_template import load_builtin
from tractode.io.trackvis import read_bundles
from tractode.simulate.bundle_library import BundleLibrary, library, simulated_bundles
from tractode.simulate.tissues import Anatomy, anatomy
from tractode.simulate.tract_subject import TractSubject, TractSubjectSettings, synthesise

RECORD = "subjects.json"
_FORMAT = 1


def template_anatomy(resolution: float = 2.0) -> Anatomy:
    """The built-in template at the resolution (mm) at which subjects are painted."""
    return anatomy(*(load_builtin(name, resolution) for name in ("T1w", "GM", "WM", "mask")))  # type: ignore[arg-type]


def read_library(folder: Path, brain: Anatomy | None = None) -> BundleLibrary:
    """The bundles of an atlas folder (tractograms in MNI space, one a bundle) and the simulator's own courses.

    Raises
    ------
    MissingInputError
        The folder holds no tractogram.
    """
    return library(read_bundles(folder, SPACE), simulated_bundles(brain or template_anatomy()))


class SubjectCache:
    """Subjects by number, made when they are first asked for; several processes may share the folder.

    Raises
    ------
    ConfigurationError
        The folder's subjects were made with other settings or another library.
    """

    def __init__(
        self,
        folder: Path,
        bundles: BundleLibrary,
        settings: TractSubjectSettings | None = None,
        brain: Anatomy | None = None,
    ) -> None:
        self.folder, self.library, self.settings = folder, bundles, settings or TractSubjectSettings()
        self._brain = brain
        self._check()

    @cached_property
    def anatomy(self) -> Anatomy:
        return self._brain or template_anatomy()

    def record(self) -> dict[str, Any]:
        """What the subjects depend on."""
        settings = json.loads(json.dumps(asdict(self.settings)))
        return {"format": _FORMAT, "library": self.library.hash(), "settings": settings}

    def path(self, number: int) -> Path:
        return self.folder / f"subject-{number:05d}.safetensors"

    def ready(self) -> list[int]:
        """Numbers of the subjects that exist."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in self.folder.glob("subject-*.safetensors"))

    def __getitem__(self, number: int) -> TractSubject:
        path = self.path(number)
        if not path.is_file():
            self.make(number)
        return self._read(path)

    def make(self, number: int) -> None:
        """Synthesise a subject and write it, whole or not at all."""
        made = synthesise(self.library, self.anatomy, number, self.settings)
        seen = made.coeffs[0] != 0
        tensors = {
            "voxels": seen.reshape(-1).nonzero().ravel().int(),
            "coeffs": made.coeffs[:, seen].half().contiguous(),
            "moved": (made.lines - self.library.lines).half().contiguous(),
            "present": made.present,
            "kept": made.kept,
        }
        with atomic_path(self.path(number)) as temporary:
            save_file(tensors, temporary)

    def fill(self, first: int, last: int) -> None:
        """Make those of the subjects ``first`` … ``last`` (not included) that do not exist."""
        for number in range(first, last):
            if not self.path(number).is_file():
                self.make(number)

    def _read(self, path: Path) -> TractSubject:
        try:
            found = load_file(path)
        except SafetensorError as error:
            raise ConfigurationError(
                f"The subject cannot be read ({error})",
                id="E-SUBJECTS-READ",
                path=path,
                fix="delete the file; it is made again when it is needed",
            ) from error
        grid = training_grid()
        coeffs = torch.zeros(len(found["coeffs"]), grid.n_voxels)
        coeffs[:, found["voxels"].long()] = found["coeffs"].float()
        lines = self.library.lines + found["moved"].float()
        return TractSubject(coeffs.reshape(-1, *grid.shape), lines, found["present"], found["kept"])

    def _check(self) -> None:
        path = self.folder / RECORD
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(self.record(), indent=2) + "\n")
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            stored = None
        if stored != self.record():
            raise ConfigurationError(
                "The subjects of this folder were made with other settings or from other bundles",
                id="E-SUBJECTS-SETTINGS",
                path=self.folder,
                fix="give another folder, or delete this one",
            )
