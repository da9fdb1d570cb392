"""Squared length of a vector field: of a velocity, the kinetic energy of the flow.

M. F. Beg et al., "Computing large deformation metric mappings via geodesic flows of diffeomorphisms", IJCV 61:139 (2005),
doi:10.1023/B:VISI.0000043755.93987.aa, with the identity in place of their smoothing operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tractode.contracts import Regulariser
from tractode.registration.regularisers.weighting import mean_of


@dataclass(frozen=True)
class Magnitude(Regulariser):
    """Mean over voxels of ``|u|²``, mm²; the only regulariser here that a shift does not escape."""

    resists_shifts: ClassVar[bool] = True

    def __call__(
        self,
        values: Float[Tensor, "3 i j k"],
        voxel_sizes: tuple[float, float, float],
        weight: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        return mean_of(values.square().sum(0), weight)
