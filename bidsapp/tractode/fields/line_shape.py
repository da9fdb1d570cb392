"""Streamlines as rows of equally spaced points, and one of a line's two directions: exact, whatever stands beside a line.

No paper. Arc lengths are counted in whole units of 2⁻²⁰ mm, so that sums have no rounding: a line gives the same points alone,
among others, and in any order. The direction is ruled by the line's ends, so that a reversed line gives the same bytes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields.streamlines import Streamlines

_UNITS_PER_MM = 2**20
_TOWARDS = (0.4, 0.9, 0.15)
"""RAS: mainly to the front, then to the right. Of the directions tried, lines of one bundle disagree least about it (4 %)."""


def resampled(lines: Streamlines, n: int) -> Float[Tensor, "s n 3"]:
    """Every line by ``n`` points equally spaced along it, ends kept (float64). No line may be without points."""
    if len(lines) == 0:
        return torch.zeros(0, n, 3, dtype=torch.float64)
    points = lines.points.detach().cpu().double()
    owner, offsets = lines.streamline_of_point.cpu(), lines.offsets.cpu()
    first, last = offsets[:-1], offsets[1:] - 1
    steps = points.diff(dim=0).norm(dim=-1) * (owner[1:] == owner[:-1])
    units = (steps * _UNITS_PER_MM).round().long()
    along = torch.cat([units.new_zeros(1), units.cumsum(0)])  # over all lines, none between them
    share = torch.linspace(0, 1, n, dtype=torch.float64)
    target = along[first, None] + ((along[last] - along[first])[:, None] * share).round().long()
    upper = torch.searchsorted(along, target).minimum(last[:, None])
    upper = torch.maximum(upper, torch.minimum(first + 1, last)[:, None])
    lower = torch.maximum(upper - 1, first[:, None])
    span = (along[upper] - along[lower]).double()
    between = torch.where(span > 0, (target - along[lower]) / span.clamp(min=1.0), torch.zeros_like(span))
    return torch.lerp(points[lower], points[upper], between.clamp(0, 1)[..., None])


def one_way(lines: Streamlines) -> Streamlines:
    """Every line turned to run to the front and right, as its ends tell; a closed one as its points do. Data per point turn too."""
    turned = _is_turned(lines)
    if not bool(turned.any()):
        return lines
    owner = lines.streamline_of_point
    place = torch.arange(len(lines.points), device=lines.points.device)
    mirrored = lines.offsets[owner] + lines.offsets[owner + 1] - 1 - place
    order = torch.where(turned[owner], mirrored, place)
    per_point = {name: value[order] for name, value in lines.per_point.items()}
    return Streamlines(lines.points[order], lines.offsets, lines.space, per_point, dict(lines.per_streamline))


def runs_back(lines: Float[Tensor, "s n 3"]) -> Bool[Tensor, " s"]:
    """Of lines by equal numbers of points: which run against the rule of `one_way` (open lines only)."""
    towards = torch.tensor(_TOWARDS, dtype=torch.float64, device=lines.device)
    return ((lines[:, -1].double() - lines[:, 0].double()) * towards).sum(-1) < 0


def _is_turned(lines: Streamlines) -> Bool[Tensor, " s"]:
    full = lines.n_points > 0
    turned = torch.zeros_like(full)
    ends = torch.stack([lines.points[lines.offsets[:-1][full]], lines.points[lines.offsets[1:][full] - 1]], 1)
    towards = torch.tensor(_TOWARDS, dtype=torch.float64, device=ends.device)
    # Differences of two numbers and of the same two exchanged are exact opposites; so are their sums in one order.
    along = ((ends[:, 1].double() - ends[:, 0].double()) * towards).sum(-1)
    turned[full] = along < 0
    for index in full.nonzero().ravel()[along == 0].tolist():
        line = lines[index].tolist()
        turned[index] = line > line[::-1]
    return turned
