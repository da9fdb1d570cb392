"""Orientation fields: spherical harmonics, tensors and peaks, all in the RAS+ scanner frame of their grid."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tractode.errors import ShapeError
from tractode.fields.image import ImageGrid


def n_coefficients(order: int) -> int:
    """Number of even-order real SH coefficients: (l + 1)(l + 2) / 2.

    >>> n_coefficients(8)
    45
    """
    return (order + 1) * (order + 2) // 2


def order_of(n: int) -> int:
    """Inverse of `n_coefficients`; raises where ``n`` is no such number."""
    for order in range(0, 31, 2):
        if n_coefficients(order) == n:
            return order
    raise ShapeError(f"{n} is not a number of even spherical-harmonic coefficients (1, 6, 15, 28, 45, 66, 91, …).")


@dataclass(frozen=True, eq=False)
class ShField:
    """Real symmetric SH coefficients (MRtrix3 / tournier07, non-legacy), index l(l+1)/2 + m."""

    grid: ImageGrid
    coeffs: Float[Tensor, "l i j k"]
    order: int

    def __post_init__(self) -> None:
        if tuple(self.coeffs.shape) != (n_coefficients(self.order), *self.grid.shape):
            raise ShapeError(
                f"Order {self.order} on {self.grid.shape} needs {n_coefficients(self.order)} coefficients; got {tuple(self.coeffs.shape)}."
            )


@dataclass(frozen=True, eq=False)
class TensorField:
    """Diffusion tensors, mm²/s, components in the order Dxx Dxy Dxz Dyy Dyz Dzz (BEP016)."""

    grid: ImageGrid
    components: Float[Tensor, "6 i j k"]

    def __post_init__(self) -> None:
        if tuple(self.components.shape) != (6, *self.grid.shape):
            raise ShapeError(f"A tensor field needs (6, {self.grid.shape}); got {tuple(self.components.shape)}.")


@dataclass(frozen=True, eq=False)
class PeakField:
    """Up to k unit directions a voxel and their amplitudes, largest first; absent peaks are zero."""

    grid: ImageGrid
    directions: Float[Tensor, "k 3 i j k2"]
    amplitudes: Float[Tensor, "k i j k2"]

    def __post_init__(self) -> None:
        k = self.amplitudes.shape[0]
        if (
            tuple(self.directions.shape) != (k, 3, *self.grid.shape)
            or tuple(self.amplitudes.shape[1:]) != self.grid.shape
        ):
            raise ShapeError(
                f"Peaks on {self.grid.shape} need directions (k, 3, …) and amplitudes (k, …); got {tuple(self.directions.shape)} and {tuple(self.amplitudes.shape)}."
            )
