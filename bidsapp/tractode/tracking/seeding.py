"""Where streamlines start: mechanisms that give seeds on request, the same ones for the same generator.

The mechanisms and their names follow MRtrix3's tckgen (Tournier et al., NeuroImage 2019,
doi:10.1016/j.neuroimage.2019.116137). Departures: a point is drawn by choosing a voxel from a list and a place within
it, not by rejection; grids and per-voxel seeds come in the storage order of the voxels, last axis fastest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid, Streamlines
from tractode.tracking.seeds import seeds_in_mask, voxels_of

LARGEST_DRAW = 1 << 18


@dataclass(frozen=True, eq=False)
class Seeds:
    """Positions (RAS+ mm) and, where the mechanism knows them, initial directions (unit)."""

    points: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"] | None = None

    def __len__(self) -> int:
        return len(self.points)


class Seeding(ABC):
    """A mechanism. ``total`` is the number of seeds it can give, ``None`` where there is no end."""

    @property
    def total(self) -> int | None:
        return None

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        """``n`` seeds (or those that are left), ``after`` having been drawn before."""

    def draw_size(self, wanted: int | None, after: int) -> int:
        """How many seeds to draw at once: a function of the request and of the seeds drawn, never of batches."""
        return LARGEST_DRAW if wanted is None else min(LARGEST_DRAW, max(1024, 4 * wanted))

    def begun(self) -> Seeding:
        """The mechanism at its beginning; one that learns from the lines found gives a copy of its own."""
        return self

    def observe(self, lines: Streamlines) -> None:  # noqa: B027 - most mechanisms learn nothing
        """Told of every batch of accepted lines."""

    def facts(self) -> dict[str, object]:
        """The mechanism as plain data."""
        return {"Seeding": type(self).__name__}


@dataclass(frozen=True, eq=False)
class MaskSeeding(Seeding):
    """Uniform over the volume of a mask (``-seed_image``)."""

    mask: Image

    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        return Seeds(seeds_in_mask(self.mask, n, generator))


@dataclass(frozen=True, eq=False)
class ImageSeeding(Seeding):
    """Density proportional to an image's value in each voxel (``-seed_rejection``).

    Raises `InputDataError` where a weight is negative or all are 0.
    """

    weights: Image

    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        return Seeds(seeds_by_weight(self.weights, n, generator))


@dataclass(frozen=True, eq=False)
class GridSeeding(Seeding):
    """A grid of ``per_axis``³ points in every voxel of a mask (``-seed_grid_per_voxel``)."""

    mask: Image
    per_axis: int

    def __post_init__(self) -> None:
        if self.per_axis < 1:
            raise ValueError(f"A grid needs at least 1 point along each axis of a voxel; got {self.per_axis}.")

    @property
    def total(self) -> int:
        return int(self.mask.mask.sum()) * self.per_axis**3

    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        index = torch.arange(after, min(after + n, self.total))
        voxels = voxels_of(self.mask)
        count = self.per_axis
        place = index % count**3
        steps = torch.stack((place // count**2, place // count % count, place % count), dim=-1)
        within = (steps.double() + 0.5) / count - 0.5
        return Seeds(_to_world(self.mask.grid, voxels[index // count**3], within))


@dataclass(frozen=True, eq=False)
class RandomPerVoxelSeeding(Seeding):
    """So many random points in every voxel of a mask (``-seed_random_per_voxel``)."""

    mask: Image
    per_voxel: int

    def __post_init__(self) -> None:
        if self.per_voxel < 1:
            raise ValueError(f"Every voxel needs at least 1 seed; got {self.per_voxel}.")

    @property
    def total(self) -> int:
        return int(self.mask.mask.sum()) * self.per_voxel

    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        index = torch.arange(after, min(after + n, self.total))
        within = torch.rand(len(index), 3, generator=generator, dtype=torch.float64) - 0.5
        return Seeds(_to_world(self.mask.grid, voxels_of(self.mask)[index // self.per_voxel], within))


@dataclass(frozen=True, eq=False)
class SphereSeeding(Seeding):
    """Uniform in a ball (``-seed_sphere``): centre (RAS+ mm) and radius in mm."""

    centre: tuple[float, float, float]
    radius: float

    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        direction = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        direction = direction / direction.norm(dim=-1, keepdim=True)
        radius = self.radius * torch.rand(n, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
        return Seeds((torch.tensor(self.centre, dtype=torch.float64) + radius * direction).float())


@dataclass(frozen=True, eq=False)
class ListSeeding(Seeding):
    """Given points (RAS+ mm), with initial directions or without, in their order."""

    points: Float[Tensor, "n 3"]
    directions: Float[Tensor, "_ 3"] | None = None

    def __post_init__(self) -> None:
        if self.directions is not None and self.directions.shape != self.points.shape:
            raise ValueError(
                f"{len(self.points)} seeds need as many directions; got {tuple(self.directions.shape)}; give one a seed."
            )

    @property
    def total(self) -> int:
        return len(self.points)

    def draw(self, n: int, generator: torch.Generator, after: int) -> Seeds:
        part = slice(after, after + n)
        return Seeds(self.points[part], None if self.directions is None else self.directions[part])


def seeds_by_weight(weights: Image, n: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """``n`` points (RAS+ mm, float32), each voxel as likely as its weight says, uniform within it."""
    values = weights.values[0].detach().cpu().double().ravel()
    if bool((values < 0).any()) or not bool((values > 0).any()):
        raise InputDataError(
            "The image of seed weights has negative values" if bool((values < 0).any()) else "All seed weights are 0",
            id="E-TRACK-SEED-WEIGHTS",
            needed="values of 0 and more, some of them positive",
            fix="give an image whose values are densities",
        )
    cumulative = values.cumsum(0)
    place = torch.rand(n, generator=generator, dtype=torch.float64) * cumulative[-1]
    chosen = torch.searchsorted(cumulative, place, right=True).clamp_max(len(values) - 1)
    within = torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.5
    return _to_world(weights.grid, _unravel(chosen, weights.grid.shape), within)


def _unravel(index: Int[Tensor, " n"], shape: tuple[int, int, int]) -> Int[Tensor, "n 3"]:
    _, nj, nk = shape
    return torch.stack((index // (nj * nk), index // nk % nj, index % nk), dim=-1)


def _to_world(grid: ImageGrid, voxels: Int[Tensor, "n 3"], within: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    return grid.to_world(voxels + within).to(torch.float32)
