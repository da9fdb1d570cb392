"""A velocity field on a grid: what the flow of a registration integrates."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tractode.errors import ShapeError
from tractode.fields.image import ImageGrid


@dataclass(frozen=True, eq=False)
class VelocityField:
    """Velocities in mm per unit time, RAS+ components, at ``t`` equally spaced times in [0, 1] (one if stationary)."""

    grid: ImageGrid
    values: Float[Tensor, "t 3 i j k"]

    def __post_init__(self) -> None:
        if self.values.ndim != 5 or tuple(self.values.shape[1:]) != (3, *self.grid.shape):
            raise ShapeError(
                f"A velocity field on {self.grid.shape} needs (t, 3, i, j, k); got {tuple(self.values.shape)}."
            )

    @property
    def is_stationary(self) -> bool:
        return self.values.shape[0] == 1
