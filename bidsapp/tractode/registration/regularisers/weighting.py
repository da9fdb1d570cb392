"""Means over voxels with a weight that varies over space: what every regulariser ends with."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def mean_of(costs: Float[Tensor, "i j k"], weight: Float[Tensor, "i j k"] | None) -> Float[Tensor, ""]:
    """The mean over all voxels of cost times weight."""
    return costs.mean() if weight is None else (costs * weight.to(costs)).mean()


def inner(weight: Float[Tensor, "i j k"] | None) -> Float[Tensor, "r s t"] | None:
    """The weights of the voxels that have neighbours on all sides."""
    return None if weight is None else weight[1:-1, 1:-1, 1:-1]
