"""Soft termination: how likely a line still lives at each of its points, so that its length and its ends have gradients.

No paper prescribes this form; the hazard of a continuous-time survival process (Cox & Oakes, *Analysis of Survival
Data*, 1984) replaces the step function of a cutoff, as sigmoid relaxations do elsewhere (Yoon et al. 2025,
arXiv:2511.14807, stop lines hard). A line is tracked with a lower cutoff than asked for and each point weighted by

    w_t = Π_{s<t} sigmoid((a_s − cutoff) / temperature) ^ (|x_{s+1} − x_s| / length_mm),   outward from the seed,

with ``a_s`` the amplitude at ``x_s`` along the step that leaves it: what the tracker compares with its cutoff before
that step. The exponent makes the weights independent of the step size. As the temperature falls to 0 the weights become
1 up to the point where hard termination ends the line and 0 beyond it. Derivatives flow through the amplitudes into the
coefficients and, where the tracker has a derivative, through the points. The mask and the largest turn become hazards of
the same form, where they are asked for (`SoftTermination.like` asks for both). Ends by length, or where there is no peak
or no data, stay hard; `alive_at_ends` says how many lines such an end still finds alive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from tractode.errors import ShapeError
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import smooth
from tractode.ops.splat import splat
from tractode.tracking.amplitude import amplitudes
from tractode.tracking.method import StreamlineTracker
from tractode.tracking.sampling import ComponentTable
from tractode.tracking.stopping import mean_voxel_size

AnyTracker = TypeVar("AnyTracker", bound=StreamlineTracker)
NEGLIGIBLE = 1e-7
REACH = 5.0  # temperatures below the cutoff at which a line may as well end: it loses 5 nepers each `length_mm`
SHARP_BORDER = 0.05  # of a mask smoothed by `SoftTermination.like`: 5e-5 nepers a mm deep inside, 10 at the border


@dataclass(frozen=True)
class SoftTermination:
    """``cutoff`` and ``temperature`` are amplitudes; ``length_mm`` is the length over which one sigmoid acts once.

    ``mask`` is a smooth image (1 inside, 0 outside) in which lines live where it is above ½; ``angle`` is the largest
    turn of one step (radians; ``None``: the tracker's own rule, hard). Each has a temperature that says how sharply.
    """

    cutoff: float = 0.1
    temperature: float = 0.02
    length_mm: float = 1.0
    mask: Image | None = None
    mask_temperature: float = 0.1
    angle: float | None = None
    angle_temperature: float = math.radians(3)

    def __post_init__(self) -> None:
        if not (min(self.temperature, self.mask_temperature, self.angle_temperature) > 0 and self.length_mm > 0):
            raise ValueError(
                f"Temperatures and the length must be positive; got {self.temperature}, {self.mask_temperature}, "
                f"{self.angle_temperature} and {self.length_mm}. For hard termination use the tracker's own cutoff."
            )
        if self.angle is not None and not 0 < self.angle <= math.pi / 2:
            raise ValueError(f"The largest turn of a step lies in (0, π/2] radians; got {self.angle}.")

    @classmethod
    def like(
        cls, tracker: StreamlineTracker, mask: Image, temperature: float = 0.02, border_mm: float | None = None
    ) -> SoftTermination:
        """The tracker's cutoff, its largest turn and its mask, all soft, for a field on the mask's grid.

        Where there is no data beyond the mask lines cannot fade there, so they do just inside it, over about
        ``border_mm`` (by default one voxel).
        """
        grid = mask.grid
        border = mean_voxel_size(grid) if border_mm is None else border_mm
        i, j, k = (border / edge for edge in grid.voxel_sizes)
        smoothed = smooth.gaussian(mask.mask[None].double(), (i, j, k), border="zero")
        turn = min(tracker.largest_turn(tracker.lengths(grid)[0]), math.pi / 2)
        inside = Image(grid, (2 * smoothed - 1).clamp(0, 1))
        return cls(tracker.cutoff, temperature, mask=inside, mask_temperature=SHARP_BORDER, angle=turn)

    def annealed(self, to: float, n: int) -> list[SoftTermination]:
        """``n`` terminations from this temperature to another, evenly in its logarithm."""
        ratio = (to / self.temperature) ** (1 / max(n - 1, 1))
        return [replace(self, temperature=self.temperature * ratio**k) for k in range(n)]

    def loosened(self, tracker: AnyTracker) -> AnyTracker:
        """The tracker with rules so loose that what they end hardly weighs anything."""
        looser = replace(tracker, cutoff=max(self.cutoff - REACH * self.temperature, 0.0))
        if self.angle is None:
            return looser
        return replace(looser, min_radius=None, angle=min(self.angle + REACH * self.angle_temperature, math.pi / 2))


@dataclass(frozen=True, eq=False)
class Survival:
    """``seed``: whether a line starts at all. ``onward``: whether it reaches a point, given that it started."""

    seed: Float[Tensor, " s"]
    onward: Float[Tensor, " p"]
    owner: Int[Tensor, " p"]

    @property
    def point(self) -> Float[Tensor, " p"]:
        """The weight of each point."""
        return self.seed[self.owner] * self.onward


@dataclass(frozen=True, eq=False)
class Halves:
    """Where each point stands: its line, its line's seed point, and its neighbours away from and towards the seed."""

    owner: Int[Tensor, " p"]
    at_seed: Int[Tensor, " s"]
    side: Int[Tensor, " p"]  # −1 before the seed point, 0 at it, 1 after it
    outward: Int[Tensor, " p"]  # the last point of a half has none: its inward one stands in
    inward: Int[Tensor, " p"]  # the seed point's is itself
    is_last: Bool[Tensor, " p"]

    @classmethod
    def of(cls, lines: Streamlines) -> Halves:
        """Raises `ShapeError` for lines that do not know their seed point."""
        if "seed_point" not in lines.per_streamline:
            raise ShapeError("Soft termination needs per_streamline['seed_point']: lines as a tracker yields them.")
        owner = lines.streamline_of_point
        at_seed = lines.offsets[:-1] + lines.per_streamline["seed_point"]
        index = torch.arange(len(owner), device=owner.device)
        side = (index - at_seed[owner]).sign()
        first, last = index == lines.offsets[:-1][owner], index == lines.offsets[1:][owner] - 1
        is_last = (side < 0) & first | (side > 0) & last | first & last
        # At the seed point: onwards where there is a second half, else into the first.
        step = torch.where(side == 0, torch.where(last, -1, 1), side)
        step = torch.where(first & last, 0, torch.where(is_last, -side, step))
        return cls(owner, at_seed, side, index + step, index - side, is_last)


def survival(lines: Streamlines, field: ShField | ComponentTable, termination: SoftTermination) -> Survival:
    """The weights of a tracker's lines; differentiable in the field's coefficients and in the points.

    ``field`` may be a `ComponentTable`, so that a loop over batches converts the coefficients once.
    """
    table = field if isinstance(field, ComponentTable) else ComponentTable.of(field)
    halves = Halves.of(lines)
    points = lines.points.to(table.values)
    step = points[halves.outward] - points
    length = step.norm(dim=-1)
    direction = step / length.clamp_min(torch.finfo(step.dtype).tiny)[:, None]
    amplitude = amplitudes(table, points, direction)
    share = length / termination.length_mm
    leaving = functional.softplus((termination.cutoff - amplitude) / termination.temperature) * share
    if termination.angle is not None:
        inner = ((halves.side != 0) & ~halves.is_last).nonzero().ravel()
        arrival = points[inner] - points[halves.inward[inner]]
        cosine = (arrival * direction[inner]).sum(-1) / arrival.norm(dim=-1)
        # By cosines, which have a derivative where there is no turn; at the limit one temperature is one in angle too.
        scale = termination.angle_temperature * math.sin(termination.angle)
        turning = functional.softplus((math.cos(termination.angle) - cosine) / scale)
        leaving = leaving.index_add(0, inner, turning * share[inner])
    arriving = torch.zeros_like(leaving)
    if termination.mask is not None:
        inside = termination.mask.sample(points)[..., 0]
        arriving = functional.softplus((0.5 - inside) / termination.mask_temperature) * share
    return _outward(halves, leaving, arriving)


def _outward(halves: Halves, leaving: Float[Tensor, " p"], arriving: Float[Tensor, " p"]) -> Survival:
    """Hazards summed from the seed to each point: leaving every point before it, arriving at every one up to it.

    The seed's own count once for the whole line.
    """
    index, origin = torch.arange(len(leaving), device=leaving.device), halves.at_seed[halves.owner]
    gone, come = (functional.pad(h.double().cumsum(0), (1, 0)) for h in (leaving, arriving))
    after = gone[index] - gone[origin + 1] + come[index + 1] - come[origin + 1]
    before = gone[origin] - gone[index + 1] + come[origin] - come[index]
    zero = torch.zeros_like(after)
    total = torch.where(halves.side > 0, after, torch.where(halves.side < 0, before, zero))
    # Rounding may leave sums that should be 0 a little below it.
    onward = (-total.clamp_min(0)).exp().to(leaving)
    seed = (-(leaving + arriving)[halves.at_seed]).exp()
    return Survival(seed, onward, halves.owner)


def soft_lengths(lines: Streamlines, weights: Float[Tensor, " p"]) -> Float[Tensor, " s"]:
    """Each line's length in mm, every segment weighted by the weight of its outer end."""
    halves = Halves.of(lines)
    segments = (lines.points - lines.points[halves.inward]).square().sum(-1)
    # The seed point has no segment; the square root has no derivative at its zero.
    segments = torch.where(halves.side == 0, 0.0, torch.where(halves.side == 0, 1.0, segments).sqrt())
    total = torch.zeros(len(lines), dtype=weights.dtype, device=weights.device)
    return total.index_add(0, halves.owner, weights * segments.to(weights))


def visitation_map(lines: Streamlines, weights: Float[Tensor, " p"], grid: ImageGrid) -> Float[Tensor, "i j k"]:
    """Weighted length in mm in every voxel, each segment dropped at its middle with linear weights."""
    halves = Halves.of(lines)
    moved = (halves.side != 0).nonzero().ravel()
    outer, inner = lines.points[moved], lines.points[halves.inward[moved]]
    length = (outer - inner).norm(dim=-1)
    amount = (weights[moved] * length.to(weights))[:, None]
    return splat(amount, grid.to_voxel((outer + inner) / 2), grid.shape)[0]


def end_memberships(lines: Streamlines, weights: Survival, regions: Image) -> tuple[Tensor, Tensor]:
    """How much of each end of every line lies in each region, ``(s, r)`` for the first and the second end.

    A half that reaches point t with probability u_t ends there with probability u_t − u_{t+1}.
    """
    halves = Halves.of(lines)
    onward = weights.onward
    # In the lines' own precision: memberships of float32 would round differences of double ones at 1e-7.
    exact = Image(regions.grid, regions.values.to(onward))
    following = torch.where(halves.is_last, 0.0, onward[halves.outward])
    ends = onward - following
    n = len(lines)
    both = onward.new_zeros(2 * n, regions.values.shape[0])
    for half, side in ((0, -1), (1, 1)):
        has_half = torch.zeros(n, dtype=torch.bool, device=onward.device)
        has_half[halves.owner[halves.side == side]] = True
        # A line that starts at its end: that end is the seed point.
        is_start = (halves.side == 0) & ~has_half[halves.owner]
        part = torch.where(halves.side == side, ends, is_start.to(ends))
        # What the half loses on its very first step stays at the seed point.
        is_first = (halves.side == side) & (halves.inward == halves.at_seed[halves.owner])
        lost = onward.new_zeros(n).index_add(0, halves.owner[is_first], 1 - onward[is_first])
        at_seed = torch.zeros_like(part).index_add(0, halves.at_seed, lost)
        part = part + at_seed
        kept = (part.detach() > NEGLIGIBLE).nonzero().ravel()
        inside = exact.sample(lines.points[kept]).to(part)
        both = both.index_add(0, half * n + halves.owner[kept], part[kept, None] * inside)
    return both[:n], both[n:]


def alive_at_ends(lines: Streamlines, weights: Survival) -> Float[Tensor, "s 2"]:
    """How likely each half, once started, lives until its last point, where a hard rule ends it. 0 for a missing half."""
    halves = Halves.of(lines)
    last = torch.stack((lines.offsets[:-1], lines.offsets[1:] - 1), dim=1)
    return torch.where(halves.side[last] == 0, 0.0, weights.onward[last])


def connectome(lines: Streamlines, weights: Survival, regions: Image) -> Float[Tensor, "r r"]:
    """Expected number of lines that end in each pair of regions; ``regions`` has one channel of memberships in [0, 1] each.

    Symmetric; the diagonal counts lines with both ends in one region.
    """
    first, second = end_memberships(lines, weights, regions)
    one_way = (first * weights.seed[:, None]).mT @ second
    return one_way + one_way.mT - one_way.diagonal().diag()


def memberships(labels: Float[Tensor, "r i j k"] | Bool[Tensor, "r i j k"], grid: ImageGrid, border_mm: float) -> Image:
    """Soft memberships of regions given as masks: 1 inside, falling to 0 over about ``border_mm`` outside.

    Twice the mask smoothed with that standard deviation, cut at 1: lines that end just short of a region still count.
    """
    i, j, k = (border_mm / edge for edge in grid.voxel_sizes)
    soft = smooth.gaussian(labels.to(torch.float32), (i, j, k), border="zero")
    return Image(grid, (2 * soft).clamp(0, 1))
