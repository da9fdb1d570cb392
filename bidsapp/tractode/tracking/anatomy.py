"""Anatomically constrained tractography (ACT): where the tissues let a streamline end, and which lines are plausible.

Smith, Tournier, Calamante & Connelly, *Anatomically-constrained tractography: improved diffusion MRI streamlines
tractography through effective use of anatomical information*, NeuroImage 2012, doi:10.1016/j.neuroimage.2012.06.005;
rules as MRtrix3 3.0.3's ``tckgen -act`` has them (no back-tracking).

Departures: a rule on finished lines, so that every tracker has it: the line is cut where tckgen would have ended it.
Lines are tracked in a mask wider than the one they may end at (`Anatomy.tracking_mask`), so that whether a line left
that mask is seen from its points; a line that ends within it ended in white matter. What lies beyond the cut must not
count towards the greatest length, so lines are tracked twice as long and too long ones are left out here. Cropping at the interface is linear between two points, not along a spline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from tractode.contracts import Rule
from tractode.errors import SpaceMismatchError
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.tracking.amplitude import amplitudes
from tractode.tracking.method import StreamlineTracker
from tractode.tracking.rules import Halves, cut, seed_points
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.stopping import MaskLookup, mean_voxel_size
from tractode.tracking.tissues import INTERFACE_ACCURACY, TissueMaps, Tissues

LEAST_VOXELS, MOST_VOXELS = 2, 100
CUTOFF_FACTOR = 0.5

_Tracker = TypeVar("_Tracker", bound=StreamlineTracker)


def with_anatomy(tracker: _Tracker, grid: ImageGrid) -> _Tracker:
    """The tracker with ACT's defaults: half the amplitude to follow; short and long lines are left to `Anatomy`.

    Lengths that the user gave belong to `Anatomy` too: the tracker's lines are cut afterwards.
    """
    step, _, greatest = tracker.lengths(grid)
    return replace(tracker, cutoff=tracker.cutoff * CUTOFF_FACTOR, min_length=step, max_length=2 * greatest)


def lengths_with_anatomy(grid: ImageGrid, least: float | None, greatest: float | None) -> tuple[float, float]:
    """Least and greatest length (mm) of the lines that are left, in a mask's grid; ``None`` is ACT's default."""
    voxel = mean_voxel_size(grid)
    return LEAST_VOXELS * voxel if least is None else least, MOST_VOXELS * voxel if greatest is None else greatest


@dataclass(frozen=True, eq=False)
class Anatomy(Rule):
    """Cuts lines where they enter cortex or leave subcortical grey matter; leaves out those that enter CSF or end in white matter.

    Attributes
    ----------
    tissues
        Five-tissue maps in the space of the lines, on any grid.
    mask
        Where lines may go: one that leaves it ends there, and that end is good.
    orientations
        The field followed: lines end within subcortical grey matter where the amplitude along them is least.
        Without it, at the last point inside.
    min_length, max_length
        mm after cutting; default 2 and 100 voxels of the mask's grid.
    crop
        Move ends in cortex onto the interface of grey and white matter.
    one_way
        The lines were tracked from their seeds in one direction only.
    tracked_in
        The mask the tracker had, where it is not `tracking_mask`: an end whose next step (straight on) would have left
        it is good.
    """

    tissues: TissueMaps
    mask: Image
    orientations: ShField | None = None
    min_length: float | None = None
    max_length: float | None = None
    crop: bool = False
    one_way: bool = False
    tracked_in: Image | None = None

    def __post_init__(self) -> None:
        if self.tissues.grid.space != self.mask.grid.space:
            raise SpaceMismatchError(
                f"The tissue maps are in {self.tissues.grid.space!r} and the mask in {self.mask.grid.space!r}; "
                "resample the tissue maps into the space of the scan first."
            )

    @cached_property
    def _table(self) -> ComponentTable | None:
        with torch.no_grad():
            return None if self.orientations is None else ComponentTable.of(self.orientations)

    @property
    def lengths(self) -> tuple[float, float]:
        return lengths_with_anatomy(self.mask.grid, self.min_length, self.max_length)

    def tracking_mask(self, mask: Image | None = None) -> Image:
        """The mask to give the tracker: a voxel wider than where this rule lets lines be under way."""
        return self._wide_mask if mask is None else self._wide_mask.to(mask.values.device)

    @cached_property
    def _wide_mask(self) -> Image:
        with torch.no_grad():
            return _widened(Image(self.mask.grid, (self.mask.mask & _under_way(self.tissues, self.mask.grid))[None]))

    def facts(self) -> dict[str, Any]:
        least, greatest = self.lengths
        return {
            **super().facts(),
            "MinimumLength": least,
            "MaximumLength": greatest,
            "CropAtInterface": self.crop,
        }

    def apply(self, lines: Streamlines) -> Streamlines:
        if lines.space != self.tissues.grid.space:
            raise SpaceMismatchError(
                f"The tissue maps are in {self.tissues.grid.space!r} and the streamlines in {lines.space!r}."
            )
        with torch.no_grad():
            kept, is_good, in_cortex = self._judge(lines)
        seed = seed_points(lines)
        first, last = seed - kept[0::2], seed + kept[1::2]
        chosen = is_good & (last > first)
        found = cut(lines, first, last, chosen)
        if self.crop:
            found = self._cropped(found, in_cortex.reshape(-1, 2)[chosen])
        lengths, (least, greatest) = found.lengths().detach(), self.lengths
        fits = (lengths >= least * (1 - 1e-4)) & (lengths <= greatest * (1 + 1e-4))
        return found.select(fits.nonzero().ravel())

    def _judge(self, lines: Streamlines) -> tuple[Int[Tensor, " h"], Bool[Tensor, " s"], Bool[Tensor, " h"]]:
        """Steps kept of each half, which lines are plausible, and which halves end in cortex."""
        at_points = self.tissues.at(lines.points)
        seeds = _rows(at_points, lines.offsets[:-1] + seed_points(lines))
        can_start, halves = _can_start(seeds), Halves.of(lines)
        is_inside = MaskLookup.of(self.mask, lines.points.device).contains(lines.points.mT)
        can_start &= is_inside[lines.offsets[:-1] + seed_points(lines)]
        events = _events(at_points, is_inside, halves, seeds.is_subcortical)
        # A seed on the interface is followed into white matter only.
        is_ignored = self._into_grey(lines, seeds, halves)
        if self.one_way:
            is_ignored |= torch.arange(len(is_ignored), device=is_ignored.device) % 2 == 1
        kept = torch.where(is_ignored, 0, self._kept_steps(lines, halves, events))
        is_good = is_ignored | events.is_good | (events.is_natural & self._may_end(lines, halves, events, at_points))
        reaches_white = ~seeds.is_subcortical | events.leaves_seed.reshape(-1, 2).any(1)
        return kept, can_start & reaches_white & is_good.reshape(-1, 2).all(1), events.enters_cortex & ~is_ignored

    def _into_grey(self, lines: Streamlines, seeds: Tissues, halves: Halves) -> Bool[Tensor, " h"]:
        """Halves that lead from a seed on the interface into cortex; all others are False."""
        is_on = ~seeds.is_subcortical & (seeds.white < seeds.grey) & (seeds.subcortical < seeds.cortical)
        out = torch.zeros(len(halves.length), dtype=torch.bool, device=is_on.device)
        chosen = is_on.nonzero().ravel()
        if not len(chosen):
            return out
        at = lines.offsets[:-1][chosen] + seed_points(lines)[chosen]
        has_first = halves.length[0::2][chosen] > 0
        has_second = halves.length[1::2][chosen] > 0
        points = lines.points
        toward = torch.where(has_first, at - 1, at + has_second.to(at))
        direction = torch.where(has_first, 1.0, -1.0)[:, None] * (points[toward] - points[at])
        rises = (self.tissues.slope(points[at]) * direction).sum(-1) > 0
        out[2 * chosen] = rises
        out[2 * chosen + 1] = ~rises
        return out

    def _kept_steps(self, lines: Streamlines, halves: Halves, events: _Events) -> Int[Tensor, " h"]:
        """Points kept of each half: up to cortex, to the best end within subcortical grey matter, or all."""
        kept = torch.where(events.enters_cortex, events.step, torch.minimum(events.step - 1, halves.length))
        if self._table is None:
            return kept
        # The last points of halves that leave subcortical grey matter, with the depth they reach.
        depth = torch.where(events.leaves_grey, events.depth, 0)
        is_inside = (halves.step < events.step[halves.half]) & (halves.step >= (events.step - depth)[halves.half])
        chosen = is_inside.nonzero().ravel()
        if not len(chosen):
            return kept
        rows, half, step = halves.rows[chosen], halves.half[chosen], halves.step[chosen]
        before = rows + torch.where(half % 2 == 0, 1, -1)
        way = lines.points[rows] - lines.points[before]
        along = amplitudes(self._table, lines.points[rows], way / way.norm(dim=-1, keepdim=True).clamp_min(1e-12))
        least = along.new_full((len(kept),), torch.inf).scatter_reduce(0, half, along, "amin")
        is_least = along == least[half]
        best = (halves.length + 1).scatter_reduce(0, half[is_least], step[is_least], "amin")
        return torch.where(depth > 0, best, kept)

    def _may_end(self, lines: Streamlines, halves: Halves, events: _Events, at_points: Tissues) -> Bool[Tensor, " h"]:
        """Whether a half that no tissue has ended may end: within subcortical grey matter, at a border, or in a lesion."""
        n = halves.length
        line = torch.arange(len(n), device=n.device) // 2
        seed = lines.offsets[:-1][line] + seed_points(lines)[line]
        way = torch.where(torch.arange(len(n), device=n.device) % 2 == 0, -1, 1)
        last = seed + way * n
        # A half without points would have gone the way the other one came from.
        has_other = (lines.n_points[line] > 1).to(n)
        before = torch.where(n > 0, last - way, last)
        after = torch.where(n > 0, last, last - way * has_other)
        step = lines.points[after] - lines.points[before]
        step = torch.where((n > 0)[:, None], step, -step)
        beyond = lines.points[last] + step
        lookup = MaskLookup.of(self.tracked_in or self._wide_mask, lines.points.device)
        leaves = ~lookup.contains(beyond.mT) | ~self._has_data(lines.points[last])
        return (events.depth > 0) | leaves | at_points.is_pathological[last]

    def _has_data(self, points: Float[Tensor, "p 3"]) -> Bool[Tensor, " p"]:
        if self._table is None:
            return torch.ones(len(points), dtype=torch.bool, device=points.device)
        return self._table.corners(to_voxel(self._table.grid, points.mT))[2]

    def _cropped(self, lines: Streamlines, ends_in_cortex: Bool[Tensor, "s 2"]) -> Streamlines:
        """Ends in cortex moved to where grey equals white matter, between the last two points."""
        points = lines.points
        for side, (at, inward) in enumerate(((lines.offsets[:-1], 1), (lines.offsets[1:] - 1, -1))):
            chosen = (ends_in_cortex[:, side] & (lines.n_points > 2)).nonzero().ravel()
            if len(chosen):
                rows = at[chosen]
                points = points.index_copy(0, rows, self._interface(points[rows + inward], points[rows]))
        return replace(lines, points=points)

    def _interface(self, inner: Float[Tensor, "m 3"], outer: Float[Tensor, "m 3"]) -> Float[Tensor, "m 3"]:
        """Where grey minus white matter changes sign between two points; the outer point where it does not."""
        with torch.no_grad():
            low, high = inner.new_zeros(len(inner)), inner.new_ones(len(inner))
            crosses = (self.tissues.at(inner).excess < 0) & (self.tissues.at(outer).excess > INTERFACE_ACCURACY)
            for _ in range(20):
                middle = 0.5 * (low + high)
                is_white = self.tissues.at(torch.lerp(inner, outer, middle[:, None])).excess < 0
                low, high = torch.where(is_white, middle, low), torch.where(is_white, high, middle)
            found = torch.where(crosses, high, 1.0)[:, None]
        return torch.lerp(inner, outer, found)


def _widened(mask: Image) -> Image:
    """One voxel more on every side."""
    wider = functional.max_pool3d(mask.mask[None, None].float(), 3, 1, 1) > 0
    return Image(mask.grid, wider[0])


def _under_way(tissues: TissueMaps, grid: ImageGrid) -> Bool[Tensor, "i j k"]:
    """Voxels of a grid in some part of which a line may go on: in the brain, neither cortex nor CSF."""
    centres = grid.centres().reshape(-1, 3)
    found = torch.zeros(len(centres), dtype=torch.bool)
    places = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) / 3
    for offset in torch.cartesian_prod(places, places, places):
        at = tissues.at(centres + (grid.affine[:3, :3] @ offset).to(centres))
        in_cortex = at.is_grey & (at.cortical >= at.subcortical)
        found |= at.is_valid & ~at.is_csf & ~in_cortex
    return found.reshape(grid.shape)


@dataclass(frozen=True, eq=False)
class _Events:
    """What first happens to each half: at which step, and how many steps in subcortical grey matter led to it."""

    step: Int[Tensor, " h"]
    depth: Int[Tensor, " h"]
    enters_cortex: Bool[Tensor, " h"]
    leaves_grey: Bool[Tensor, " h"]
    leaves_brain: Bool[Tensor, " h"]
    is_natural: Bool[Tensor, " h"]
    leaves_seed: Bool[Tensor, " h"]

    @property
    def is_good(self) -> Bool[Tensor, " h"]:
        return self.enters_cortex | self.leaves_grey | self.leaves_brain


def _rows(tissues: Tissues, index: Int[Tensor, " s"]) -> Tissues:
    parts = (tissues.cortical, tissues.subcortical, tissues.white, tissues.csf, tissues.pathological, tissues.is_valid)
    return Tissues(*(part[index] for part in parts))


def _can_start(seeds: Tissues) -> Bool[Tensor, " s"]:
    """In subcortical grey matter, or in white matter up to its interface with grey matter."""
    in_white = ~seeds.is_csf & (seeds.white > 0) & (seeds.excess < INTERFACE_ACCURACY)
    return seeds.is_valid & (seeds.is_subcortical | in_white)


def _events(
    at_points: Tissues, is_inside: Bool[Tensor, " p"], halves: Halves, starts_in_grey: Bool[Tensor, " s"]
) -> _Events:
    """The first event of each half.

    A line that starts in subcortical grey matter may leave it once without ending, on the first half that does.
    """
    tissue = _rows(at_points, halves.rows)
    is_csf = tissue.is_valid & tissue.is_csf
    is_grey = tissue.is_valid & ~is_csf & tissue.is_grey
    in_cortex = is_grey & (tissue.cortical >= tissue.subcortical)
    in_deep = is_grey & ~in_cortex
    in_white = tissue.is_valid & ~is_csf & ~is_grey
    # Tissues are looked at before the mask.
    is_out = ~tissue.is_valid | ~(is_inside[halves.rows] | is_csf | in_cortex)
    deep_so_far = _running_count(in_deep, halves)
    is_first = torch.arange(len(halves.length), device=is_csf.device) % 2 == 0
    leaving = halves.first_step_where(in_white & (deep_so_far > 0))
    ended = halves.first_step_where(is_out | is_csf | in_cortex)
    starts = starts_in_grey.repeat_interleave(2)
    # Whether the half leaves the subcortical grey matter it started in: the second only where the first has not.
    leaves_seed = starts & (leaving <= halves.length) & (leaving <= ended)
    first_has = leaves_seed[0::2].repeat_interleave(2)
    leaves_seed &= is_first | ~first_has
    exempt = torch.where(leaves_seed, leaving, 0)
    is_later = halves.step > exempt[halves.half]
    depth = _running_count(in_deep & is_later, halves)
    leaves = is_later & in_white & (depth > 0)
    at = torch.minimum(ended, halves.first_step_where(leaves))
    before = torch.minimum(at - 1, halves.length)
    depth_before = torch.zeros_like(at)
    is_last = halves.step == before[halves.half]
    depth_before[halves.half[is_last]] = depth[is_last]
    happened = at <= halves.length
    kinds = [torch.zeros_like(happened) for _ in range(3)]
    here = halves.step == at[halves.half]
    for kind, condition in zip(kinds, (in_cortex, in_white | is_csf, is_out), strict=True):
        kind[halves.half[here & condition]] = True
    enters_cortex, stops, leaves_brain = kinds
    # CSF right after subcortical grey matter is an end within that; CSF after white matter is none.
    return _Events(at, depth_before, enters_cortex, stops & (depth_before > 0), leaves_brain, ~happened, leaves_seed)


def _running_count(condition: Bool[Tensor, " m"], halves: Halves) -> Int[Tensor, " m"]:
    """How often a condition has held since the half began, the point itself included."""
    total = torch.cat([condition.new_zeros(1, dtype=torch.long), condition.long().cumsum(0)])
    starts = halves.length.cumsum(0) - halves.length
    return total[1:] - total[starts[halves.half]]
