"""Shaded glyphs of orientation distributions, drawn by splatting points of each surface into a depth buffer.

A glyph is the surface ``r(u) u`` with the radius proportional to the amplitude at ``u``. Every surface point is
projected orthographically and the nearest to the viewer wins; shade comes from the surface normal.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import sphere
from tractode.ops.spherical_harmonics import basis
from tractode.reports.planes import View

_TILE = 128  # glyphs at a time: fixed, so that memory is bounded
_SUPERSAMPLE = 2  # drawn this many times larger and averaged
_REACH = 0.72  # radius of an amplitude of `scale`, in cells: neighbours of one bundle touch
_LONGEST = 1.6  # amplitudes beyond this many times `scale` are shown at it
_SMALL = 1e-2  # angle of the finite differences of the surface, radians


def render(
    coefficients: Float[Tensor, "h w l"],
    order: int,
    view: View,
    toward: float,
    scale: float,
    cell: int,
    n_points: int = 16000,
) -> tuple[Float[np.ndarray, "hc wc 3"], Float[np.ndarray, "hc wc"]]:
    """Glyphs of a grid of voxels as colours (0 to 1) and their cover (1 where a glyph is).

    ``toward`` is the side of the viewer along the view's normal; an amplitude of ``scale`` reaches the edge of the neighbouring glyph.
    """
    rows, columns, _ = coefficients.shape
    drawn = cell * _SUPERSAMPLE
    units = sphere.directions(n_points, hemisphere=False).to(torch.float32)
    # The far half is hidden by the near half: r(u) = r(−u) and both lie on one line of sight through the centre.
    units = units[units[:, view.normal] * toward >= -0.05]
    first, second = _tangents(units)
    bases = torch.stack([basis(u, order) for u in (units, _turned(units, first), _turned(units, second))])
    height, width = rows * drawn, columns * drawn
    depth = torch.full((height * width,), -torch.inf)
    colour = torch.zeros(height * width, 3)
    keep = coefficients.abs().sum(-1) > 0
    where = keep.nonzero()
    for start in range(0, len(where), _TILE):
        cells = where[start : start + _TILE]
        local = coefficients[cells[:, 0], cells[:, 1]]
        _splat(local, cells, units, first, second, bases, view, toward, scale, drawn, (height, width), depth, colour)
    blocks = (rows * cell, _SUPERSAMPLE, columns * cell, _SUPERSAMPLE)
    cover = torch.isfinite(depth).to(torch.float32).reshape(blocks).mean((1, 3))
    picture = colour.clamp(0, 1).reshape(*blocks, 3).mean((1, 3)) / cover.clamp(min=1e-6)[..., None]
    return picture.numpy(), cover.numpy()


def _splat(
    local: Float[Tensor, "n l"],
    cells: Tensor,
    units: Float[Tensor, "d 3"],
    first: Float[Tensor, "d 3"],
    second: Float[Tensor, "d 3"],
    bases: Float[Tensor, "3 d l"],
    view: View,
    toward: float,
    scale: float,
    cell: int,
    shape: tuple[int, int],
    depth: Float[Tensor, " pixels"],
    colour: Float[Tensor, "pixels 3"],
) -> None:
    """Some voxels' surfaces into the depth buffer and the picture, both changed in place."""
    radius, along_first, along_second = (torch.einsum("dl,nl->nd", b, local) for b in bases)
    positive = radius.clamp(min=0)[..., None]
    slope = ((along_first - radius)[..., None] * first + (along_second - radius)[..., None] * second) / _SMALL
    normal = torch.nn.functional.normalize(positive * units - slope, dim=-1)
    points = positive.clamp(max=_LONGEST * scale) * units * (_REACH * cell / scale)
    column = (cells[:, 1, None] + 0.5) * cell + points[..., view.across]
    row = (cells[:, 0, None] + 0.5) * cell - points[..., view.up]
    near = points[..., view.normal] * toward
    height, width = shape
    seen = (radius > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = (row.long().clamp(0, height - 1) * width + column.long().clamp(0, width - 1))[seen]
    shade = 0.35 + 0.65 * (normal[..., view.normal] * toward).clamp(min=0)
    painted = (units.abs() * shade[..., None])[seen]
    distance = near[seen]
    # Two passes: the nearest depth of each pixel, then the colour of the point that has it.
    depth.scatter_reduce_(0, pixel, distance, "amax")
    winner = distance >= depth[pixel]
    colour[pixel[winner]] = painted[winner]


def _tangents(units: Float[Tensor, "d 3"]) -> tuple[Float[Tensor, "d 3"], Float[Tensor, "d 3"]]:
    """Two unit vectors orthogonal to each direction and to one another."""
    helper = torch.zeros_like(units)
    helper.scatter_(1, units.abs().argmin(1, keepdim=True), 1.0)
    first = torch.nn.functional.normalize(torch.linalg.cross(units, helper), dim=-1)
    return first, torch.linalg.cross(units, first)


def _turned(units: Float[Tensor, "d 3"], tangent: Float[Tensor, "d 3"]) -> Float[Tensor, "d 3"]:
    return torch.nn.functional.normalize(units + _SMALL * tangent, dim=-1)
