"""Seeds on the interface of grey and white matter, found from five-tissue maps.

Smith, Tournier, Calamante & Connelly, NeuroImage 2012, doi:10.1016/j.neuroimage.2012.06.005; MRtrix3's ``-seed_gmwmi``.
Random points near the interface are moved along the gradient of grey minus white matter until the two are equal.
Departures: Newton's steps with the maps' own gradient; points start anywhere in the voxels that the interface crosses,
and are not moved along it again. No direction is given: `Anatomy` keeps the half of a line that leads into white matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import Image
from tractode.tracking.seeding import Seeding, Seeds
from tractode.tracking.seeds import seeds_in_mask
from tractode.tracking.tissues import INTERFACE_ACCURACY, TissueMaps

ITERATIONS = 10
ROUNDS = 50


@dataclass(frozen=True, eq=False)
class InterfaceSeeding(Seeding):
    """Points where grey exceeds white matter by less than 1 %. ``near`` restricts the voxels that points start in.

    Raises `InputDataError` where no interface is found.
    """

    tissues: TissueMaps
    near: Image | None = None

    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        start = self.tissues.interface_voxels() if self.near is None else self.near
        found: list[Tensor] = []
        count = 0
        for _ in range(ROUNDS):
            # Half as many again: a fixed number, so that what is drawn does not depend on what was found.
            points, is_there = onto_interface(self.tissues, seeds_in_mask(start, n + n // 2 + 64, generator).double())
            found.append(points[is_there][: n - count])
            count += len(found[-1])
            if count >= n:
                return Seeds(torch.cat(found).float())
        raise InputDataError(
            f"Of {ROUNDS * (n + n // 2 + 64)} points near grey and white matter {count} could be moved onto their interface",
            id="E-TRACK-INTERFACE",
            needed=f"five-tissue maps in which grey and white matter touch ({n} seeds were asked for)",
            fix="look at the tissues in the report; seed in white matter",
        )


def onto_interface(
    tissues: TissueMaps, points: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "n 3"], Bool[Tensor, " n"]]:
    """Points (RAS+ mm) moved to where grey barely exceeds white matter, and which of them have arrived."""
    longest = 0.5 * min(tissues.grid.voxel_sizes)
    with torch.no_grad():
        for _ in range(ITERATIONS):
            slope = tissues.slope(points)
            # Aiming between equality and the largest excess leaves room for rounding on both sides.
            missing = tissues.at(points).excess - INTERFACE_ACCURACY / 2
            step = -slope * (missing / slope.square().sum(-1).clamp_min(1e-12))[:, None]
            norm = step.norm(dim=-1, keepdim=True)
            points = points + step * (longest / norm.clamp_min(1e-12)).clamp_max(1.0)
        at = tissues.at(points.float())
        is_there = at.is_valid & ~at.is_csf & ~at.is_pathological & (at.white > 0)
        return points, is_there & (at.excess > 0) & (at.excess < INTERFACE_ACCURACY)
