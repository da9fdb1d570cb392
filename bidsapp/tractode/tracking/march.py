"""The march: many lines advanced together, one step at a time; the ended ones are dropped as they end.

Every column goes through the same instructions whichever columns stand beside it (tiles whose widths are multiples of
`LANES`, no matrix products), so results do not depend on batch size or thread count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.ops import sh_polynomial as poly
from tractode.tracking.peaks import MAX_ITERATIONS, ascend, pad_to_lanes
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.stopping import MaskLookup, PointLimits


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


@dataclass(frozen=True, eq=False)
class Marcher:
    """What a step needs: the field, the mask, the step length (mm) and the rules of `sdstream`."""

    table: ComponentTable
    mask: MaskLookup
    step: float
    cosine: float
    cutoff: float
    tile: int = 16384

    def advance(
        self, state: Float[Tensor, "9 m"]
    ) -> tuple[Float[Tensor, "9 m"], Bool[Tensor, " m"], Bool[Tensor, " m"]]:
        """Two steps of the peak search and, where it is over, a step of the line.

        The rows of the state are the position, the direction that led there and the search's present direction.
        Returns the new state, which lines have moved, and which are still searching; the others have ended.
        """
        position, previous = state[:3], state[3:6]
        components, has_data = self.table.sample(to_voxel(self.table.grid, position))
        first, first_amplitude, is_early = ascend(components, state[6:])
        second, second_amplitude, is_late = ascend(components, first)
        new = torch.where(is_early, first, second)
        amplitude = torch.where(is_early, first_amplitude, second_amplitude)
        is_over = is_early | is_late
        moved = position + self.step * new
        stands = (amplitude >= self.cutoff) & (poly.dot(previous, new) >= self.cosine) & self.mask.contains(moved)
        has_moved = has_data & is_over & stands
        position = torch.where(has_moved, moved, position)
        previous = torch.where(has_moved, new, previous)
        return torch.cat((position, previous, new)), has_moved, has_data & ~is_over

    def march(
        self,
        position: Float[Tensor, "3 s"],
        direction: Float[Tensor, "3 s"],
        seed: Int[Tensor, " s"],
        limits: PointLimits,
    ) -> Paths:
        """Follow each seed along ``direction`` (first half) and against it (second half)."""
        line = torch.arange(2 * position.shape[1], device=position.device)
        both = torch.cat((direction, -direction), dim=1)
        state = torch.cat((torch.cat((position, position), dim=1), both, both))
        steps, waited = torch.zeros_like(line), torch.zeros_like(line)
        record: list[tuple[Tensor, Tensor, Tensor]] = []
        while len(line):
            columns = pad_to_lanes(torch.arange(len(line), device=line.device))
            padded = state if len(columns) == len(line) else state.index_select(1, columns)
            tiles = [self.advance(tile) for tile in padded.split(self.tile, dim=1)]
            state = torch.cat([tile[0] for tile in tiles], dim=1)
            has_moved = torch.cat([tile[1] for tile in tiles])[: len(line)]
            is_searching = torch.cat([tile[2] for tile in tiles])[: len(line)]
            steps[line] += has_moved
            waited[line] = torch.where(has_moved, 0, waited[line] + 2)
            moved = has_moved.nonzero().ravel()
            record.append((line[moved], steps[line[moved]], state[:6].index_select(1, moved)))
            goes_on = (has_moved | is_searching & (waited[line] < MAX_ITERATIONS)) & (steps[line] < limits.maximum - 1)
            kept = goes_on.nonzero().ravel()
            state, line = state.index_select(1, kept), line[kept]
        return _ragged(position, seed, steps, record, limits)


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
