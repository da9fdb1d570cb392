"""Values dropped onto a grid with linear weights: the transpose of trilinear sampling, differentiable in both."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def splat(
    values: Float[Tensor, "p c"], points_vox: Float[Tensor, "p 3"], shape: tuple[int, int, int]
) -> Float[Tensor, "c i j k"]:
    """Each row of ``values`` shared among the eight voxels around its point; what falls beyond the border is lost."""
    base = points_vox.detach().floor()
    offset = points_vox - base
    first = base.long()
    size = torch.tensor(shape, device=values.device)
    total = values.new_zeros(shape[0] * shape[1] * shape[2], values.shape[1])
    for corner in range(8):
        upper = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=values.device)
        index = first + upper
        weight = torch.where(upper.bool(), offset, 1 - offset).prod(-1)
        kept = ((index >= 0) & (index < size)).all(-1).nonzero().ravel()
        flat = (index[kept, 0] * size[1] + index[kept, 1]) * size[2] + index[kept, 2]
        total = total.index_add(0, flat, values[kept] * weight[kept, None].to(values))
    return total.mT.reshape(values.shape[1], *shape)
