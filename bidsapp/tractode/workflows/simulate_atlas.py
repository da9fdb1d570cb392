"""Simulated participants whose bundles are those of an atlas on disk, not the simulator's own courses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tractode.errors import InputDataError, UsageError
from tractode.fields import Streamlines
from tractode.generative.space import SPACE
from tractode.io.trackvis import read_bundles
from tractode.simulate.bundle_library import BundleLibrary, library
from tractode.simulate.bundle_variation import NO_VARIATION, VariationSettings, vary
from tractode.simulate.subject import matching_names
from tractode.simulate.tissues import Anatomy
from tractode.simulate.tract_subject import bundles_of
from tractode.training.cards import is_hcp1065
from tractode.workflows.simulate_settings import AtlasSettings


@dataclass(frozen=True, eq=False)
class Atlas:
    """The bundles of a folder; ``tracts`` are their names in file names, one for each of the library, ``chosen`` some of them."""

    library: BundleLibrary
    tracts: tuple[str, ...]
    chosen: tuple[str, ...]
    settings: AtlasSettings

    def drawn(self, brain: Anatomy, generator: torch.Generator, step_mm: float) -> dict[str, Streamlines]:
        """One participant's bundles in the template. All are drawn, so that choosing some changes none of them."""
        person = vary(self.library, brain.t1w.grid, generator, between_people(self.settings))
        found = bundles_of(self.library, person, brain.t1w.grid.space, step_mm)
        named = {tract: found.get(name) for tract, name in zip(self.tracts, self.library.names, strict=True)}
        return {tract: lines for tract, lines in named.items() if lines is not None and tract in self.chosen}


def between_people(settings: AtlasSettings) -> VariationSettings:
    """What varies from bundle to bundle. What registration would leave is no part of it: participants have warps of their own."""
    still = replace(NO_VARIATION, lines=settings.lines)
    if settings.variation == 0:
        return still
    usual, scale = VariationSettings(), settings.variation
    return replace(
        still,
        presence=usual.presence,
        shares=usual.shares,
        shift_mm=scale * usual.shift_mm,
        bend_mm=scale * usual.bend_mm,
        width=scale * usual.width,
    )


def read_atlas(settings: AtlasSettings, chosen: tuple[str, ...] = ()) -> Atlas:
    """The tractograms of the folder, in MNI space, one a bundle; ``chosen`` are names of files or of their bundles in file names.

    Raises
    ------
    MissingInputError
        The folder holds no tractogram.
    InputDataError
        Its tractograms hold no line, or two bundles would get the same name.
    UsageError
        There is no bundle of a chosen name.
    """
    found = {name: lines for name, lines in read_bundles(settings.folder, SPACE).items() if len(lines)}
    bundles = library(found, fewest=1) if any(not name.startswith("CranialNerve") for name in found) else None
    if bundles is None:
        raise InputDataError(
            "The tractograms of this folder hold no line that could be simulated",
            id="E-ATLAS-EMPTY",
            path=settings.folder,
            needed="bundles in MNI space (cranial nerves are left out)",
        )
    tracts = tuple(tract_label(name) for name in bundles.names)
    _check(tracts, bundles, settings.folder)
    try:
        wanted = matching_names([tract_label(name) for name in chosen], tracts) if chosen else tracts
    except KeyError as unknown:
        raise UsageError(
            f"There is no bundle {unknown} in the atlas",
            id="E-CLI-BUNDLE",
            needed=f"some of {', '.join(tracts)}, or a name without its side for both",
        ) from unknown
    return Atlas(bundles, tracts, wanted, settings)


def tract_label(name: str) -> str:
    """A bundle's name as the value of an entity: letters and digits only.

    >>> tract_label("Association_CingulumL_Parolfactory")
    'AssociationCingulumLParolfactory'
    """
    return re.sub(r"[^0-9A-Za-z]", "", name)


def told(atlas: Atlas) -> str:
    """Where the bundles are from, and whose terms apply."""
    made = atlas.settings
    text = (
        f"The bundles are those of the atlas {made.folder.resolve().name} "
        f"(lines: {made.lines}; variation between participants: {made.variation:g})."
    )
    if is_hcp1065(atlas.library.names):
        text += (
            " It is the HCP1065 population-based tractography atlas (Yeh 2022, doi:10.1038/s41467-022-32595-4), "
            "CC BY-SA 4.0, and so is what was made from it."
        )
    return text


def _check(tracts: tuple[str, ...], bundles: BundleLibrary, folder: Path) -> None:
    for tract, name in zip(tracts, bundles.names, strict=True):
        if not tract or tracts.count(tract) > 1:
            raise InputDataError(
                f"The bundle {name!r} has no name of its own in letters and digits",
                id="E-ATLAS-NAME",
                path=folder,
                needed="names that differ by more than punctuation",
                fix="rename the file",
            )
