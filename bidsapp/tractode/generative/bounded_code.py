"""Codes with a guarantee: each line by the fewest stages of its code that keep a bound on its error, or by points.

No paper. Lines are compared at equal shares of their lengths. Both are polygons, so that their difference is a polygon of the
share and its greatest length lies at a vertex of either: the largest error is exact, not sampled. Any first stages of a residual
code are a code: plain lines take few, others more. A line that all stages leave beyond the bound is stored as the fewest equally
spaced points, rounded to float16, that keep it; at worst as its own points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import Codes
from tractode.errors import UsageError
from tractode.fields import ImageGrid, Streamlines
from tractode.fields.line_shape import one_way, resampled

N_POINTS = 64
"""Points a decoded line has; the bound holds for the polygon through them."""
LEAST_BOUND_MM = 0.1
_LADDER = (4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)
_FINE_MM = 0.01
_SHARE, _EVEN = "share", "even"
_BINS = 5000


@runtime_checkable
class Coder(Protocol):
    """What is needed of a codec: one row of codes a streamline, each in [0, its level), of which any first ones are a code; a box."""

    label: ClassVar[str]

    @property
    def most_stages(self) -> int: ...

    def with_stages(self, stages: int) -> Coder: ...

    @property
    def levels(self) -> tuple[int, ...]: ...

    @property
    def box(self) -> ImageGrid: ...

    def encode(self, streamlines: Streamlines) -> Codes: ...

    def decode(self, codes: Codes, n_points: int = 64) -> Streamlines: ...


@dataclass(frozen=True, eq=False)
class Bounded:
    """Streamlines as they are stored, in order, each in the one direction of `fields.line_shape.one_way`.

    ``codes`` has a row of all stages for every line, ``stages`` says how many of them are stored; 0: ``points`` are stored instead
    (float16 offsets from the middle of the codec's box, mm), ``n_points`` each. ``error`` is every line's largest error as stored.
    """

    codes: Int[Tensor, "s c"]
    stages: Int[Tensor, " s"]
    points: Float[Tensor, "p 3"]
    n_points: Int[Tensor, " x"]
    error: Float[Tensor, " s"]


def bounded(codec: Coder, lines: Streamlines, bound: float, spread: ErrorSpread | None = None) -> Bounded:
    """Encode usable lines of the codec's space so that no point of any is farther than ``bound`` mm from what is stored.

    ``spread`` gathers the errors of points as they are stored.

    Raises
    ------
    UsageError
        E-CODEC-BOUND: below what float16 can keep.
    """
    check_bound(bound)
    lines = one_way(lines)
    codes = codec.with_stages(codec.most_stages).encode(lines).values.detach().cpu().long()
    lines = _measured(lines)
    stages, error = torch.zeros(len(lines), dtype=torch.long), torch.full((len(lines),), torch.inf, dtype=torch.float64)
    left = torch.arange(len(lines))
    for tier in tiers(codec.most_stages):
        some = lines.select(left)
        decoded = decoded_rows(codec, codes[left], tier)
        found = largest_error(some, decoded)
        fits = found <= bound  # false where it is not a number
        stages[left[fits]], error[left[fits]] = tier, found[fits]
        if spread is not None:
            spread.add_each(some.select(fits.nonzero().ravel()), decoded[fits])
        left = left[~fits]
    points, n_points = _as_points(lines, left, codec, bound, error, spread)
    return Bounded(codes, stages, points, n_points, error.float())


def tiers(most: int) -> tuple[int, ...]:
    """The numbers of stages that are tried, fewest first.

    >>> tiers(24)
    (4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24)
    >>> tiers(1)
    (1,)
    """
    step = max(1, round(most / 12))
    return tuple(sorted({*range(min(2 * step, most), most + 1, step), most}))


def decoded_rows(codec: Coder, codes: Int[Tensor, "s c"], stages: int) -> Float[Tensor, "s n 3"]:
    """Lines by `N_POINTS` points from the first stages of their codes, mm."""
    few = codec.with_stages(stages).decode(Codes(codes[:, :stages], len(codes)), N_POINTS)
    return few.points.detach().cpu().double().reshape(len(codes), N_POINTS, 3)


def _as_points(
    lines: Streamlines,
    left: Int[Tensor, " m"],
    codec: Coder,
    bound: float,
    error: Float[Tensor, " s"],
    spread: ErrorSpread | None,
) -> tuple[Float[Tensor, "p 3"], Int[Tensor, " x"]]:
    """The lines that are left, one after another, by the fewest points that keep the bound; their errors are filled in."""
    parts: dict[int, Tensor] = {}
    middle = centre(codec.box)
    for n in _LADDER:
        if not len(left):
            break
        some = lines.select(left)
        halves = (resampled(some, n) - middle).half()
        found = largest_error(some, halves.double() + middle)
        fits = found <= bound
        parts |= dict(zip(left[fits].tolist(), halves[fits], strict=True))
        error[left[fits]] = found[fits]
        if spread is not None:
            spread.add_each(some.select(fits.nonzero().ravel()), halves[fits].double() + middle)
        left = left[~fits]
    for row in left.tolist():  # coiled or very long: its own points
        parts[row] = (lines[row].cpu().double() - middle).half()
        error[row] = float((parts[row].double() + middle - lines[row].cpu().double()).norm(dim=-1).max())
    kept = [parts[row] for row in sorted(parts)]
    points = torch.cat(kept) if kept else torch.zeros(0, 3, dtype=torch.float16)
    return points, torch.tensor([len(part) for part in kept], dtype=torch.long)


def fewest_points(lines: Streamlines, bound: float) -> Int[Tensor, " s"]:
    """How many equally spaced points each line needs to keep the bound: what codes are to be compared with."""
    needed, left = lines.n_points.cpu().clone(), torch.arange(len(lines))
    for n in _LADDER:
        some = lines.select(left)
        fits = largest_error(some, resampled(some, n)) <= bound
        needed[left[fits]] = n
        left = left[~fits]
    return needed


def check_bound(bound: float) -> None:
    if not bound >= LEAST_BOUND_MM:
        raise UsageError(
            f"A largest error of {bound:g} mm is less than float16 can keep",
            id="E-CODEC-BOUND",
            needed=f"at least {LEAST_BOUND_MM:g} mm",
            fix="give a larger one",
        )


def centre(box: ImageGrid) -> Float[Tensor, " 3"]:
    """The middle of a grid, mm: what stored points are measured from."""
    return box.to_world((torch.tensor(box.shape, dtype=torch.float64) - 1) / 2)


def _measured(lines: Streamlines) -> Streamlines:
    """The lines with what `largest_error` needs of them, which does not change from stage to stage."""
    points = lines.points.detach().cpu().double()
    shares = _shares(points, lines.streamline_of_point.cpu(), lines.offsets.cpu())
    return Streamlines(points, lines.offsets.cpu(), lines.space, {_SHARE: shares}, {_EVEN: resampled(lines, N_POINTS)})


def largest_error(lines: Streamlines, other: Float[Tensor, "s n 3"]) -> Float[Tensor, " s"]:
    """The greatest distance (mm) between points at equal shares of length; ``other``'s points are at equal steps."""
    other = other.double()
    n, points = other.shape[1], lines.points.detach().cpu().double()
    known = lines.per_streamline.get(_EVEN) if n == N_POINTS else None
    most = ((resampled(lines, n) if known is None else known) - other).norm(dim=-1).amax(1)
    owner, shares = lines.streamline_of_point.cpu(), lines.per_point.get(_SHARE)
    # At the line's own vertices, where the other is between two of its points.
    place = (_shares(points, owner, lines.offsets.cpu()) if shares is None else shares) * (n - 1)
    lower = place.floor().long().clamp(0, n - 2)
    at = torch.lerp(other[owner, lower], other[owner, lower + 1], (place - lower)[:, None])
    return most.scatter_reduce(0, owner, (points - at).norm(dim=-1), "amax")


def _shares(points: Float[Tensor, "p 3"], owner: Int[Tensor, " p"], offsets: Int[Tensor, " o"]) -> Float[Tensor, " p"]:
    """Of its line's length, the part before each point."""
    steps = points.diff(dim=0).norm(dim=-1) * (owner[1:] == owner[:-1])
    along = torch.cat([steps.new_zeros(1), steps.cumsum(0)])[: len(points)]
    start, length = along[offsets[:-1]], along[offsets[1:] - 1] - along[offsets[:-1]]
    return ((along - start[owner]) / length[owner].clamp(min=1e-9)).clamp(0, 1)


class ErrorSpread:
    """Mean, 95th percentile and greatest of very many errors in mm, without keeping them (bins of 0.01 mm)."""

    def __init__(self) -> None:
        self._bins = torch.zeros(_BINS + 1, dtype=torch.long)
        self._total, self._most, self.n = 0.0, 0.0, 0

    def add(self, errors: Float[Tensor, "*n"]) -> None:
        errors = errors.detach().flatten().double()
        if not len(errors):
            return
        self._bins += torch.bincount((errors / _FINE_MM).long().clamp(0, _BINS), minlength=_BINS + 1)
        self._total, self._most = self._total + float(errors.sum()), max(self._most, float(errors.max()))
        self.n += len(errors)

    def add_each(self, lines: Streamlines, other: Float[Tensor, "s n 3"]) -> None:
        """The distances of lines to others at `N_POINTS` places."""
        if len(lines):
            known = lines.per_streamline.get(_EVEN)
            even = resampled(lines, N_POINTS) if known is None else known
            self.add((even - (other if other.shape[1] == N_POINTS else refined(other))).norm(dim=-1))

    def facts(self) -> dict[str, float | None]:
        """Millimetres, rounded; null where there was nothing."""
        if not self.n:
            return {"Mean": None, "Percentile95": None, "Maximum": None}
        reached = self._bins.cumsum(0) >= 0.95 * self.n
        return {
            "Mean": round(self._total / self.n, 4),
            "Percentile95": round(min((int(reached.nonzero()[0]) + 1) * _FINE_MM, self._most), 4),
            "Maximum": round(self._most, 4),
        }


def refined(other: Float[Tensor, "s n 3"], n: int = N_POINTS) -> Float[Tensor, "s m 3"]:
    """Polygons of equal steps of share at ``n`` places."""
    place = torch.linspace(0, other.shape[1] - 1, n, dtype=torch.float64)
    lower = place.floor().long().clamp(0, other.shape[1] - 2)
    return torch.lerp(other.double()[:, lower], other.double()[:, lower + 1], (place - lower)[:, None])
