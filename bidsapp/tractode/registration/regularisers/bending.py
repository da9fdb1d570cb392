"""Bending energy of a vector field: D. Rueckert et al., IEEE TMI 18:712 (1999), doi:10.1109/42.796284, equation 9."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import Regulariser
from tractode.ops import finite_difference
from tractode.registration.regularisers.weighting import inner, mean_of


@dataclass(frozen=True)
class Bending(Regulariser):
    """Mean over inner voxels of the squared second derivatives, 1/mm²; 0 for an affine field."""

    def __call__(
        self,
        values: Float[Tensor, "3 i j k"],
        voxel_sizes: tuple[float, float, float],
        weight: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        seconds = finite_difference.second_derivatives(values, voxel_sizes)
        # Mixed derivatives occur twice in the Hessian's norm.
        twice = torch.tensor([1, 1, 1, 2, 2, 2], dtype=values.dtype, device=values.device).reshape(6, 1, 1, 1)
        return mean_of((seconds.square() * twice).sum((0, 1)), inner(weight))
