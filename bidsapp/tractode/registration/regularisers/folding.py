"""A barrier against folding: the shortfall of the Jacobian determinant below a bound.

T. C. W. Mok, A. C. S. Chung, "Fast symmetric diffeomorphic image registration with convolutional neural networks", CVPR 2020,
doi:10.1109/CVPR42600.2020.00470, equation 7. Departures: squared (smooth at the bound), and the bound is above 0, as in
Wu et al., NODEO, CVPR 2022, doi:10.1109/CVPR52688.2022.02018.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tractode.contracts import Regulariser
from tractode.ops import finite_difference


@dataclass(frozen=True)
class Folding(Regulariser):
    """Mean of ``relu(bound − det J)²`` of ``x + u(x)``; components of ``u`` along the grid's own axes."""

    bound: float = 0.3

    def __call__(self, values: Float[Tensor, "3 i j k"], voxel_sizes: tuple[float, float, float]) -> Float[Tensor, ""]:
        jacobians = finite_difference.determinant(finite_difference.jacobian(values, voxel_sizes))
        return (self.bound - jacobians).clamp_min(0).square().mean()
