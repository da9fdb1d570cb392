"""What every streamline tracker of this wing shares: lengths in mm, random numbers, batches, checks of the inputs.

A method file adds its defaults and an `Engine`: the loop that follows a batch of seeds. Defaults are MRtrix3's
(Tournier et al., NeuroImage 2019, doi:10.1016/j.neuroimage.2019.116137), in voxels of the field (cube root of volume).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import Orientations, Tracker
from tractode.errors import ShapeError, SpaceMismatchError
from tractode.fields import Image, ImageGrid, Streamlines
from tractode.tracking.march import Engine
from tractode.tracking.seeds import random_directions
from tractode.tracking.stopping import PointLimits, mean_voxel_size


@dataclass(frozen=True)
class Task:
    """What an engine is built for: the field, where lines may go, the step and turn allowed, the points of a line.

    ``learned_step`` is the step as it was given, where its gradient is asked for.
    """

    orientations: Orientations
    mask: Image
    step: float
    largest_turn: float
    limits: PointLimits
    key: int
    learned_step: Float[Tensor, ""] | None = None


@dataclass(frozen=True)
class StreamlineTracker(Tracker):
    """Settings that all methods share. Lengths in mm; ``None`` means the method's default for the field's voxels.

    Attributes
    ----------
    step_mm, min_length, max_length
        Default: `STEP_VOXELS`, 5 and 100 voxels. The step may be a tensor of one number that requires a gradient, which
        the points of differentiable methods then have; the number of points that the lengths allow is piecewise
        constant in it.
    angle
        The largest turn of one step, radians; ``None`` means the method's own default.
    min_radius
        The least radius of curvature in mm; where given, it replaces ``angle`` by ``2 asin(step / 2 min_radius)``.
    cutoff
        The least amplitude (FA for tensors) to start at and to follow.
    one_way
        Follow each seed along its initial direction only, not also against it.
    batch_size
        Seeds tracked at once, at most; it changes memory and speed, never the lines.
    compiled
        On a CPU, use the method's compiled loop where it has one; a field on another device never does.
    """

    STEP_VOXELS: ClassVar[float]
    ANGLE: ClassVar[float]
    accepts: ClassVar[tuple[type, ...]]

    step_mm: float | Tensor | None = None
    angle: float | None = None
    min_radius: float | None = None
    cutoff: float = 0.1
    min_length: float | None = None
    max_length: float | None = None
    one_way: bool = False
    batch_size: int = 32768
    compiled: bool = True

    def __post_init__(self) -> None:
        names = ("step_mm", "min_length", "max_length", "min_radius")
        wrong = [f"{name}={getattr(self, name)}" for name in names if not (getattr(self, name) or 1) > 0]
        wrong += [f"{name}=0" for name in names if getattr(self, name) == 0]
        if wrong or not 0 < self._angle <= math.pi or self.batch_size < 1:
            raise ValueError(
                f"Lengths must be positive ({', '.join(wrong) or 'they are'}), the angle in (0, π] radians "
                f"(got {self._angle}) and the batch at least 1 (got {self.batch_size})."
            )

    @property
    def step_voxels(self) -> float:
        """The method's default step in voxels, where it depends on other settings."""
        return self.STEP_VOXELS

    @property
    def _angle(self) -> float:
        return self.ANGLE if self.angle is None else self.angle

    def lengths(self, grid: ImageGrid) -> tuple[float, float, float]:
        """Step, least and greatest length in mm on a given grid."""
        voxel = mean_voxel_size(grid)
        step = self.step_voxels * voxel if self.step_mm is None else float(torch.as_tensor(self.step_mm).detach())
        least = 5 * voxel if self.min_length is None else self.min_length
        greatest = 100 * voxel if self.max_length is None else self.max_length
        return step, least, greatest

    def largest_turn(self, step: float) -> float:
        """The largest turn of one step of ``step`` mm, radians."""
        if self.min_radius is None:
            return self._angle
        return 2 * math.asin(min(1.0, step / (2 * self.min_radius)))

    def parameters(self, grid: ImageGrid | None = None) -> dict[str, Any]:
        """Plain facts for a sidecar; lengths in mm where the grid is given, else in voxels as MRtrix3 defines them."""
        facts: dict[str, Any] = {
            **self.method_facts(),
            "MaximumAngle": math.degrees(self._angle),
            "CutoffAmplitude": self.cutoff,
            "OneWay": self.one_way,
        }
        if self.min_radius is not None:
            facts["MinimumRadius"] = self.min_radius
        if grid is not None:
            step, least, greatest = self.lengths(grid)
            facts |= {
                "MaximumAngle": math.degrees(self.largest_turn(step)),
                "StepSize": step,
                "MinimumLength": least,
                "MaximumLength": greatest,
                "LengthUnits": "mm",
            }
        return facts

    @abstractmethod
    def method_facts(self) -> dict[str, Any]:
        """What is particular to the method: at least ``Algorithm`` and ``Integration``."""

    @abstractmethod
    def engine(self, task: Task) -> Engine:
        """The loop for one field and mask."""

    def track(
        self,
        orientations: Orientations,
        seeds: Float[Tensor, "s 3"],
        mask: Image,
        generator: torch.Generator | None = None,
        directions: Float[Tensor, "s 3"] | None = None,
    ) -> Iterator[Streamlines]:
        """Streamlines in batches of seeds (some may be empty).

        ``per_streamline["seed"]`` is the index of each line's seed and ``["seed_point"]`` that of the seed's point
        within the line. ``directions`` replaces the random initial directions. ``generator`` defaults to one seeded
        with 0; everything random follows from one draw of directions and one of a key, so neither the batch size nor
        the device changes what is drawn.
        """
        return self.prepared(orientations, mask)(seeds, generator, directions)

    def prepared(self, orientations: Orientations, mask: Image) -> Prepared:
        if not isinstance(orientations, self.accepts):
            wanted = " or ".join(kind.__name__ for kind in self.accepts)
            raise ShapeError(f"{type(self).__name__} follows {wanted}; got a {type(orientations).__name__}.")
        if mask.grid.space != orientations.grid.space:
            raise SpaceMismatchError(
                f"The mask is in {mask.grid.space!r} and the orientations in {orientations.grid.space!r}; "
                "resample the mask onto the orientations' space first."
            )
        return Prepared(self, orientations, mask)


class Prepared:
    """`StreamlineTracker.track` in one field and mask: the engine is built at the first call, the key drawn with it.

    Seeds are numbered through all calls, so that no two lines share random numbers; ``per_streamline["seed"]`` counts
    within a call. With a gradient wanted, every call builds its own engine.
    """

    def __init__(self, tracker: StreamlineTracker, orientations: Orientations, mask: Image) -> None:
        self._tracker, self._field, self._mask = tracker, orientations, mask
        self._engine: Engine | None = None
        self._n_seeds = 0

    def __call__(
        self,
        seeds: Float[Tensor, "s 3"],
        generator: torch.Generator | None = None,
        directions: Float[Tensor, "s 3"] | None = None,
    ) -> Iterator[Streamlines]:
        """See `StreamlineTracker.track`."""
        tracker, values = self._tracker, values_of(self._field)
        seeds = seeds.to(values)
        source = torch.Generator().manual_seed(0) if generator is None else generator
        if directions is None:
            directions = random_directions(len(seeds), source)
        learned = tracker.step_mm if isinstance(tracker.step_mm, Tensor) and tracker.step_mm.requires_grad else None
        wants_gradient = values.requires_grad or seeds.requires_grad or learned is not None
        if self._engine is None or wants_gradient:
            step, least, greatest = tracker.lengths(self._field.grid)
            limits, key = PointLimits.of(least, greatest, step), int(torch.randint(2**62, (1,), generator=source))
            turn = tracker.largest_turn(step)
            self._engine = tracker.engine(Task(self._field, self._mask, step, turn, limits, key, learned))
        first = self._n_seeds
        self._n_seeds += len(seeds)
        return self._batches(self._engine, seeds, directions.to(seeds), first, wants_gradient)

    def _batches(
        self, engine: Engine, seeds: Tensor, directions: Tensor, first: int, wants_gradient: bool
    ) -> Iterator[Streamlines]:
        tracker = self._tracker
        size = min(tracker.batch_size, engine.seeds_at_once or tracker.batch_size)
        for start in range(0, len(seeds), size):
            part = slice(start, start + size)
            with torch.no_grad():
                paths = engine.follow(seeds[part].detach(), directions[part], first + start)
            points = paths.points
            if tracker.is_differentiable and torch.is_grad_enabled() and wants_gradient:
                points = engine.points(paths, seeds[part])
            data = {"seed": paths.seed + start, "seed_point": paths.first_steps}
            yield Streamlines(points, paths.offsets, self._field.grid.space, engine.per_point(paths), data)


def values_of(orientations: Orientations) -> Tensor:
    """The tensor that holds a field's values: what its dtype, device and gradient are those of."""
    for name in ("coeffs", "components", "directions"):
        if hasattr(orientations, name):
            return getattr(orientations, name)
    raise ShapeError(f"A {type(orientations).__name__} is not a field of orientations.")
