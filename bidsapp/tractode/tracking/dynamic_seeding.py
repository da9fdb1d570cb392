"""Seeds where streamlines are still too few for the fibre density: probabilities that follow the lines found so far.

Smith, Tournier, Calamante & Connelly, *SIFT2*, NeuroImage 2015, doi:10.1016/j.neuroimage.2015.06.092 (appendix);
MRtrix3's ``-seed_dynamic``. Departures: probabilities change between draws, whose sizes depend on the number of seeds
only (1,024, then an eighth of those before, at most 32,768), not after every streamline, so the seeds are the same for
any batch size or number of threads (as many as before would be too many: the misfit to the fibre density is then no less
than with seeds from a mask); the streamlines still to come are taken to be as many as there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import Image, ShField, Streamlines
from tractode.tracking.fixels import Fixels, fixels_of
from tractode.tracking.seeding import Seeding, Seeds
from tractode.tracking.segments import stays_in_chunks

FIRST_DRAW, LARGEST_DRAW, DRAW_SHARE = 1024, 32768, 8
FIRST_PROBABILITY = 1e-3
_UNITS = 1024.0  # lengths are added up in whole 1/1024 mm: sums of integers do not depend on their order


@dataclass(frozen=True, eq=False)
class DynamicSeeding(Seeding):
    """Fixels of an FOD field within a mask, drawn by how far the streamlines' density lags behind the fixel's.

    Seeds are uniform in the fixel's voxel and start along its axis.
    """

    field: ShField
    mask: Image | None = None

    def begun(self) -> Seeding:
        return _Dynamic(fixels_of(self.field, self.mask))

    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        return self.begun().draw(n, generator, after)

    def draw_size(self, wanted: int | None, after: int) -> int:
        return _draw_size(after)


def _draw_size(after: int) -> int:
    return min(LARGEST_DRAW, max(FIRST_DRAW, after // DRAW_SHARE))


class _Dynamic(Seeding):
    """One run of dynamic seeding: what has been found in each fixel, and how likely it was drawn."""

    def __init__(self, fixels: Fixels) -> None:
        if not len(fixels):
            raise InputDataError(
                "The orientation field has no lobe to start from within the seed mask",
                id="E-TRACK-FIXELS",
                needed="amplitudes above 0.1 in some voxels of the mask",
                fix="look at the mask and the orientation distributions in the report",
            )
        self.fixels = fixels
        self.density = torch.zeros(len(fixels), dtype=torch.float64)
        self.probability = torch.full_like(self.density, FIRST_PROBABILITY)
        # Σ of the probabilities used so far, each weighted by the seeds drawn with it.
        self.used = torch.zeros_like(self.density)
        self.n_drawn = 0

    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        if self.n_drawn:
            self.probability = self._updated()
        self.used += n * self.probability
        self.n_drawn += n
        cumulative = self.probability.cumsum(0)
        place = torch.rand(n, generator=generator, dtype=torch.float64) * cumulative[-1]
        chosen = torch.searchsorted(cumulative, place, right=True).clamp_max(len(cumulative) - 1)
        voxel = self.fixels.voxel[chosen]
        _, nj, nk = self.fixels.grid.shape
        centre = torch.stack((voxel // (nj * nk), voxel // nk % nj, voxel % nk), dim=-1)
        within = torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.5
        points = self.fixels.grid.to_world(centre + within).float()
        return Seeds(points, self.fixels.axes[chosen].double())

    def draw_size(self, wanted: int | None, after: int) -> int:
        return _draw_size(after)

    def observe(self, lines: Streamlines) -> None:
        for part in stays_in_chunks(lines, self.fixels.grid):
            fixel = self.fixels.of_stays(part)
            whole = np.rint(part.length[fixel >= 0].astype(np.float64) * _UNITS)
            total = np.bincount(fixel[fixel >= 0], weights=whole, minlength=len(self.fixels))
            self.density += torch.from_numpy(total)

    def ratio(self) -> Float[Tensor, " f"]:
        """Density of streamlines over that of fibres, 1 on average."""
        target = self.fixels.integrals.double()
        return self.density * (target.sum() / self.density.sum().clamp_min(1.0)) / target

    def _updated(self) -> Float[Tensor, " f"]:
        """Probabilities with which as many streamlines again would bring each ratio to 1; 0 where it is reached."""
        ratio = self.ratio()
        mean = self.used / self.n_drawn
        wanted = (mean * (2 - ratio) / ratio.clamp_min(1e-9)).clamp(0.0, 1.0)
        updated = torch.where(self.density > 0, torch.where(ratio < 1, wanted, 0.0), mean)
        # Where every fixel has its share, all are alike again.
        return updated if bool((updated > 0).any()) else torch.full_like(updated, FIRST_PROBABILITY)
