"""iFOD1: probabilistic streamlines whose direction is drawn from the orientation distribution at each step.

Tournier, Calamante & Connelly, *MRtrix: diffusion tractography in crossing fiber regions*, Int. J. Imaging Syst. Technol.
2012, doi:10.1002/ima.22005, after Behrens et al., Magn. Reson. Med. 2003, doi:10.1002/mrm.10609; rules and defaults as
MRtrix3's ``tckgen -algorithm iFOD1``. Departures: amplitudes are not tabulated; random numbers are functions of seed, step
and trial (`ops.counter_random`), so the lines depend neither on batches nor on threads nor on the device; the frame in
which directions are drawn turns with the grid.

At each point a direction is drawn within ``angle`` of the present one with a probability proportional to the amplitude to
the ``power``, 0 below the cutoff, and the point moves one step along it. Rejection sampling as in `ifod2`: the best of a
few fixed directions times a ratio is the bound. A line ends, without a new point, where there are no data, where no fixed
direction has a positive amplitude, after ``max_trials`` rejected directions, and where the next point would leave the mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import ShField
from tractode.ops import counter_random
from tractode.ops import sh_polynomial as poly
from tractode.tracking.cones import (
    Probes,
    calibrated,
    first_directions,
    grid_axes,
    sharpest,
    side_axes,
    turn_in_cone,
    value,
)
from tractode.tracking.march import Engine, March, Stepper
from tractode.tracking.method import StreamlineTracker, Task
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.stopping import MaskLookup

TRIALS_AT_ONCE = 8


@dataclass(frozen=True)
class IFOD1(StreamlineTracker):
    """See `StreamlineTracker` for the settings; step 0.1 voxel, angle 15°, cutoff 0.1.

    No gradient: at fixed random numbers a line jumps where a rejected direction becomes an accepted one, so the derivative
    of the sampled path does not exist. Always a march of torch operations; there is no compiled loop.

    Attributes
    ----------
    power
        What amplitudes are raised to.
    max_trials
        Directions that may be rejected in one step, and first directions at one seed.
    """

    label: ClassVar[str] = "ifod1"
    citation: ClassVar[str] = "tournier2012"
    is_differentiable: ClassVar[bool] = False
    accepts: ClassVar[tuple[type, ...]] = (ShField,)
    STEP_VOXELS: ClassVar[float] = 0.1
    ANGLE: ClassVar[float] = math.radians(15)

    power: float = 1.0
    max_trials: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_trials < 1 or not self.power > 0:
            raise ValueError(
                f"A step has at least one trial (got {self.max_trials}) and a positive power (got {self.power})."
            )

    def method_facts(self) -> dict[str, Any]:
        return {
            "Algorithm": "iFOD1",
            "Integration": "Euler",
            "SeedDirection": "a random direction in which the amplitude reaches the cutoff",
            "Power": self.power,
        }

    def engine(self, task: Task) -> Engine:
        assert isinstance(task.orientations, ShField)
        table = ComponentTable.of(task.orientations)
        mask = MaskLookup.of(task.mask, table.values.device)
        curve = sharpest(task.orientations.order)
        probes = calibrated(lambda turn: max(curve(math.cos(turn)), 0.0) ** self.power, task.largest_turn)
        cap = 1 - math.cos(task.largest_turn)
        axes = grid_axes(task.orientations.grid)
        stepper = DirectionStepper(
            table, mask, probes, axes, task.step, cap, self.cutoff, self.power, self.max_trials, task.key
        )
        return March(stepper, task.limits, self.one_way, self.max_trials // TRIALS_AT_ONCE + 2)


@dataclass(frozen=True, eq=False)
class DirectionStepper(Stepper):
    """One step along a direction drawn near the present one. Rows of a state: position, direction, trials made."""

    table: ComponentTable
    mask: MaskLookup
    probes: Probes
    axes: Float[Tensor, "3 3"]
    step: float
    cap: float
    cutoff: float
    power: float
    max_trials: int
    key: int

    def start(
        self, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"], number: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "7 m"], Bool[Tensor, " m"]]:
        """Looking along the first direction, given or random, whose amplitude reaches the cutoff; see `cones`."""
        stream = counter_random.stream(self.key, number)
        found, is_good = first_directions(
            self.table, self.axes, stream, position, direction, self.cutoff, self.max_trials
        )
        return torch.cat((position, found, torch.zeros_like(found[:1]))), is_good & self.mask.contains(position)

    def reverse(self, state: Float[Tensor, "7 m"]) -> Float[Tensor, "7 m"]:
        return torch.cat((state[:3], -state[3:6], state[6:]))

    def advance(
        self, state: Float[Tensor, "7 m"], number: Int[Tensor, " m"], taken: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "7 m"], Bool[Tensor, " m"], Bool[Tensor, " m"]]:
        """Some trials; lines whose trial succeeds move."""
        position, direction, tried = state[:3], state[3:6], state[6].long()
        components, has_data = self.table.sample(to_voxel(self.table.grid, position))
        frame = side_axes(self.axes, direction)
        bound = self._best_probe(components, direction, *frame).pow(self.power) * self.probes.ratio
        is_open = has_data & (bound > 0)
        stream = counter_random.stream(self.key, number)
        new, is_taken = direction, torch.zeros_like(is_open)
        for n in range(TRIALS_AT_ONCE):
            trial = tried + n
            counter = 3 * (taken * self.max_trials + trial)
            u = [counter_random.draw(stream, counter + k) for k in range(3)]
            drawn = self._turned(turn_in_cone(u[0], self.cap), 2 * math.pi * u[1], direction, *frame)
            found = value(components, drawn)
            succeeds = (found >= self.cutoff) & (found.clamp_min(0).pow(self.power) > u[2] * bound)
            succeeds = succeeds & ~is_taken & (trial < self.max_trials)
            new, is_taken = torch.where(succeeds, drawn, new), is_taken | succeeds
        moved = position + self.step * new
        has_moved = is_open & is_taken & self.mask.contains(moved)
        is_working = is_open & ~is_taken & (tried + TRIALS_AT_ONCE < self.max_trials)
        arrived = torch.cat((moved, new, torch.zeros_like(new[:1])))
        waits = torch.cat((state[:6], state[6:] + TRIALS_AT_ONCE))
        return torch.where(has_moved, arrived, waits), has_moved, is_working

    def _best_probe(
        self,
        components: Float[Tensor, "n m"],
        direction: Float[Tensor, "3 m"],
        first: Float[Tensor, "3 m"],
        second: Float[Tensor, "3 m"],
    ) -> Float[Tensor, " m"]:
        """The largest amplitude of the probes, 0 where none is positive."""
        best = torch.zeros_like(direction[0])
        for turn, c, s in self.probes.turns.tolist():
            looked = math.cos(turn) * direction + math.sin(turn) * (c * first + s * second)
            best = torch.maximum(best, value(components, looked))
        return best

    def _turned(
        self,
        turn: Float[Tensor, " m"],
        azimuth: Float[Tensor, " m"],
        direction: Float[Tensor, "3 m"],
        first: Float[Tensor, "3 m"],
        second: Float[Tensor, "3 m"],
    ) -> Float[Tensor, "3 m"]:
        """Unit directions at some turn and azimuth from the present ones."""
        along, aside = turn.cos().to(direction), turn.sin().to(direction)
        side = azimuth.cos().to(direction) * first + azimuth.sin().to(direction) * second
        new = along * direction + aside * side
        return new / poly.dot(new, new).sqrt()
