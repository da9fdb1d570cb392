"""Why two runs of SD_STREAM part: every step of a reference line is made again by our rules, from its own points.

Where each of our steps is the reference's, the lines parted because rounding grew along them (``growth``); else the
first step that differs decides, and the rule is the one that rounding of position and direction can turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tractode.fields import Image, ShField
from tractode.ops import sh_polynomial as poly
from tractode.ops.peaks import find_peaks, pad_to_lanes
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.stopping import MaskLookup

SAME_MM = 2e-4  # rounding of a float32 coordinate, through one step
SHIFT_MM, SHIFT_RAD = 2e-5, 1e-4  # what rounding may have done to a point and, read from two points, to a direction
TRIALS = 256


@dataclass(frozen=True)
class Step:
    """Our steps from many points: where they lead, whether each rule lets them, and how near it was to saying otherwise."""

    reached: Tensor  # 3 m
    has_data: Tensor
    has_peak: Tensor
    is_high: Tensor
    is_straight: Tensor
    is_inside: Tensor

    @property
    def goes_on(self) -> Tensor:
        return self.has_data & self.has_peak & self.is_high & self.is_straight & self.is_inside


@dataclass(frozen=True)
class Law:
    """The rules of one comparison."""

    table: ComponentTable
    mask: MaskLookup
    step: float
    cosine: float = math.cos(math.radians(60))
    cutoff: float = 0.1

    @classmethod
    def of(cls, field: ShField, mask: Image, step: float) -> Law:
        return cls(ComponentTable.of(field), MaskLookup.of(mask, torch.device("cpu")), step)

    def take(self, position: Tensor, direction: Tensor) -> Step:
        """One step from each column."""
        m = position.shape[1]
        columns = pad_to_lanes(torch.arange(m))
        components, has_data = self.table.sample(to_voxel(self.table.grid, position[:, columns]))
        peak, amplitude = find_peaks(components, direction[:, columns].contiguous())
        peak, amplitude, has_data = peak[:, :m], amplitude[:m], has_data[:m]
        reached = position + self.step * peak
        return Step(
            reached,
            has_data,
            amplitude.isfinite(),
            ~(amplitude < self.cutoff),
            ~(poly.dot(peak, direction) < self.cosine),
            self.mask.contains(reached),
        )


def explain(law: Law, line: Tensor, seed: int, start: Tensor, limit: int) -> tuple[str, int]:
    """The rule that parted us from a reference line, and the step from the seed at which it did.

    ``start`` is the direction given to the seed; ``limit`` the greatest number of points of a line.
    """
    here = line[seed : seed + 1].mT.contiguous()
    first = law.take(here, start[:, None].contiguous())
    away = (first.reached - here) / law.step
    halves = (line[: seed + 1].flip(0), away), (line[seed:], -away)
    # tckgen tells nothing of which half came first: the one that leaves along the peak did.
    if len(line) > 1:
        leaving = (line[seed - 1] - line[seed]) if seed else (line[seed] - line[seed + 1])
        if float(leaving @ away[:, 0]) < 0:
            halves = (halves[0][0], -away), (halves[1][0], away)
    verdicts = [_half(law, points, direction, len(line) >= limit) for points, direction in halves]
    deciding = [v for v in verdicts if v[0] not in ("none", "growth")] or [v for v in verdicts if v[0] == "growth"]
    return deciding[0] if deciding else ("growth", 0)


def _half(law: Law, points: Tensor, direction: Tensor, is_full: bool) -> tuple[str, int]:
    steps = points.diff(dim=0) / law.step
    directions = torch.cat((direction.mT, steps)).mT.contiguous()
    made = law.take(points.mT.contiguous(), directions)
    error = (made.reached[:, :-1] - points[1:].mT).norm(dim=0)
    differs = (~made.goes_on[:-1] | (error > SAME_MM)).nonzero().ravel()
    if len(differs):
        at = int(differs[0])
        return _tried(law, points[at], directions[:, at], points[at + 1]), at
    last = len(points) - 1
    if bool(made.goes_on[last]) and not is_full:
        return _tried(law, points[last], directions[:, last], None), last
    return "growth", last


def _tried(law: Law, point: Tensor, direction: Tensor, target: Tensor | None) -> str:
    """The rule that some rounding of the point and the direction turns, so that the step is the reference's."""
    generator = torch.Generator().manual_seed(0)
    place = point[:, None] + SHIFT_MM * torch.randn(3, TRIALS, generator=generator)
    towards = direction[:, None] + SHIFT_RAD * torch.randn(3, TRIALS, generator=generator)
    made = law.take(place, towards / towards.norm(dim=0))
    alone = law.take(point[:, None].contiguous(), direction[:, None].contiguous())
    names = ("has_data", "has_peak", "is_high", "is_straight", "is_inside")
    rules = dict(zip(names, ("image edge", "search fails", "cutoff", "turn", "mask edge"), strict=True))
    if target is None:
        turned = ~made.goes_on
        found = [rules[name] for name in names if bool((~getattr(made, name) & turned).any())]
        return found[0] if found else "unexplained"
    agrees = made.goes_on & ((made.reached - target[:, None]).norm(dim=0) < 10 * SAME_MM)
    if not bool(agrees.any()):
        return "unexplained"
    blocked = [rules[name] for name in names if not bool(getattr(alone, name)[0])]
    return blocked[0] if blocked else "basin of the search"
