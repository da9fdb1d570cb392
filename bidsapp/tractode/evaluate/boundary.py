"""Does the border of white matter lie in another image where that image changes? A measure of alignment without masks.

D. N. Greve, B. Fischl, *Accurate and robust brain image alignment using boundary-based registration*, NeuroImage 48:63 (2009),
doi:10.1016/j.neuroimage.2009.06.060. Departures: the border is the middle surface of a fraction map, where grey matter lies
outside it, not a mesh; nothing is optimised: the cost is told at the answer and along shifts, whose lowest place says how far
off the answer is.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields.image import Image
from tractode.fields.transform import Transform
from tractode.ops import finite_difference

_SLOPE = 0.5  # of the cost, for a percent of contrast
_LEAST_POINTS = 200
_STEPS = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class BoundaryMeasure:
    """How white matter's border lies in an image.

    Parameters
    ----------
    cost
        0 where grey is clearly brighter than white everywhere along the border, 2 where it is clearly darker; chance is 1.
    contrast
        Median of 2 (grey − white) / (grey + white).
    crossed
        Share of the border at which grey is the brighter one.
    shift
        Where along R, A and S (mm) the cost is lowest: about how far off the answer is.
    points
        Of the border that the image sees.
    """

    cost: float
    contrast: float
    crossed: float
    shift: tuple[float, float, float]
    points: int

    @property
    def distance(self) -> float:
        """Length of ``shift``, mm."""
        return math.sqrt(sum(part * part for part in self.shift))

    def record(self) -> dict[str, object]:
        """Plain data for sidecars and the report."""
        rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}
        return {**rounded, "shift": [round(part, 2) for part in self.shift], "distance": round(self.distance, 2)}


def measure(
    image: Image,
    grey: Image,
    white: Image,
    transform: Transform,
    *,
    depth: float = 2.0,
    most_points: int = 20_000,
    grey_is_brighter: bool = True,
) -> BoundaryMeasure:
    """Looks ``depth`` mm to both sides of the border of white matter.

    Parameters
    ----------
    image
        A b=0 image, or another one (first channel).
    grey, white
        Fractions, on one grid.
    transform
        Maps points of their space to the image's.
    grey_is_brighter
        As on T2-weighted images; false for T1w.

    Raises
    ------
    InputDataError (E-BOUNDARY-FEW)
        The image sees too little of the border.
    """
    points, normals = border(grey, white, depth)
    stride = max(1, -(-len(points) // most_points))
    points, normals = points[::stride], normals[::stride]
    inner, outer = transform.map(points - depth * normals), transform.map(points + depth * normals)
    seen = _seen(image, inner) & _seen(image, outer)
    if int(seen.sum()) < _LEAST_POINTS:
        raise InputDataError(
            f"The image sees {int(seen.sum())} points of the border of white matter",
            id="E-BOUNDARY-FEW",
            needed=f"{_LEAST_POINTS} points or more",
            fix="look at the registration and at the segmentation in the report",
        )
    inner, outer = inner[seen], outer[seen]
    sign = 1.0 if grey_is_brighter else -1.0
    here = sign * _contrast(image, inner, outer)
    shift = [_lowest(image, inner, outer, axis, sign) for axis in range(3)]
    return BoundaryMeasure(
        float(_cost(here)), sign * float(here.median()), float((here > 0).double().mean()),
        (shift[0], shift[1], shift[2]), len(inner),
    )  # fmt: skip


def border(grey: Image, white: Image, depth: float = 2.0) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p 3"]]:
    """Points of the surface where white matter is half of a voxel and grey matter begins, and normals away from white (mm)."""
    values = white.values[0].double()
    slope = finite_difference.gradient(values[None])[0].permute(1, 2, 3, 0)
    slope = slope @ white.grid.inverse_affine[:3, :3]  # from a change per voxel to one per mm
    steep = slope.norm(dim=-1)
    at = ((values - 0.5).abs() < 0.3) & (steep > 0.1)
    gradient, steepness = slope[at], steep[at]
    normal = -gradient / steepness[:, None]
    points = _crossing(white, white.grid.centres(torch.float64)[at], normal)
    is_grey = grey.sample(points + depth * normal)[..., 0] > 0.5
    is_white = white.sample(points - depth * normal)[..., 0] > 0.5
    kept = is_grey & is_white
    return points[kept], normal[kept]


def _crossing(white: Image, points: Float[Tensor, "p 3"], normal: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
    """Where the interpolated map is 1/2 on the line through each point, by halving two voxels' length."""
    reach = max(white.grid.voxel_sizes)
    low, high = (torch.full((len(points), 1), sign * reach, dtype=points.dtype) for sign in (-1.0, 1.0))
    for _ in range(10):
        middle = (low + high) / 2
        is_white = white.sample(points + middle * normal)[..., :1] > 0.5
        low, high = torch.where(is_white, middle, low), torch.where(is_white, high, middle)
    return points + (low + high) / 2 * normal


def _seen(image: Image, points: Float[Tensor, "p 3"]) -> Tensor:
    voxels = image.grid.to_voxel(points)
    last = torch.tensor(image.grid.shape, dtype=voxels.dtype) - 1
    return ((voxels >= 0) & (voxels <= last)).all(-1)


def _contrast(image: Image, inner: Float[Tensor, "p 3"], outer: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
    inside, outside = (image.sample(points, outside="nearest")[..., 0].double() for points in (inner, outer))
    return 2 * (outside - inside) / (outside + inside).abs().clamp_min(1e-9)


def _cost(contrast: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    return (1 - torch.tanh(_SLOPE * 100 * contrast)).mean()


def _lowest(image: Image, inner: Float[Tensor, "p 3"], outer: Float[Tensor, "p 3"], axis: int, sign: float) -> float:
    """The shift along an axis at which the cost is lowest, by a parabola through the three lowest neighbours."""
    costs = []
    for step in _STEPS:
        move = torch.zeros(3, dtype=inner.dtype)
        move[axis] = step
        costs.append(float(_cost(sign * _contrast(image, inner + move, outer + move))))
    best = min(range(len(costs)), key=costs.__getitem__)
    if best in (0, len(costs) - 1):
        return _STEPS[best]
    before, middle, after = costs[best - 1 : best + 2]
    bend = before - 2 * middle + after
    return _STEPS[best] + (0.5 * (before - after) / bend if bend > 0 else 0.0)
