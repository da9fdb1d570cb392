"""A barrier against folding: the shortfall of the Jacobian determinant below ε.

T. C. W. Mok, A. C. S. Chung, "Fast symmetric diffeomorphic image registration with convolutional neural networks", CVPR 2020,
doi:10.1109/CVPR42600.2020.00470, equation 7, with the ε above 0 and the square of Wu et al., NODEO, CVPR 2022,
doi:10.1109/CVPR52688.2022.02018 (``ε = 0.5`` there): the larger ε, the earlier shrinking is resisted.

Departure: all ten Jacobians of every cell (Y. Liu et al., IJCV 132:3678 (2024), doi:10.1007/s11263-024-02047-1) stand before
the barrier, since those are what the certificate counts; central differences pass by a fold between two voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tractode.contracts import Regulariser
from tractode.ops import finite_difference
from tractode.registration.regularisers.weighting import mean_of


@dataclass(frozen=True)
class Folding(Regulariser):
    """Mean of ``relu(ε − det J)²`` of ``x + u(x)``; components of ``u`` along the grid's own axes.

    Parameters
    ----------
    epsilon
        Ratio of volumes below which shrinking is resisted.
    ten
        Whether the ten one-sided Jacobians of every cell are examined, or the central one of every voxel (a third of the
        time).
    """

    epsilon: float = 0.3
    ten: bool = True

    def __call__(
        self,
        values: Float[Tensor, "3 i j k"],
        voxel_sizes: tuple[float, float, float],
        weight: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        if not self.ten:
            jacobians = finite_difference.determinant(finite_difference.jacobian(values, voxel_sizes))
            return mean_of((self.epsilon - jacobians).clamp_min(0).square(), weight)
        sizes = torch.tensor(voxel_sizes, dtype=values.dtype, device=values.device)
        axes = [torch.arange(n, dtype=values.dtype, device=values.device) for n in values.shape[1:]]
        here = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        jacobians = finite_difference.ten_jacobians(here + values.permute(1, 2, 3, 0) / sizes)
        # A cell weighs as its eight corners do on average.
        cells = None if weight is None else functional.avg_pool3d(weight[None], 2, stride=1)[0]
        return mean_of((self.epsilon - jacobians).clamp_min(0).square().mean(0), cells)
