"""Groups of 64 held-out lines of held-out persons: what every codec is judged by.

Persons are those of seeds from 1,000,000 (training: from 0), varied from the lines of the atlas that nothing learned from. Every bundle
with at least 8 such lines gives one group a person, in random order; a bundle of fewer than 64 fills its group by its lines over
again, each moved as a whole by a normal shift of 1 mm along each axis (`simulate/line_groups.py`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.fields import Streamlines
from tractode.generative.space import SPACE, training_grid
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.line_groups import N_LINES, TO_TEST, group, person
from tractode.training.codec_paper import at_64
from tractode.training.tract_subjects import read_library

FIRST_SEED, FEWEST = 1_000_000, 8

# The paper's twelve bundles, and the nearest of the atlas.
PAPER_BUNDLES = {
    "PYT_R": "ProjectionBrainstem_CorticospinalTractR",
    "PYT_L": "ProjectionBrainstem_CorticospinalTractL",
    "POPT_R": "ProjectionBrainstem_CorticopontineTractR_Parietal",
    "POPT_L": "ProjectionBrainstem_CorticopontineTractL_Parietal",
    "ILF_R": "Association_InferiorLongitudinalFasciculusR",
    "ILF_L": "Association_InferiorLongitudinalFasciculusL",
    "IFOF_R": "Association_InferiorFrontoOccipitalFasciculusR",
    "IFOF_L": "Association_InferiorFrontoOccipitalFasciculusL",
    "FPT_R": "ProjectionBrainstem_CorticopontineTractR_Frontal",
    "FPT_L": "ProjectionBrainstem_CorticopontineTractL_Frontal",
    "CC_Fr_1": "Commissure_CorpusCallosum_ForcepsMinor",
    "MCP": "Cerebellum_MiddleCerebellarPeduncle",
}


@dataclass(frozen=True, eq=False)
class TestSet:
    """``lines`` as given to codecs (31 points), ``truth`` the same by 64 points; ``bundle`` indexes ``names``."""

    names: tuple[str, ...]
    lines: Float[Tensor, "g 64 31 3"]
    truth: Float[Tensor, "g 64 64 3"]
    bundle: Int[Tensor, " g"]
    n_persons: int
    n_distinct: int

    def streamlines(self, groups: slice = slice(None)) -> Streamlines:
        """The lines of some groups, one group after another."""
        return as_streamlines(self.lines[groups])


def as_streamlines(groups: Float[Tensor, "g s p 3"]) -> Streamlines:
    """Lines of groups as streamlines of the template's space."""
    n, n_points = groups.shape[0] * groups.shape[1], groups.shape[2]
    return Streamlines(groups.reshape(-1, 3), torch.arange(n + 1) * n_points, SPACE)


def atlas_folder() -> Path:
    return Path(os.environ["TRACTODE_TEST_DATA"]) / "bundles_atlas"


def load_library() -> BundleLibrary:
    return read_library(atlas_folder())


def test_set(library: BundleLibrary, n_persons: int) -> TestSet:
    """Held-out groups of so many persons."""
    lines, bundle, distinct = [], [], 0
    for number in range(n_persons):
        one = person(library, training_grid(), FIRST_SEED + number, TO_TEST, FEWEST)
        generator = torch.Generator().manual_seed(FIRST_SEED + number)
        for index in one.bundle.unique().tolist():
            own = one.of(index)
            lines.append(group(own, generator))
            bundle.append(index)
            distinct += min(len(own), N_LINES)
    groups = torch.stack(lines)
    return TestSet(library.names, groups, at_64(groups), torch.tensor(bundle), n_persons, distinct)
