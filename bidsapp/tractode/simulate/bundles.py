"""Streamlines of named bundles in template space: smooth tubes of `courses`, cut where the white matter ends.

No paper: a tube is a family of natural cubic splines through its stations, one for each point of the unit disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.interpolate import CubicSpline
from torch import Tensor

from tractode.fields import Image, Streamlines
from tractode.simulate.courses import COURSES, Course, Station, Vector


@dataclass(frozen=True)
class Trimming:
    """Where a fibre ends: ``into_grey_mm`` beyond its first and last point in white matter (its course's ``ends_at``).

    A fibre is dropped that leaves white matter (less than ``inside``) for longer than ``gap_mm``, or is shorter than
    ``min_length_mm``.
    """

    into_grey_mm: float = 1.5
    inside: float = 0.2
    gap_mm: float = 6.0
    min_length_mm: float = 25.0


@cache
def courses() -> dict[str, Course]:
    """Every bundle by its full name, left and right apart, stations already mirrored or completed."""
    found: dict[str, Course] = {}
    for course in COURSES:
        if course.kind == "paired":
            left = tuple(_mirrored(station) for station in course.stations)
            found[f"{course.name}L"] = Course(f"{course.name}L", "paired", left, course.fibres, course.ends_at)
            found[f"{course.name}R"] = Course(
                f"{course.name}R", "paired", course.stations, course.fibres, course.ends_at
            )
        else:
            # Through the midline: the left half outside in, then the right half without its midline station.
            left = tuple(_mirrored(station) for station in reversed(course.stations[1:]))
            found[course.name] = Course(
                course.name, "commissure", left + course.stations, course.fibres, course.ends_at
            )
    return found


def _mirrored(station: Station) -> Station:
    def flip(vector: Vector) -> Vector:
        return -vector[0], vector[1], vector[2]

    return Station(flip(station.centre), flip(station.across), flip(station.thickness), flip(station.bend))


def disk(n: int, generator: torch.Generator) -> Float[Tensor, "n 2"]:
    """Points spread evenly over the unit disk (a sunflower) with a little disorder."""
    index = torch.arange(n, dtype=torch.float64) + 0.5
    radius = (index / n).sqrt()
    angle = index * (np.pi * (3 - np.sqrt(5)))
    spread = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    jitter = torch.randn(n, 2, generator=generator, dtype=torch.float64) * 0.5 / np.sqrt(n)
    points = spread + jitter
    return points / points.norm(dim=-1, keepdim=True).clamp(min=1)


def fibres(course: Course, cross_section: Float[Tensor, "n 2"], step_mm: float) -> Float[Tensor, "n m 3"]:
    """One spline a point of the disk, all with the same number of points, about ``step_mm`` apart on the centre line."""
    parts = [
        torch.tensor([getattr(s, name) for s in course.stations], dtype=torch.float64)
        for name in ("centre", "across", "thickness", "bend")
    ]
    centre, across, thickness, bend = parts
    u, v = cross_section[:, :1, None], cross_section[:, 1:, None]
    knots = centre + u * across + v * thickness + u**2 * bend
    chord = torch.cat([torch.zeros(1, dtype=torch.float64), centre.diff(dim=0).norm(dim=-1).cumsum(0)])
    n_points = int(float(chord[-1]) / step_mm) + 2
    at = np.linspace(0, float(chord[-1]), n_points)
    spline = CubicSpline(chord.numpy(), knots.numpy(), axis=1, bc_type="natural")
    return torch.from_numpy(np.ascontiguousarray(spline(at)))


def bundle(
    name: str,
    white_matter: Image,
    n: int,
    generator: torch.Generator,
    step_mm: float = 1.0,
    trimming: Trimming | None = None,
) -> Streamlines:
    """Up to ``n`` fibres of a named bundle in the template's space, cut to its white matter."""
    course = courses()[name]
    lines = fibres(course, disk(n, generator), step_mm)
    settings = trimming or Trimming()
    fraction = white_matter.sample(lines.to(white_matter.values.dtype))[..., 0].double()
    first, last, kept = _span(lines, fraction, course.ends_at, settings)
    index = torch.arange(lines.shape[1])
    within = (index >= first[:, None]) & (index <= last[:, None]) & kept[:, None]
    counts = within.sum(1)[kept]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Streamlines(lines[within], offsets, white_matter.grid.space)


def _span(
    lines: Float[Tensor, "n m 3"], fraction: Float[Tensor, "n m"], ends_at: float, settings: Trimming
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """First and last point to keep of each fibre, and whether the fibre is kept at all."""
    n_points = lines.shape[1]
    steps = lines.diff(dim=1).norm(dim=-1)
    step = steps.mean(1)
    index = torch.arange(n_points)
    white = fraction >= ends_at
    first = torch.where(white, index, n_points).amin(1)
    last = torch.where(white, index, -1).amax(1)
    # The longest run outside white matter between the two ends, by counting since the last point inside.
    between = (index >= first[:, None]) & (index <= last[:, None])
    outside = between & (fraction < min(settings.inside, ends_at))
    run = torch.zeros(len(lines), dtype=torch.float64)
    longest = run.clone()
    for m in range(1, n_points):
        run = torch.where(outside[:, m], run + steps[:, m - 1], torch.zeros_like(run))
        longest = torch.maximum(longest, run)
    extra = (settings.into_grey_mm / step).round().long()
    first, last = (first - extra).clamp(min=0), (last + extra).clamp(max=n_points - 1)
    length = (last - first).clamp(min=0) * step
    return first, last, (longest <= settings.gap_mm) & (length >= settings.min_length_mm)
