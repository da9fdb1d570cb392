"""The march: many lines advanced together, one step at a time; the ended ones are dropped as they end.

Every column goes through the same instructions whichever columns stand beside it (tiles whose widths are multiples of
`LANES`, no matrix products), so results do not depend on batch size or thread count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.errors import InternalError
from tractode.ops.peaks import MAX_ITERATIONS, pad_to_lanes
from tractode.tracking.stopping import PointLimits


@dataclass(frozen=True, eq=False)
class Paths:
    """Finished lines: ragged points, the direction that led to each, and where each line's seed lies.

    Each line runs from the end of its first half, reversed, through the seed to the end of its second half.
    ``directions`` are those of travel away from the seed (zero at the seed).
    """

    points: Float[Tensor, "p 3"]
    directions: Float[Tensor, "p 3"]
    offsets: Int[Tensor, " s_plus_1"]
    first_steps: Int[Tensor, " s"]
    second_steps: Int[Tensor, " s"]
    seed: Int[Tensor, " s"]


class Stepper(ABC):
    """One method's step, for many lines at once; columns never influence one another.

    The rows of a state are the position, the direction that led there, and whatever else the method carries.
    ``number`` identifies a line whatever its batch: 2 × the seed's index, plus 1 for the half against the direction.
    """

    @abstractmethod
    def start(
        self, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"], number: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "k m"], Bool[Tensor, " m"]]:
        """States at the seeds, and which seeds may start."""

    @abstractmethod
    def reverse(self, state: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
        """The same places, looking the other way."""

    @abstractmethod
    def advance(
        self, state: Float[Tensor, "k m"], number: Int[Tensor, " m"], taken: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "k m"], Bool[Tensor, " m"], Bool[Tensor, " m"]]:
        """New states, which lines have moved, and which are still at work; the others have ended.

        ``taken`` counts the steps each line has made so far. A line that has not moved keeps position and direction.
        """


class Engine(ABC):
    """Follows seeds to the ends of their lines. What it does with one seed never depends on the others of the batch."""

    @abstractmethod
    def follow(self, seeds: Float[Tensor, "s 3"], directions: Float[Tensor, "s 3"], first: int) -> Paths:
        """The lines of a batch that are neither too short nor refused; ``first`` is the index of its first seed.

        `Paths.seed` counts within the batch. No gradient.
        """

    def points(self, paths: Paths, seeds: Float[Tensor, "s 3"]) -> Float[Tensor, "p 3"]:
        """``paths.points`` as a function of the field and of the batch's seeds, where the method has a derivative."""
        raise InternalError(f"{type(self).__name__} has no derivative", id="E-BUG-DERIVATIVE")

    def per_point(self, paths: Paths) -> dict[str, Tensor]:
        """Data of every point of the lines beyond its place, where some were asked for. No gradient."""
        return {}

    @property
    def seeds_at_once(self) -> int | None:
        """How many seeds to follow at once where fewer than the tracker's batch are as fast."""
        return None


@dataclass(frozen=True, eq=False)
class March(Engine):
    """An engine of torch operations: all lines of a batch take their steps together, on any device."""

    stepper: Stepper
    limits: PointLimits
    one_way: bool = False
    patience: int = MAX_ITERATIONS
    tile: int = 16384

    def follow(self, seeds: Float[Tensor, "s 3"], directions: Float[Tensor, "s 3"], first: int) -> Paths:
        """Both halves of every line at once; refused seeds and short lines are left out."""
        index = torch.arange(len(seeds), device=seeds.device)
        columns = pad_to_lanes(index)
        tiles = zip(
            seeds[columns].mT.contiguous().split(self.tile, dim=1),
            directions[columns].mT.contiguous().split(self.tile, dim=1),
            (2 * (columns + first)).split(self.tile),
            strict=True,
        )
        started = [self.stepper.start(*tile) for tile in tiles]
        if not started:
            return _ragged(seeds.mT, index, index.new_zeros(0), [], self.limits)
        state = torch.cat([item[0] for item in started], dim=1)[:, : len(seeds)]
        kept = torch.cat([item[1] for item in started])[: len(seeds)].nonzero().ravel()
        return self._march(state[:, kept], kept, first)

    def _march(self, state: Float[Tensor, "k s"], seed: Int[Tensor, " s"], first: int) -> Paths:
        position = state[:3].clone()
        number = 2 * (seed + first)
        if not self.one_way:
            state = torch.cat((state, self.stepper.reverse(state)), dim=1)
            number = torch.cat((number, number + 1))
        line = torch.arange(len(number), device=number.device)
        steps = torch.zeros(2 * len(seed), dtype=torch.long, device=number.device)
        waited = torch.zeros_like(steps)
        record: list[tuple[Tensor, Tensor, Tensor]] = []
        while len(line):
            columns = pad_to_lanes(torch.arange(len(line), device=line.device))
            state, has_moved, is_working = self._advance(state[:, columns], number[line[columns]], steps[line[columns]])
            state, has_moved, is_working = state[:, : len(line)], has_moved[: len(line)], is_working[: len(line)]
            steps[line] += has_moved
            waited[line] = torch.where(has_moved, 0, waited[line] + 1)
            moved = has_moved.nonzero().ravel()
            record.append((line[moved], steps[line[moved]], state[:6].index_select(1, moved)))
            goes_on = (has_moved | is_working & (waited[line] < self.patience)) & (
                steps[line] < self.limits.maximum - 1
            )
            kept = goes_on.nonzero().ravel()
            state, line = state.index_select(1, kept), line[kept]
        return _ragged(position, seed, steps, record, self.limits)

    def _advance(self, state: Tensor, number: Tensor, taken: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tiles = zip(state.split(self.tile, dim=1), number.split(self.tile), taken.split(self.tile), strict=True)
        done = [self.stepper.advance(*tile) for tile in tiles]
        return torch.cat([d[0] for d in done], dim=1), torch.cat([d[1] for d in done]), torch.cat([d[2] for d in done])


def _ragged(
    position: Tensor, seed: Tensor, steps: Tensor, record: list[tuple[Tensor, Tensor, Tensor]], limits: PointLimits
) -> Paths:
    """Put recorded points into their lines, without the lines that are too short."""
    n = position.shape[1]
    first = steps[:n]
    second = limits.second_half(first, steps[n:])
    total = 1 + first + second
    # A line of one point is a seed that went nowhere, whatever the limit.
    is_kept = total >= max(limits.minimum, 2)
    counts = torch.where(is_kept, total, 0)
    ends = counts.cumsum(0)
    at_seed = ends - counts + first
    n_points = int(ends[-1]) if n else 0
    points, directions = position.new_zeros(n_points, 3), position.new_zeros(n_points, 3)
    points[at_seed[is_kept]] = position[:, is_kept].mT
    allowed = torch.where(torch.cat((is_kept, is_kept)), torch.cat((first, second)), 0)
    origin = torch.cat((at_seed, at_seed))
    sign = torch.cat((-torch.ones_like(first), torch.ones_like(first)))
    for line, t, state in record:
        inside = (allowed[line] >= t).nonzero().ravel()
        target = (origin[line] + t * sign[line])[inside]
        arrived = state.index_select(1, inside)
        points[target], directions[target] = arrived[:3].mT, arrived[3:].mT
    offsets = torch.cat((counts.new_zeros(1), counts[is_kept].cumsum(0)))
    return Paths(points, directions, offsets, first[is_kept], second[is_kept], seed[is_kept])
