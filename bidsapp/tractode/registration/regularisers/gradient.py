"""Squared slope of a vector field (diffusion regularisation): B. Fischer, J. Modersitzki (2002), doi:10.1090/conm/313/05372."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tractode.contracts import Regulariser
from tractode.ops import finite_difference
from tractode.registration.regularisers.weighting import mean_of


@dataclass(frozen=True)
class Gradient(Regulariser):
    """Mean over voxels of ``|∇u|²``, (mm/mm)²; 0 for a shift, unchanged by turning the world."""

    def __call__(
        self,
        values: Float[Tensor, "3 i j k"],
        voxel_sizes: tuple[float, float, float],
        weight: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        return mean_of(finite_difference.gradient(values, voxel_sizes).square().sum((0, 1)), weight)
