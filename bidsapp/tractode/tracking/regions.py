"""Regions that streamlines must visit, must visit in order, or must not enter, with the rules of MRtrix3's tckgen.

Tournier et al., *MRtrix3*, NeuroImage 2019, doi:10.1016/j.neuroimage.2019.116137. A region is a mask, of which the
voxel nearest to a point counts, or a ball. Points are looked at, not the segments between them. Departure: the rules
are applied to finished lines, so that every tracker has them; `OrderedInclude` follows the stored order of the points
(as tckedit does), not the order in which the two halves were tracked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.contracts import Rule
from tractode.errors import SpaceMismatchError
from tractode.fields import Image, Streamlines
from tractode.tracking.rules import Halves, cut, seed_points
from tractode.tracking.sampling import nearest_index, to_voxel


@dataclass(frozen=True)
class Sphere:
    """A ball: centre (RAS+ mm) and radius in mm."""

    centre: tuple[float, float, float]
    radius: float


Region = Image | Sphere


def contains(region: Region, points: Float[Tensor, "p 3"], space: str) -> Bool[Tensor, " p"]:
    """Which points (RAS+ mm of ``space``) lie in a region."""
    if isinstance(region, Sphere):
        centre = torch.tensor(region.centre, dtype=points.dtype, device=points.device)
        return (points - centre).square().sum(-1) <= region.radius**2
    if region.grid.space != space:
        raise SpaceMismatchError(
            f"A region is in {region.grid.space!r} and the streamlines in {space!r}; "
            "resample the region onto a grid of their space first."
        )
    index, is_inside = nearest_index(region.grid.shape, to_voxel(region.grid, points.mT))
    return is_inside & region.mask.reshape(-1).to(points.device)[index]


@dataclass(frozen=True, eq=False)
class Include(Rule):
    """A line must visit every region.

    Attributes
    ----------
    stop
        End a half with the point at which the last region was reached (tckgen's ``-stop``). Halves are tracked one
        after the other: where the first reaches them all, one step is left of the second.
    """

    regions: tuple[Region, ...]
    stop: bool = False

    def apply(self, lines: Streamlines) -> Streamlines:
        owner = lines.streamline_of_point
        visits = [contains(region, lines.points.detach(), lines.space) for region in self.regions]
        has_all = torch.ones(len(lines), dtype=torch.bool, device=lines.points.device)
        for is_in in visits:
            has_all &= torch.zeros_like(has_all).index_fill(0, owner[is_in].unique(), True)
        if not self.stop:
            return lines.select(has_all.nonzero().ravel())
        # Regions of a line without any are not asked for; a line that has them all ends where it has.
        return _stopped(lines, visits, has_all)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "Regions": len(self.regions), "Stop": self.stop}


@dataclass(frozen=True, eq=False)
class OrderedInclude(Rule):
    """A line must visit every region, each for the first time in the order given, and never go back to an earlier one.

    Where regions overlap, a point belongs to the first of them.

    Attributes
    ----------
    either_way
        Also accept the order seen from the line's other end.
    """

    regions: tuple[Region, ...]
    either_way: bool = False

    def apply(self, lines: Streamlines) -> Streamlines:
        number = torch.full((len(lines.points),), -1, device=lines.points.device)
        for index, region in reversed(list(enumerate(self.regions))):
            number[contains(region, lines.points.detach(), lines.space)] = index
        visited = (number >= 0).nonzero().ravel()
        owner, number = lines.streamline_of_point[visited], number[visited]
        is_new = torch.ones_like(owner, dtype=torch.bool)
        is_new[1:] = (owner[1:] != owner[:-1]) | (number[1:] != number[:-1])
        owner, number = owner[is_new], number[is_new]
        counts = torch.bincount(owner, minlength=len(lines))
        place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        n = len(self.regions)
        is_right = _all_of(owner, number == place, len(lines))
        if self.either_way:
            is_right |= _all_of(owner, number == n - 1 - place, len(lines))
        return lines.select((is_right & (counts == n)).nonzero().ravel())

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "Regions": len(self.regions), "EitherWay": self.either_way}


@dataclass(frozen=True, eq=False)
class Exclude(Rule):
    """A line that enters any region is left out."""

    regions: tuple[Region, ...]

    def apply(self, lines: Streamlines) -> Streamlines:
        owner = lines.streamline_of_point
        is_good = torch.ones(len(lines), dtype=torch.bool, device=lines.points.device)
        for region in self.regions:
            is_good[owner[contains(region, lines.points.detach(), lines.space)]] = False
        return lines.select(is_good.nonzero().ravel())

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "Regions": len(self.regions)}


def _all_of(owner: Tensor, condition: Bool[Tensor, " m"], n: int) -> Bool[Tensor, " s"]:
    out = torch.ones(n, dtype=torch.bool, device=owner.device)
    out[owner[~condition]] = False
    return out


def _stopped(lines: Streamlines, visits: list[Bool[Tensor, " p"]], has_all: Bool[Tensor, " s"]) -> Streamlines:
    """Lines ended where the last region was reached, seed first, then the first half outwards, then the second."""
    halves, seed = Halves.of(lines), seed_points(lines)
    first, second = halves.length[0::2], halves.length[1::2]
    # When each region was first reached, counted over seed (0), first half (1 …) and second half (length of first + 1 …).
    reached = torch.zeros_like(first)
    for is_in in visits:
        steps = halves.first_step_where(is_in[halves.rows])
        at = torch.where(steps[0::2] <= first, steps[0::2], first + steps[1::2])
        at = torch.where(is_in[(lines.offsets[:-1] + seed).clamp_max(max(len(is_in) - 1, 0))], 0, at)
        reached = torch.maximum(reached, at)
    kept_first = torch.where(reached <= first, reached.clamp_min(1), first)
    kept_second = torch.where(reached <= first, 1, reached - first)
    kept_first, kept_second = torch.minimum(kept_first, first), torch.minimum(kept_second, second)
    return cut(lines, seed - kept_first, seed + kept_second, has_all)
