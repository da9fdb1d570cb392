"""The march: many lines advanced together, one step at a time; the ended ones are dropped as they end.

Every column goes through the same instructions whichever columns stand beside it (tiles whose widths are multiples of
`LANES`, no matrix products), so results do not depend on batch size or thread count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.tracking.peaks import find_peaks, pad_to_lanes
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
        self, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"]
    ) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "3 m"], Bool[Tensor, " m"]]:
        """One step: new positions, new directions, and which of them stand."""
        components, has_data = self.table.sample(to_voxel(self.table.grid, position))
        new, amplitude = find_peaks(components, direction)
        cosine = direction[0] * new[0] + direction[1] * new[1] + direction[2] * new[2]
        moved = position + self.step * new
        stands = has_data & (amplitude >= self.cutoff) & (cosine >= self.cosine) & self.mask.contains(moved)
        return moved, new, stands

    def march(
        self,
        position: Float[Tensor, "3 s"],
        direction: Float[Tensor, "3 s"],
        seed: Int[Tensor, " s"],
        limits: PointLimits,
    ) -> Paths:
        """Follow each seed along ``direction`` (first half) and against it (second half)."""
        n = position.shape[1]
        line = torch.arange(2 * n, dtype=torch.int32, device=position.device)
        state = torch.cat((torch.cat((position, position), dim=1), torch.cat((direction, -direction), dim=1)))
        steps = torch.zeros(2 * n, dtype=torch.long, device=position.device)
        record: list[tuple[Tensor, Tensor]] = []
        while len(line) and len(record) < limits.maximum - 1:
            columns = pad_to_lanes(torch.arange(len(line), device=line.device))
            padded = state if len(columns) == len(line) else state[:, columns]
            tiles = [self.advance(t[:3], t[3:]) for t in padded.split(self.tile, dim=1)]
            state = torch.cat([torch.cat((moved, new)) for moved, new, _ in tiles], dim=1)
            stands = torch.cat([stand for _, _, stand in tiles])[: len(line)].nonzero().ravel()
            state, line = state[:, stands], line[stands]
            steps[line.long()] += 1
            record.append((line, state))
        return _ragged(position, seed, steps, record, limits)


def _ragged(
    position: Tensor, seed: Tensor, steps: Tensor, record: list[tuple[Tensor, Tensor]], limits: PointLimits
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
    begin = ends - counts
    n_points = int(ends[-1]) if n else 0
    points, directions = position.new_zeros(n_points, 3), position.new_zeros(n_points, 3)
    points[(begin + first)[is_kept]] = position[:, is_kept].mT
    allowed = torch.where(torch.cat((is_kept, is_kept)), torch.cat((first, second)), 0)
    origin, sign = torch.cat((begin + first, begin + first)), torch.ones_like(steps)
    sign[:n] = -1
    for t, (line, state) in enumerate(record, start=1):
        index = line.long()
        inside = (allowed[index] >= t).nonzero().ravel()
        target = (origin + t * sign)[index[inside]]
        points[target] = state[:3, inside].mT
        directions[target] = state[3:, inside].mT
    offsets = torch.cat((counts.new_zeros(1), counts[is_kept].cumsum(0)))
    return Paths(points, directions, offsets, first[is_kept], second[is_kept], seed[is_kept])
