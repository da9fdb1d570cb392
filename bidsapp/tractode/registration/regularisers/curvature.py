"""Curvature of a vector field: B. Fischer, J. Modersitzki, JMIV 18:81 (2003), doi:10.1023/A:1021897212261, equation 4."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tractode.contracts import Regulariser
from tractode.ops import finite_difference
from tractode.registration.regularisers.weighting import inner, mean_of


@dataclass(frozen=True)
class Curvature(Regulariser):
    """Mean over inner voxels of the squared Laplacian ``|Δu|²``, 1/mm²; 0 for affine and other harmonic fields."""

    def __call__(
        self,
        values: Float[Tensor, "3 i j k"],
        voxel_sizes: tuple[float, float, float],
        weight: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        laplacian = finite_difference.second_derivatives(values, voxel_sizes)[:, :3].sum(1)
        return mean_of(laplacian.square().sum(0), inner(weight))
