"""Transforms of the world: given points of ``source``, return points of ``target``, both RAS+ mm.

Resampling a moving image onto a fixed grid uses the transform fixed → moving; streamlines use moving → fixed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import ShapeError, SpaceMismatchError
from tractode.fields.image import Image, ImageGrid
from tractode.fields.velocity import VelocityField
from tractode.ops import affine as aff
from tractode.ops import interpolate, ode

_TILE = 1 << 16


class Transform(ABC):
    """A map of points between two named spaces."""

    source: str
    target: str

    @abstractmethod
    def map(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """Points of ``source`` → points of ``target``."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The transform from ``target`` to ``source``."""

    def then(self, other: Transform) -> Chain:
        """First this, then ``other``."""
        return Chain((self, other))


@dataclass(frozen=True, eq=False)
class Affine(Transform):
    """``x ↦ A x + t`` as a 4×4 matrix (float64)."""

    matrix: Float[Tensor, "4 4"]
    source: str
    target: str

    def __post_init__(self) -> None:
        if self.matrix.shape != (4, 4) or not bool(torch.isfinite(self.matrix).all()):
            raise ShapeError("An affine transform needs a finite 4×4 matrix.")

    def map(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        return aff.apply_affine(self.matrix, points)

    def inverse(self) -> Affine:
        return Affine(torch.linalg.inv(self.matrix), self.target, self.source)


@dataclass(frozen=True, eq=False)
class Displacement(Transform):
    """``x ↦ x + u(x)``, ``u`` in mm (RAS+) sampled linearly on a grid of the source space.

    As ITK reads such a field: the border's vectors hold for half a voxel beyond the outermost centres, then ``u`` is 0.
    ``backward`` is the displacement of the inverse where it is known; else the inverse is found by fixed-point iteration.
    """

    grid: ImageGrid
    values: Float[Tensor, "3 i j k"]
    source: str
    target: str
    backward: Displacement | None = None

    def __post_init__(self) -> None:
        if tuple(self.values.shape) != (3, *self.grid.shape):
            raise ShapeError(f"A displacement on {self.grid.shape} needs (3, i, j, k); got {tuple(self.values.shape)}.")

    def map(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        voxel = self.grid.to_voxel(points)
        moved = interpolate.sample(self.values.to(points), voxel, outside="nearest")
        return points + moved * interpolate.inside(self.grid.shape, voxel, margin=0.5)[..., None]

    def inverse(self) -> Transform:
        if self.backward is not None:
            back = self.backward
            return Displacement(
                back.grid,
                back.values,
                self.target,
                self.source,
                backward=Displacement(self.grid, self.values, self.source, self.target),
            )
        return _InverseDisplacement(self)


@dataclass(frozen=True, eq=False)
class _InverseDisplacement(Transform):
    """``y ↦ x`` with ``x + u(x) = y``, by fixed-point iteration; converges where ``|∇u| < 1``."""

    forward: Displacement
    iterations: int = 30

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.forward.target

    @property
    def target(self) -> str:  # type: ignore[override]
        return self.forward.source

    def map(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        guess = points
        for _ in range(self.iterations):
            guess = guess + (points - self.forward.map(guess))
        return guess

    def inverse(self) -> Displacement:
        return self.forward


@dataclass(frozen=True, eq=False)
class Flow(Transform):
    """The flow of a velocity field from ``t0`` to ``t1``: a diffeomorphism whose inverse only swaps the times."""

    velocity: VelocityField
    source: str
    target: str
    t0: float = 0.0
    t1: float = 1.0
    steps: int = 8

    def map(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        grid = self.velocity.grid
        # In voxels of the velocity's grid, so that the steps themselves need no change of coordinates.
        to_voxel = grid.inverse_affine[:3, :3].to(points)
        values = torch.einsum("ab,tbijk->taijk", to_voxel, self.velocity.values.to(points))

        def at(t: Tensor, y: Tensor) -> Tensor:
            return interpolate.sample(at_time(values, t), y)

        start = grid.to_voxel(points).reshape(-1, 3)
        # In tiles that fit a processor's cache: a whole image's points at once take twice the time and far more memory.
        ends = [ode.integrate(at, tile, self.t0, self.t1, self.steps) for tile in start.split(_TILE)]
        return grid.to_world(torch.cat(ends).reshape(points.shape))

    def as_displacement(self, grid: ImageGrid) -> Displacement:
        """The flow tabulated on a grid of its source space, and its inverse on the same grid."""
        points = grid.centres(device=self.velocity.values.device)
        forward, back = ((way.map(points) - points).movedim(-1, 0).contiguous() for way in (self, self.inverse()))
        backward = Displacement(grid, back, self.target, self.source)
        return Displacement(grid, forward, self.source, self.target, backward=backward)

    def inverse(self) -> Flow:
        return Flow(self.velocity, self.target, self.source, self.t1, self.t0, self.steps)


def at_time(values: Float[Tensor, "t 3 i j k"], t: Tensor) -> Float[Tensor, "3 i j k"]:
    """Linear interpolation in time over [0, 1]."""
    last = values.shape[0] - 1
    if last == 0:
        return values[0]
    position = (t.clamp(0, 1) * last).item()
    lower = min(int(position), last - 1)
    return torch.lerp(values[lower], values[lower + 1], position - lower)


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Several transforms, the first applied first."""

    parts: tuple[Transform, ...]

    def __post_init__(self) -> None:
        for first, second in zip(self.parts, self.parts[1:], strict=False):
            if first.target != second.source:
                raise SpaceMismatchError(
                    f"A chain goes … → {first.target!r} and then {second.source!r} → …; "
                    f"insert a transform from {first.target!r} to {second.source!r}."
                )

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.parts[0].source

    @property
    def target(self) -> str:  # type: ignore[override]
        return self.parts[-1].target

    def map(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        for part in self.parts:
            points = part.map(points)
        return points

    def inverse(self) -> Chain:
        return Chain(tuple(part.inverse() for part in reversed(self.parts)))


def resample(
    image: Image,
    grid: ImageGrid,
    transform: Transform,
    mode: interpolate.Interpolation = "linear",
) -> Image:
    """``image`` on ``grid``, interpolated once. ``transform`` maps the grid's space to the image's (fixed → moving)."""
    if transform.source != grid.space or transform.target != image.grid.space:
        raise SpaceMismatchError(
            f"Resampling an image of {image.grid.space!r} onto a grid of {grid.space!r} needs a transform "
            f"{grid.space!r} → {image.grid.space!r}; got {transform.source!r} → {transform.target!r}."
        )
    values = image.values if image.values.is_floating_point() else image.values.to(torch.float32)
    points = transform.map(grid.centres(device=values.device))
    sampled = interpolate.sample(values, image.grid.to_voxel(points), mode)
    out = sampled.permute(3, 0, 1, 2)
    return Image(
        grid,
        out
        if image.values.is_floating_point()
        else (out > 0.5 if image.values.dtype == torch.bool else out.to(image.values.dtype)),
    )
