"""Shaded glyphs of orientation distributions: surfaces ``r(u) u`` drawn into a depth buffer.

A glyph's radius is the amplitude along each direction. Its triangles are filled with points no farther apart than a
pixel, projected orthographically; the point nearest to the viewer wins; shade comes from the surface normal.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull
from torch import Tensor

from tractode.ops import sphere
from tractode.ops.spherical_harmonics import basis
from tractode.reports.planes import View

_TILE = 64  # glyphs at a time: fixed, so that memory is bounded
_VERTICES = 1600  # beyond what `sphere.directions` relaxes: an even spiral, at once
_SUPERSAMPLE = 2  # drawn this many times larger and averaged
_REACH = 0.72  # radius of an amplitude of `scale`, in cells: neighbours of one bundle touch
_LONGEST = 1.5  # amplitudes beyond this many times `scale` are shown at it
_TURN = 1e-2  # angle of the finite differences of the surface, radians
_FINENESS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # points along a triangle's edge


def render(
    coefficients: Float[Tensor, "h w l"], order: int, view: View, toward: float, scale: float, cell: int
) -> tuple[Float[np.ndarray, "hc wc 3"], Float[np.ndarray, "hc wc"]]:
    """Glyphs of a grid of voxels as colours (0 to 1) and their cover (1 where a glyph is).

    ``toward`` is the side of the viewer along the view's normal; an amplitude of ``scale`` reaches the edge of the
    neighbouring glyph; a voxel is ``cell`` pixels wide.
    """
    rows, columns, _ = coefficients.shape
    drawn = cell * _SUPERSAMPLE
    height, width = rows * drawn, columns * drawn
    depth = torch.full((height * width,), -torch.inf)
    colour = torch.zeros(height * width, 3)
    where = (coefficients.abs().sum(-1) > 0).nonzero()
    for start in range(0, len(where), _TILE):
        cells = where[start : start + _TILE]
        radius, shade = _surface(coefficients[cells[:, 0], cells[:, 1]], order, view, toward)
        units, triangles = _mesh(view, toward)
        points = radius.clamp(max=_LONGEST * scale)[..., None] * units * (_REACH * drawn / scale)
        column = (cells[:, 1, None] + 0.5) * drawn + points[..., view.across]
        row = (cells[:, 0, None] + 0.5) * drawn - points[..., view.up]
        near = points[..., view.normal] * toward
        corners = torch.cat([torch.stack([row, column, near], dim=-1), units.abs() * shade[..., None]], dim=-1)
        _fill(corners, triangles, radius, (height, width), depth, colour)
    blocks = (rows * cell, _SUPERSAMPLE, columns * cell, _SUPERSAMPLE)
    cover = torch.isfinite(depth).to(torch.float32).reshape(blocks).mean((1, 3))
    picture = colour.clamp(0, 1).reshape(*blocks, 3).mean((1, 3)) / cover.clamp(min=1e-6)[..., None]
    return picture.numpy(), cover.numpy()


def _surface(
    local: Float[Tensor, "n l"], order: int, view: View, toward: float
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Radius (not below 0) and shade of each vertex: brighter where the surface faces the viewer."""
    units, _ = _mesh(view, toward)
    first, second = _tangents(units)
    here, along_first, along_second = (local @ b.mT for b in _bases(order))
    slope = ((along_first - here)[..., None] * first + (along_second - here)[..., None] * second) / _TURN
    radius = here.clamp(min=0)
    normal = torch.nn.functional.normalize(radius[..., None] * units - slope, dim=-1)
    return radius, 0.35 + 0.65 * (normal[..., view.normal] * toward).clamp(min=0)


def _fill(
    corners: Float[Tensor, "n d 6"],
    triangles: Int[Tensor, "t 3"],
    radius: Float[Tensor, "n d"],
    shape: tuple[int, int],
    depth: Float[Tensor, " pixels"],
    colour: Float[Tensor, "pixels 3"],
) -> None:
    """Triangles of some glyphs (row, column, depth and colour at their corners) into both buffers, changed in place."""
    flat = corners[:, triangles].flatten(0, 1)
    flat = flat[(radius[:, triangles] > 0).any(-1).flatten()]
    edges = (flat[:, :, :2] - flat[:, :, :2].roll(1, dims=1)).norm(dim=-1).amax(1)
    bounds = torch.tensor(_FINENESS[:-1], dtype=edges.dtype)
    level = torch.bucketize(edges, bounds)
    for index, fineness in enumerate(_FINENESS):
        chosen = flat[level == index]
        if len(chosen):
            samples = torch.einsum("mk,tkf->tmf", _barycentric(fineness), chosen).flatten(0, 1)
            _deposit(samples, shape, depth, colour)


def _deposit(
    samples: Float[Tensor, "p 6"],
    shape: tuple[int, int],
    depth: Float[Tensor, " pixels"],
    colour: Float[Tensor, "pixels 3"],
) -> None:
    row, column, near = samples[:, 0].floor().long(), samples[:, 1].floor().long(), samples[:, 2]
    seen = (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
    pixel, near, tone = row[seen] * shape[1] + column[seen], near[seen], samples[seen, 3:]
    # Two passes: the nearest depth of each pixel, then the colour of the point that has it.
    depth.scatter_reduce_(0, pixel, near, "amax")
    winner = near >= depth[pixel]
    colour[pixel[winner]] = tone[winner]


@cache
def _mesh(view: View, toward: float) -> tuple[Float[Tensor, "d 3"], Int[Tensor, "t 3"]]:
    """Vertices of the sphere and the triangles of its half toward the viewer.

    The far half is hidden: r(u) = r(−u), so the near half covers it.
    """
    units = _sphere()
    triangles = torch.tensor(ConvexHull(units.numpy()).simplices, dtype=torch.long)
    facing = (units[triangles, view.normal] * toward > 0).any(-1)
    return units, triangles[facing]


@cache
def _sphere() -> Float[Tensor, "d 3"]:
    return sphere.directions(_VERTICES, hemisphere=False).to(torch.float32)


@cache
def _bases(order: int) -> tuple[Float[Tensor, "d l"], ...]:
    """Harmonics at the vertices and a small turn away along both tangents."""
    units = _sphere()
    return tuple(basis(turned, order) for turned in (units, *(_turned(units, tangent) for tangent in _tangents(units))))


@cache
def _barycentric(fineness: int) -> Float[Tensor, "m 3"]:
    """Weights of points spread over a triangle; its middle alone for a triangle smaller than a pixel."""
    if fineness == 1:
        return torch.full((1, 3), 1 / 3)
    steps = [(i, j, fineness - i - j) for i in range(fineness + 1) for j in range(fineness + 1 - i)]
    return torch.tensor(steps, dtype=torch.float32) / fineness


def _tangents(units: Float[Tensor, "d 3"]) -> tuple[Float[Tensor, "d 3"], Float[Tensor, "d 3"]]:
    """Two unit vectors orthogonal to each direction and to one another."""
    helper = torch.zeros_like(units)
    helper.scatter_(1, units.abs().argmin(1, keepdim=True), 1.0)
    first = torch.nn.functional.normalize(torch.linalg.cross(units, helper), dim=-1)
    return first, torch.linalg.cross(units, first)


def _turned(units: Float[Tensor, "d 3"], tangent: Float[Tensor, "d 3"]) -> Float[Tensor, "d 3"]:
    return torch.nn.functional.normalize(units * math.cos(_TURN) + tangent * math.sin(_TURN), dim=-1)
