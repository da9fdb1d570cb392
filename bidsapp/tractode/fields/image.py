"""A voxel grid in the world, and values on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tractode.errors import ShapeError, SpaceMismatchError
from tractode.ops import affine as aff
from tractode.ops import interpolate


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """Shape, voxel-to-world affine (RAS+ mm, float64 on the CPU) and the name of the space.

    ``space`` is what transforms check: ``"sub-01_run-1_dwi"``, ``"sub-01_T1w"``, ``"MNI152NLin2009cAsym"``.
    Two grids of one space may differ in shape and affine.
    """

    shape: tuple[int, int, int]
    affine: Float[Tensor, "4 4"]
    space: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "affine", self.affine.detach().to("cpu", torch.float64))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ShapeError(f"A grid needs three positive sizes; got {self.shape}.")
        if not torch.isfinite(self.affine).all() or abs(float(torch.det(self.affine[:3, :3]))) < 1e-12:
            raise ShapeError(f"The affine of a grid must be finite and invertible; got {self.affine.tolist()}.")
        object.__setattr__(self, "_inverse_rows", tuple(map(tuple, torch.linalg.inv(self.affine).tolist())))

    @property
    def voxel_sizes(self) -> tuple[float, float, float]:
        """Voxel edge lengths, mm."""
        i, j, k = aff.voxel_sizes(self.affine).tolist()
        return i, j, k

    @property
    def n_voxels(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def inverse_affine(self) -> Float[Tensor, "4 4"]:
        return torch.linalg.inv(self.affine)

    @property
    def inverse_rows(self) -> tuple[tuple[float, ...], ...]:
        """The rows of `inverse_affine` as plain numbers, computed once: constants to whatever compiles their use."""
        return self._inverse_rows  # type: ignore[attr-defined]

    def to_world(self, points_vox: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """Voxel indices (centres at integers) → RAS+ mm."""
        return aff.apply_affine(self.affine, points_vox)

    def to_voxel(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """RAS+ mm → voxel indices."""
        return aff.apply_affine(self.inverse_affine, points)

    def centres(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """World position of every voxel centre, ``(i, j, k, 3)`` in RAS+ mm."""
        axes = [torch.arange(n, dtype=torch.float64, device=device) for n in self.shape]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return self.to_world(index).to(dtype)

    def resampled(self, voxel_size: float) -> ImageGrid:
        """The same field of view with cubic voxels of ``voxel_size`` mm, corners kept."""
        sizes = torch.tensor(self.voxel_sizes, dtype=torch.float64)
        factor = voxel_size / sizes
        shape = [max(1, round(float(n / f))) for n, f in zip(self.shape, factor, strict=True)]
        affine = self.affine.clone()
        affine[:3, :3] = self.affine[:3, :3] * factor
        # The corner of the first voxel stays where it is: centre moves by half the change of voxel size.
        affine[:3, 3] = self.affine[:3, 3] + self.affine[:3, :3] @ ((factor - 1) / 2)
        return ImageGrid((shape[0], shape[1], shape[2]), affine, self.space)

    def renamed(self, space: str) -> ImageGrid:
        return ImageGrid(self.shape, self.affine, space)

    def matches(self, other: ImageGrid, tolerance: float = 1e-3) -> bool:
        """Same shape, and corners within ``tolerance`` mm; the name of the space is not compared."""
        if self.shape != other.shape:
            return False
        corners = torch.tensor(
            [[i, j, k] for i in (0, self.shape[0] - 1) for j in (0, self.shape[1] - 1) for k in (0, self.shape[2] - 1)],
            dtype=torch.float64,
        )
        return bool(((self.to_world(corners) - other.to_world(corners)).norm(dim=-1) < tolerance).all())


@dataclass(frozen=True, eq=False)
class Image:
    """Values on a grid, channels first. A mask is an ``Image`` of one boolean channel."""

    grid: ImageGrid
    values: Shaped[Tensor, "c i j k"]

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or tuple(self.values.shape[1:]) != self.grid.shape:
            raise ShapeError(
                f"An image on a grid of {self.grid.shape} needs values (c, i, j, k); got {tuple(self.values.shape)}."
            )

    @property
    def mask(self) -> Bool[Tensor, "i j k"]:
        """The first channel as booleans (> 0.5 where the values are numbers)."""
        first = self.values[0]
        return first if first.dtype == torch.bool else first > 0.5

    def sample(
        self,
        points: Float[Tensor, "*p 3"],
        mode: interpolate.Interpolation = "linear",
        outside: Literal["zero", "nearest"] = "zero",
    ) -> Float[Tensor, "*p c"]:
        """Values at world points (RAS+ mm), differentiable in values and, for ``linear``, in points."""
        values = self.values if self.values.is_floating_point() else self.values.to(points.dtype)
        return interpolate.sample(values, self.grid.to_voxel(points), mode, outside)

    def to(self, device: torch.device | str) -> Image:
        return Image(self.grid, self.values.to(device))


def check_same_grid(first: ImageGrid, second: ImageGrid, what: str) -> None:
    """Raise `SpaceMismatchError` unless the two grids coincide."""
    if first.space != second.space or not first.matches(second):
        raise SpaceMismatchError(
            f"{what}: grids differ ({first.space} {first.shape} and {second.space} {second.shape}); "
            "resample one onto the other first."
        )
