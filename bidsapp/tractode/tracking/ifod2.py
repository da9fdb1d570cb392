"""iFOD2: probabilistic streamlines in short arcs, each drawn by the amplitudes of the orientation distribution along it.

Tournier, Calamante & Connelly, *Improved probabilistic streamlines tractography by 2nd order integration over fibre
orientation distributions*, Proc. ISMRM 18, 1670 (2010); rules and defaults as MRtrix3's ``tckgen -algorithm iFOD2``
(Tournier et al., NeuroImage 2019, doi:10.1016/j.neuroimage.2019.116137). Departures: amplitudes are not tabulated;
random numbers are functions of seed, step and trial (`ops.counter_random`), so the lines depend neither on batches nor on
threads nor on the device; the frame in which directions are drawn turns with the grid.

A step is an arc of constant curvature, as long as the step, tangent to the present direction; its last direction is
uniform within ``angle``. It is taken with a probability proportional to ``(a₁ a₂ … a_{n−1} √aₙ)^power``, aᵢ being the
amplitudes at n = ``samples`` − 1 evenly spaced points, each in the arc's direction there; 0 where one is below the cutoff.
Rejection sampling: a few arcs in fixed directions (`probes`) are scored first, and the best score times a ratio bounds
the others'. Both come from how fast the score of the sharpest distribution of the order falls off. Where the bound is
too low (about one step in 30,000, then by up to 6 %; the same in MRtrix3) the most probable arcs are a little too rare.

A line ends where no probe has a probability, where one runs out of the data, after ``max_trials`` rejected arcs, and at
the last point of an arc that is in the mask (so the last segment may be shorter than a step). Lines longer than
``max_length`` are cut there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import ShField
from tractode.ops import counter_random
from tractode.ops import sh_polynomial as poly
from tractode.tracking.cones import (
    Probes,
    amplitude,
    calibrated,
    first_directions,
    grid_axes,
    sharpest,
    side_axes,
    turn_in_cone,
)
from tractode.tracking.march import Engine, March, Paths, Stepper
from tractode.tracking.method import StreamlineTracker, Task
from tractode.tracking.sampling import ComponentTable
from tractode.tracking.stopping import MaskLookup, PointLimits, mean_voxel_size

TRIALS_AT_ONCE = 8
LENGTH_UNITS = 2.0**32  # per mm, in which lengths are added


@dataclass(frozen=True)
class IFOD2(StreamlineTracker):
    """See `StreamlineTracker` for the settings; step 0.5 voxel, angle 45°, cutoff 0.1.

    No gradient: at fixed random numbers a line jumps where a rejected arc becomes an accepted one, so the derivative of
    the sampled path does not exist.

    Attributes
    ----------
    samples
        Points at which an arc is looked at, both ends included.
    power
        What the product of amplitudes is raised to; ``None`` means 1 / samples.
    max_trials
        Arcs that may be rejected in one step, and first directions at one seed.
    """

    label: ClassVar[str] = "ifod2"
    citation: ClassVar[str] = "tournier2019"
    is_differentiable: ClassVar[bool] = False
    accepts: ClassVar[tuple[type, ...]] = (ShField,)
    STEP_VOXELS: ClassVar[float] = 0.5
    ANGLE: ClassVar[float] = math.radians(45)

    samples: int = 4
    power: float | None = None
    max_trials: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or self.max_trials < 1 or not (self.power or 1) > 0:
            raise ValueError(
                f"An arc has at least 2 samples (got {self.samples}), at least one trial (got {self.max_trials}) and a "
                f"positive power (got {self.power})."
            )

    def method_facts(self) -> dict[str, Any]:
        return {
            "Algorithm": "iFOD2",
            "Integration": "second order (arcs)",
            "SeedDirection": "a random direction in which the amplitude reaches the cutoff",
            "SamplesPerStep": self.samples,
            "Power": self._power,
        }

    @property
    def _power(self) -> float:
        return 1 / self.samples if self.power is None else self.power

    def engine(self, task: Task) -> Engine:
        assert isinstance(task.orientations, ShField)
        grid = task.orientations.grid
        table = ComponentTable.of(task.orientations)
        mask = MaskLookup.of(task.mask, table.values.device)
        arcs = Arcs.of(
            task.orientations.order, task.step, task.largest_turn, self.samples - 1, self._power, mean_voxel_size(grid)
        )
        _, least, greatest = self.lengths(grid)
        # The straight line between an arc's ends is this much shorter, at most.
        chord = task.step * math.sin(0.5 * task.largest_turn) / (0.5 * task.largest_turn)
        limits = PointLimits(task.limits.minimum, PointLimits.of(least, greatest, chord).maximum)
        axes = grid_axes(grid)
        stepper = ArcStepper(table, mask, arcs, axes, self.cutoff, self.max_trials, task.key)
        march = March(stepper, limits, self.one_way, self.max_trials // TRIALS_AT_ONCE + 2)
        if not (self.compiled and table.values.device.type == "cpu"):
            return Finished(march, least, greatest)
        from tractode.tracking.kernels.ifod2 import loop

        return Finished(loop(march, stepper), least, greatest)


@dataclass(frozen=True, eq=False)
class Arcs:
    """How arcs are drawn: ``n`` points each, their scores raised to ``1 / sharpness`` being probabilities.

    A score is the product of the arc's amplitudes, squared except the last.
    """

    step: float
    cap: float
    n: int
    sharpness: float
    probes: Probes

    @classmethod
    def of(cls, order: int, step: float, largest_turn: float, n: int, power: float, voxel: float) -> Arcs:
        """Calibrated on the sharpest distribution of the order, in a voxel whose neighbours have none."""
        curve = sharpest(order)
        at = np.arange(1, n + 1) / n

        def probability(turn: float) -> float:
            bent = turn * at
            aside = step * (1 - np.cos(bent)) / max(turn, 1e-9)
            values = curve(np.cos(bent)) * (1 - aside / voxel)
            if (values <= 0).any():
                return 0.0
            return float(np.exp(power * (np.log(values).sum() - 0.5 * np.log(values[-1]))))

        return cls(step, 1 - math.cos(largest_turn), n, 2 / power, calibrated(probability, largest_turn))

    def at(
        self, share: float, turn: Float[Tensor, " m"], state: Float[Tensor, "6 m"], side: Float[Tensor, "3 m"]
    ) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "3 m"]]:
        """Point and direction after a share of arcs that turn from a state (position, direction) towards a side."""
        bent = share * turn
        sine = bent.sin()
        across = 2 * (0.5 * bent).sin().square()
        along, aside = self.step * sine / turn, self.step * across / turn
        return state[:3] + along * state[3:] + aside * side, (1 - across) * state[3:] + sine * side


@dataclass(frozen=True, eq=False)
class ArcStepper(Stepper):
    """One arc, or some trials of it. Rows of a state: position, direction, the best probe's score (−1: not yet known),
    trials made, and whether the line has ended within its last arc."""

    table: ComponentTable
    mask: MaskLookup
    arcs: Arcs
    axes: Float[Tensor, "3 3"]
    cutoff: float
    max_trials: int
    key: int

    def start(
        self, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"], number: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "9 m"], Bool[Tensor, " m"]]:
        """Looking along the first direction, given or random, whose amplitude reaches the cutoff; see `cones`."""
        stream = counter_random.stream(self.key, number)
        found, is_good = first_directions(
            self.table, self.axes, stream, position, direction, self.cutoff, self.max_trials
        )
        none = torch.zeros_like(position[0])
        return torch.cat((position, found, torch.stack((none - 1, none, none)))), is_good & self.mask.contains(position)

    def reverse(self, state: Float[Tensor, "9 m"]) -> Float[Tensor, "9 m"]:
        return torch.cat((state[:3], -state[3:6], state[6:]))

    def advance(
        self, state: Float[Tensor, "9 m"], number: Int[Tensor, " m"], taken: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "9 m"], Bool[Tensor, " m"], Bool[Tensor, " m"]]:
        """Probes where none were made, then some trials; lines whose trial succeeds move."""
        best = torch.where(state[6] < 0, self._best_probe(state[:6]), state[6])
        tried = state[7].long()
        turn, side, is_taken = self._trials(state[:6], number, taken, tried, best)
        position, direction, reached = self._along(turn, state[:6], side)
        is_open = (best > 0) & (state[8] == 0)
        has_moved = is_open & is_taken & (reached > 0)
        ended = (reached < self.arcs.n).to(state)
        none = torch.zeros_like(best)
        moved = torch.cat((position, direction, torch.stack((none - 1, none, ended))))
        waits = torch.cat((state[:6], torch.stack((best, state[7] + TRIALS_AT_ONCE, state[8]))))
        is_working = is_open & ~is_taken & (tried + TRIALS_AT_ONCE < self.max_trials)
        return torch.where(has_moved, moved, waits), has_moved, is_working

    def _best_probe(self, state: Float[Tensor, "6 m"]) -> Float[Tensor, " m"]:
        """The largest score of the probes; 0 where there is none, NaN where one runs out of the data."""
        first, second = side_axes(self.axes, state[3:])
        best = torch.zeros_like(state[0])
        for turn, c, s in self.arcs.probes.turns.tolist():
            # torch.maximum hands NaN on.
            best = torch.maximum(best, self._score(torch.full_like(best, turn), state, c * first + s * second))
        return best

    def _score(
        self, turn: Float[Tensor, " m"], state: Float[Tensor, "6 m"], side: Float[Tensor, "3 m"]
    ) -> Float[Tensor, " m"]:
        """The product of the arcs' amplitudes, squared except the last; 0 below the cutoff, else NaN out of the data."""
        product, is_below = torch.ones_like(turn), torch.zeros_like(turn, dtype=torch.bool)
        for n in range(self.arcs.n, 0, -1):
            found = amplitude(self.table, *self.arcs.at(n / self.arcs.n, turn, state, side))
            is_below = is_below | (found < self.cutoff)
            product = product * (found if n == self.arcs.n else found * found)
        return torch.where(is_below, 0.0, product)

    def _trials(
        self,
        state: Float[Tensor, "6 m"],
        number: Int[Tensor, " m"],
        taken: Int[Tensor, " m"],
        tried: Int[Tensor, " m"],
        best: Float[Tensor, " m"],
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, "3 m"], Bool[Tensor, " m"]]:
        """Turn and side of the first of some trials to succeed, and whether one does."""
        m = state.shape[1]
        trial = tried + torch.arange(TRIALS_AT_ONCE, device=state.device)[:, None]
        counter = 3 * (taken * self.max_trials + trial)
        stream = counter_random.stream(self.key, number).expand_as(counter)
        u = [counter_random.draw(stream, counter + n) for n in range(3)]
        turn = turn_in_cone(u[0], self.arcs.cap).to(state).reshape(-1)
        azimuth = 2 * math.pi * u[1]
        needed = best * (self.arcs.probes.ratio * u[2]).pow(self.arcs.sharpness)
        first, second = side_axes(self.axes, state[3:])
        c, s = azimuth.cos().to(state), azimuth.sin().to(state)
        side = (c * first[:, None] + s * second[:, None]).reshape(3, -1)
        score = self._score(turn, state.repeat(1, TRIALS_AT_ONCE), side).view(-1, m)
        succeeds = (score > needed) & (trial < self.max_trials)
        which = succeeds.int().argmax(0) * m + torch.arange(m, device=state.device)
        return turn[which], side[:, which], succeeds.any(0)

    def _along(
        self, turn: Float[Tensor, " m"], state: Float[Tensor, "6 m"], side: Float[Tensor, "3 m"]
    ) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "3 m"], Int[Tensor, " m"]]:
        """Where an arc ends: after its last point in the mask, how many that is, and the direction there."""
        position, direction = state[:3], state[3:]
        reached, inside = torch.zeros_like(turn, dtype=torch.long), torch.ones_like(turn, dtype=torch.bool)
        for n in range(1, self.arcs.n + 1):
            point, towards = self.arcs.at(n / self.arcs.n, turn, state, side)
            inside = inside & self.mask.contains(point)
            position, direction = torch.where(inside, point, position), torch.where(inside, towards, direction)
            reached = reached + inside
        return position, direction / poly.dot(direction, direction).sqrt(), reached


@dataclass(frozen=True, eq=False)
class Finished(Engine):
    """An engine whose lines are measured along their segments: too short ones left out, too long ones cut (mm)."""

    engine: Engine
    least: float
    greatest: float

    @property
    def seeds_at_once(self) -> int | None:
        return self.engine.seeds_at_once

    def follow(self, seeds: Float[Tensor, "s 3"], directions: Float[Tensor, "s 3"], first: int) -> Paths:
        return cut_to_length(self.engine.follow(seeds, directions, first), self.least, self.greatest)


def cut_to_length(paths: Paths, least: float, greatest: float) -> Paths:
    """Lines at least ``least`` mm long, cut at ``greatest``: at the end of the second half, or, where the first alone is
    as long, at that of the first, so that the seed stays.

    Lengths are added as whole numbers of `LENGTH_UNITS`: sums of floats would depend on the lines that come before.
    """
    points, offsets = paths.points, paths.offsets
    starts, ends = offsets[:-1], offsets[1:] - 1
    x, y, z = points.double().diff(dim=0).unbind(1)
    segments = ((x * x + y * y + z * z).sqrt() * LENGTH_UNITS).round().long()
    arc = torch.cat((segments.new_zeros(min(1, len(points))), segments.cumsum(0)))
    most = round(greatest * LENGTH_UNITS)
    length = arc[ends] - arc[starts]
    to_seed = arc[starts + paths.first_steps] - arc[starts]
    low = torch.where(to_seed >= most, length - most, 0).clamp_min(0)
    is_long, is_late = length > most, low > 0
    low, high = arc[starts] + low, arc[starts] + low + most
    first = torch.where(is_late, torch.searchsorted(arc, low, right=True) - 1, starts)
    last = torch.where(is_long & ~is_late, torch.searchsorted(arc, high), ends)
    kept = (length >= least * (1 - 1e-6) * LENGTH_UNITS).nonzero().ravel()
    counts = (last - first + 1)[kept]
    new = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    index = torch.arange(int(new[-1]), device=points.device) + (first[kept] - new[:-1]).repeat_interleave(counts)
    out = points[index]
    for is_cut, at, place, other in (
        (is_late, low, new[:-1], 1),
        (is_long & ~is_late, high, new[1:] - 1, -1),
    ):
        cut = is_cut[kept].nonzero().ravel()
        here = index[place[cut]]
        beyond = (at[kept][cut] - arc[here]).double() / (arc[here + other] - arc[here])
        out[place[cut]] += beyond[:, None].to(out) * (points[here + other] - points[here])
    at_seed = paths.first_steps[kept] - (first - starts)[kept]
    return Paths(out, paths.directions[index], new, at_seed, counts - 1 - at_seed, paths.seed[kept])
