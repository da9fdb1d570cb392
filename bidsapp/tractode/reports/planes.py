"""Planes of the world through an image: where they lie, what is seen on them and which letters stand at their edges.

Every picture is cut along the scanner's own axes, by sampling in RAS+ mm: storage order, handedness and obliquity of
the voxel grid cannot move a side of the brain. The convention is neurological: the patient's left is drawn on the left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Image
from tractode.ops.interpolate import Interpolation

_LARGEST_WIDTH = 1500
_CELLS = (6, 28)  # pixels a cell, least and most


@dataclass(frozen=True)
class View:
    """A family of parallel planes: world axes (0 = x to the right, 1 = y to the front, 2 = z up) across, up and normal."""

    name: str
    across: int
    up: int
    normal: int
    left: str
    right: str
    bottom: str
    top: str
    seen_from: str

    @property
    def coordinate(self) -> str:
        return "xyz"[self.normal]


AXIAL = View("axial", 0, 1, 2, "L", "R", "P", "A", "above")
CORONAL = View("coronal", 0, 2, 1, "L", "R", "I", "S", "behind")
SAGITTAL = View("sagittal", 1, 2, 0, "P", "A", "I", "S", "the right")
VIEWS = (AXIAL, CORONAL, SAGITTAL)


@dataclass(frozen=True)
class Box:
    """An axis-aligned box of the world, mm."""

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]

    @property
    def centre(self) -> tuple[float, float, float]:
        x, y, z = ((a + b) / 2 for a, b in zip(self.lower, self.upper, strict=True))
        return x, y, z

    @property
    def size(self) -> tuple[float, float, float]:
        x, y, z = (b - a for a, b in zip(self.lower, self.upper, strict=True))
        return x, y, z

    def widened(self, margin: float) -> Box:
        low, high = self.lower, self.upper
        return Box(
            (low[0] - margin, low[1] - margin, low[2] - margin), (high[0] + margin, high[1] + margin, high[2] + margin)
        )

    def intersected(self, other: Box) -> Box:
        lower = [max(a, b) for a, b in zip(self.lower, other.lower, strict=True)]
        upper = [max(low, min(a, b)) for low, a, b in zip(lower, self.upper, other.upper, strict=True)]
        return Box((lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2]))


@dataclass(frozen=True)
class Plane:
    """A rectangle of a view at a position (mm along its normal) between two corners of a box."""

    view: View
    position: float
    box: Box

    def shape(self, step: float) -> tuple[int, int]:
        """Rows and columns of a picture with ``step`` mm a pixel."""
        size = self.box.size
        return max(1, math.ceil(size[self.view.up] / step)), max(1, math.ceil(size[self.view.across] / step))

    def points(self, step: float) -> Float[Tensor, "h w 3"]:
        """World position of each pixel's centre; the first row is the top, the first column the left edge."""
        rows, columns = self.shape(step)
        out = torch.full((rows, columns, 3), float(self.position), dtype=torch.float64)
        lower = self.box.lower
        across = lower[self.view.across] + (torch.arange(columns, dtype=torch.float64) + 0.5) * step
        up = lower[self.view.up] + (torch.arange(rows, dtype=torch.float64) + 0.5) * step
        out[..., self.view.across] = across
        out[..., self.view.up] = up.flip(0)[:, None]
        return out

    def in_cells(self, spacing: float) -> tuple[Plane, int]:
        """Grown to whole cells of ``spacing`` mm, so that what is drawn in cells and a background share their pixels; pixels a cell."""
        rows, columns = self.shape(spacing)
        high = list(self.box.upper)
        # A hair less, so that rounding makes no further cell.
        high[self.view.across] = self.box.lower[self.view.across] + (columns - 1e-6) * spacing
        high[self.view.up] = self.box.lower[self.view.up] + (rows - 1e-6) * spacing
        pixels = max(_CELLS[0], min(_CELLS[1], _LARGEST_WIDTH // columns))
        return Plane(self.view, self.position, Box(self.box.lower, (high[0], high[1], high[2]))), pixels

    def label(self) -> str:
        """``z = +12`` with a true minus sign."""
        return f"{self.view.coordinate} = {signed(self.position)}"


def signed(value: float) -> str:
    """A rounded number with its sign, a true minus, and no sign on zero."""
    rounded = round(value)
    return "0" if rounded == 0 else f"{'+' if rounded > 0 else '−'}{abs(rounded)}"


def cut(image: Image, plane: Plane, step: float, mode: Interpolation = "linear") -> Float[Tensor, "h w c"]:
    """The image on a plane, float32 on the CPU, 0 outside its grid."""
    values = image.values.detach().to("cpu", torch.float32)
    return Image(image.grid, values).sample(plane.points(step).to(torch.float32), mode)


def box_of(image: Image, mask: Image | None = None, margin: float = 6.0) -> Box:
    """The part of the world worth showing: around the mask, else around what is not background, else everything.

    The margin is clipped to the field of view.
    """
    corners = torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=torch.float64)
    world = image.grid.to_world(corners * torch.tensor(image.grid.shape, dtype=torch.float64) - 0.5)
    everything = _bounds(world)
    seen = mask.mask.cpu() if mask is not None else _foreground(image)
    grid = mask.grid if mask is not None else image.grid
    if not bool(seen.any()):
        return everything
    voxels = seen.nonzero().to(torch.float64)
    return _bounds(grid.to_world(voxels)).widened(margin).intersected(everything)


def _bounds(points: Float[Tensor, "p 3"]) -> Box:
    low, high = points.amin(0).tolist(), points.amax(0).tolist()
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _foreground(image: Image) -> Tensor:
    """Voxels brighter than a tenth of the bright ones: enough to frame a head, not a segmentation."""
    values = image.values[0].detach().cpu().to(torch.float32)
    positive = values[values > 0]
    if len(positive) == 0:
        return values > 0
    stride = max(1, len(positive) // 1_000_000)
    return values > 0.1 * torch.quantile(positive[::stride], 0.98)


def positions(box: Box, view: View, count: int) -> Sequence[float]:
    """``count`` whole-millimetre positions spread over the middle of a box, the same distance apart up to rounding."""
    low, high = box.lower[view.normal], box.upper[view.normal]
    return [float(round(low + (high - low) * (i + 1) / (count + 1))) for i in range(count)]
