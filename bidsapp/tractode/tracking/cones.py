"""Directions drawn at random about the direction of travel, in a frame that turns with the grid; what iFOD1 and iFOD2 share.

A direction in a cone is uniform over the cap of the sphere. Rejection sampling needs a bound of what is sampled: a few
directions about the present one (`Probes`) are looked at first, and the largest value found times a ratio is the bound. How
many and how far apart follows, as in MRtrix3 (Tournier et al., NeuroImage 2019, doi:10.1016/j.neuroimage.2019.116137), from
how fast the sharpest distribution falls off: the fewest looks a step, probes and trials together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import ImageGrid
from tractode.ops import counter_random
from tractode.ops import sh_polynomial as poly
from tractode.ops.peaks import pad_to_lanes
from tractode.tracking.sampling import ComponentTable, to_voxel

SMALLEST_TURN = 1e-6  # rad: below it an arc is straight to float32
MOST_PROBES = 500


@dataclass(frozen=True, eq=False)
class Probes:
    """Turn (rad) and cosine and sine of the azimuth of each probe, and the ratio that makes its best a bound."""

    turns: Float[Tensor, "k 3"]
    ratio: float


def sharpest(order: int) -> np.polynomial.legendre.Legendre:
    """The sharpest distribution of an order, harmonics of a point on the sphere, as a function of the cosine to it."""
    weights = [float(2 * degree + 1) for degree in range(0, order + 1, 2)]
    return np.polynomial.legendre.Legendre([w for even in weights for w in (even, 0.0)])


def calibrated(value: Callable[[float], float], largest: float) -> Probes:
    """Probes for cones of ``largest`` rad, given how the sharpest value there is falls off with the turn (rad).

    A hexagonal lattice whose cells reach ``turn`` from their middle finds a peak at ``value(turn)`` at least, of
    ``value(0)``. Trials needed are taken as the cone's area over that of the peak, times the mean of 1 and the ratio.
    """
    turns = [0.001 * n for n in range(math.ceil(largest / 0.001))]
    values = [value(turn) for turn in turns]
    n = next((n for n, v in enumerate(values) if not v > 0), len(values) - 1)
    zero = max(turns[n], 0.001)
    best, chosen = math.inf, (1.0, largest)
    for turn, v in zip(turns[1 : n + 1], values[1:], strict=False):
        spacing = math.sqrt(3) * turn
        # The lattice's cells are √3/2 spacing² each.
        if v > 0 and 2 * math.pi / math.sqrt(3) * ((largest + turn) / spacing) ** 2 < MOST_PROBES:
            ratio = values[0] / v
            cost = largest**2 * (1 + ratio) / (2 * zero**2) + len(_hexagons(largest + turn, spacing))
            if cost < best:
                best, chosen = cost, (ratio, turn)
    ratio, turn = chosen
    return Probes(_hexagons(largest + turn, math.sqrt(3) * turn), ratio)


def _hexagons(reach: float, spacing: float) -> Float[Tensor, "k 3"]:
    """A hexagonal lattice about 0 with radii up to ``reach``, nearest first: radius, cosine and sine of the azimuth."""
    extent = math.ceil(reach / spacing) + 1
    i, j = torch.meshgrid(*2 * [torch.arange(-extent, extent + 1, dtype=torch.float64)], indexing="ij")
    x, y = (i + 0.5 * j).ravel(), (0.5 * math.sqrt(3) * j).ravel()
    radius = (x * x + y * y).sqrt()
    inside = (spacing * radius <= reach * (1 + 1e-9)).nonzero().ravel()
    inside = inside[radius[inside].sort(stable=True).indices]
    x, y, radius = x[inside], y[inside], radius[inside]
    middle = radius == 0
    return torch.stack(
        (
            (spacing * radius).clamp_min(SMALLEST_TURN),
            torch.where(middle, 1.0, x / radius.clamp_min(1e-9)),
            y / radius.clamp_min(1e-9),
        ),
        dim=1,
    )


def grid_axes(grid: ImageGrid) -> Float[Tensor, "3 3"]:
    """Orthonormal axes (columns, float64) that turn with the grid: those of its first two sides, and one across."""
    first, second = grid.affine[:3, 0].double(), grid.affine[:3, 1].double()
    first = first / first.norm()
    second = second - (second @ first) * first
    second = second / second.norm()
    return torch.stack((first, second, torch.linalg.cross(first, second)), dim=1)


def side_axes(
    axes: Float[Tensor, "3 3"], direction: Float[Tensor, "3 m"]
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "3 m"]]:
    """Two unit vectors across each direction and across each other.

    Duff et al., *Building an orthonormal basis, revisited*, JCGT 2017: no root, no special case.
    """
    rows = axes.tolist()
    x, y, z = direction.unbind(0)
    a, b, c = (rows[0][n] * x + rows[1][n] * y + rows[2][n] * z for n in range(3))
    sign = torch.where(c >= 0, 1.0, -1.0).to(c)
    scale = -1.0 / (sign + c)
    mixed = a * b * scale
    first = (1.0 + sign * a * a * scale, sign * mixed, -sign * a)
    second = (mixed, sign + b * b * scale, -b)
    return _in_world(rows, first), _in_world(rows, second)


def _in_world(rows: list[list[float]], parts: tuple[Tensor, Tensor, Tensor]) -> Float[Tensor, "3 m"]:
    a, b, c = parts
    return torch.stack([row[0] * a + row[1] * b + row[2] * c for row in rows])


def turn_in_cone(u: Float[Tensor, "*m"], cap: float) -> Float[Tensor, "*m"]:
    """The turn (rad) below which a share ``u`` of a cone lies; ``cap`` is 1 − cos of the largest."""
    return (2 * (0.5 * cap * u).sqrt().asin()).clamp_min(SMALLEST_TURN)


def amplitude(
    table: ComponentTable, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"]
) -> Float[Tensor, " m"]:
    """The amplitude at points (mm) in unit directions; NaN where there are no data."""
    components, has_data = table.sample(to_voxel(table.grid, position))
    return torch.where(has_data, value(components, direction), torch.nan)


def value(components: Float[Tensor, "n m"], direction: Float[Tensor, "3 m"]) -> Float[Tensor, " m"]:
    """The amplitude that components give in unit directions."""
    return poly.dot(direction, poly.apply(poly.contraction(components, direction), direction))


def first_directions(
    table: ComponentTable,
    axes: Float[Tensor, "3 3"],
    start: Int[Tensor, " m"],
    position: Float[Tensor, "3 m"],
    direction: Float[Tensor, "3 m"],
    cutoff: float,
    attempts: int,
) -> tuple[Float[Tensor, "3 m"], Bool[Tensor, " m"]]:
    """The given directions where the amplitude reaches the cutoff, else the first random ones where it does.

    And whether there is one within ``attempts``. ``start`` are the lines' streams of `ops.counter_random`; counters below
    0 are used here, those from 0 on in the steps.
    """
    found, is_good = direction.clone(), torch.zeros_like(start, dtype=torch.bool)
    waiting = torch.arange(len(start), device=start.device)
    rows = axes.tolist()
    for attempt in range(attempts + 1):
        columns = pad_to_lanes(waiting)
        values = amplitude(table, position[:, columns], found[:, columns])[: len(waiting)]
        is_good[waiting] = values >= cutoff
        waiting = waiting[values < cutoff]
        if len(waiting) == 0 or attempt == attempts:
            break
        c = 1 - 2 * counter_random.draw(start[waiting], -1 - 2 * attempt)
        azimuth = 2 * math.pi * counter_random.draw(start[waiting], -2 - 2 * attempt)
        s = (1 - c * c).sqrt()
        found[:, waiting] = _in_world(rows, (s * azimuth.cos(), s * azimuth.sin(), c)).to(found)
    return found, is_good
