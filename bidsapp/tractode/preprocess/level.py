"""One resolution of a series: how volumes are smoothed and thinned out, which points are compared, and a Gauss–Newton step on them.

Part of `motion`, which says how and why.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields.image import ImageGrid
from tractode.ops import smooth

_MARGIN = 5.0  # mm around the brain, whose outline says most of where it is
_AROUND = 12.0  # mm around the brain that predictions are made for
_CUTOFF = 4.0  # robust standard deviations beyond which a difference counts for little


class Level:
    """Smoothing of ``width`` mm (full at half maximum), and at most ``n_points`` points near the brain.

    ``grid``: the reference around the brain, in voxels of half the width or the scan's own, whichever are larger. Volumes as they were
    scanned are thinned out by whole ``strides`` only.
    """

    def __init__(self, grid: ImageGrid, mask: Bool[Tensor, "i j k"], width: float, n_points: int) -> None:
        sizes = grid.voxel_sizes
        sigma = [width / 2.355 / size for size in sizes]
        self.sigma = (sigma[0], sigma[1], sigma[2])
        ratios = [max(1.0, min(width / 2 / size, n // 8)) for size, n in zip(sizes, grid.shape, strict=True)]
        strides = [int(ratio) for ratio in ratios]
        self.strides = (strides[0], strides[1], strides[2])
        self.grid, self.brain = _around(grid, mask, ratios)
        radius = [max(1, round(_MARGIN / size)) for size in self.grid.voxel_sizes]
        near = smooth.dilate(self.brain, (radius[0], radius[1], radius[2]))
        flat = near.reshape(-1).nonzero()[:, 0]
        self.chosen = flat[:: max(1, math.ceil(len(flat) / n_points))]
        self.points = self.grid.centres(torch.float32).reshape(-1, 3)[self.chosen]

    def smoothed(self, values: Float[Tensor, "1 i j k"]) -> Float[Tensor, "1 r s t"]:
        """A volume of the series at this resolution."""
        for axis, (sigma, stride) in enumerate(zip(self.sigma, self.strides, strict=True)):
            if values.shape[axis + 1] > 1:
                one = [0.0, 0.0, 0.0]
                one[axis] = sigma
                # Thinned out at once, so that the next axis has less to do.
                values = smooth.gaussian(values, (one[0], one[1], one[2]))
                values = values[(slice(None),) * (axis + 1) + (slice(None, None, stride),)]
        return values.contiguous()

    def gradient(self, values: Float[Tensor, "r s t"]) -> Float[Tensor, "v 3"]:
        """Per mm, along RAS+, of every voxel."""
        parts = [torch.gradient(values, dim=axis)[0] for axis in range(3)]
        return torch.stack(parts, dim=-1).reshape(-1, 3) @ self.grid.inverse_affine[:3, :3].to(values)


def _around(
    grid: ImageGrid, mask: Bool[Tensor, "i j k"], ratios: list[float]
) -> tuple[ImageGrid, Bool[Tensor, "r s t"]]:
    """A grid of voxels so many times as large around the brain, and the brain on it."""
    brain, first = mask, []
    for axis, (ratio, size) in enumerate(zip(ratios, grid.voxel_sizes, strict=True)):
        place = torch.arange(int((grid.shape[axis] - 1) / ratio) + 1) * ratio
        held = mask.movedim(axis, 0).flatten(1).any(-1).nonzero()[:, 0]
        if len(held):
            low, high = float(held[0]) - _AROUND / size, float(held[-1]) + _AROUND / size
            place = place[(place >= low) & (place <= high)]
        brain = brain.index_select(axis, place.round().long())
        first.append(float(place[0]))
    affine = grid.affine.clone()
    affine[:3, 3] += affine[:3, :3] @ torch.tensor(first, dtype=torch.float64)
    affine[:3, :3] *= torch.tensor(ratios, dtype=torch.float64)
    return ImageGrid((brain.shape[0], brain.shape[1], brain.shape[2]), affine, grid.space), brain


def stepped(
    gradient: Float[Tensor, "p 3"],
    points: Float[Tensor, "p 3"],
    centre: Float[Tensor, " 3"],
    aim: Float[Tensor, " p"],
    seen: Float[Tensor, " p"],
    inside: Bool[Tensor, " p"] | None = None,
    more: Float[Tensor, "p e"] | None = None,
    strength: Float[Tensor, " e"] | None = None,
    wanted: Float[Tensor, " e"] | None = None,
) -> tuple[Float[Tensor, " 6"], Float[Tensor, " e"]]:
    """The small motion (mm, rad) that brings what is seen nearest to its aim, its brightness left free; and what of ``more`` does.

    ``gradient`` is the aim's. ``more``: changes by a unit of further parameters, held near ``wanted`` by Gaussians of the precisions
    ``strength`` (their unit is that of the errors of one point). Differences count less the larger they are.
    """
    scale = float((seen * aim).sum() / seen.square().sum().clamp_min(1e-12))
    apart = aim - scale * seen
    deviation = 1.4826 * (apart if inside is None else apart[inside]).abs().median()
    weight = (1 + (apart / (_CUTOFF * deviation).clamp_min(1e-9)).square()).square().reciprocal()
    weight = weight if inside is None else weight * inside
    arm = torch.linalg.cross(points - centre.to(points), gradient)
    columns = torch.cat((gradient, arm, scale * seen[:, None], *([] if more is None else [more])), dim=-1)
    heavy = columns * weight[:, None]
    normal, right = (heavy.mT @ columns).double(), (heavy.mT @ apart).double()
    ridge = 1e-9 * normal.diagonal().clamp_min(1e-12)
    if more is not None and strength is not None and wanted is not None:
        variance = float((weight * apart.square()).sum() / weight.sum().clamp_min(1e-12))
        ridge[7:] += variance * strength
        right[7:] += variance * strength * wanted
    step = torch.linalg.solve(normal + ridge.diag(), right)
    return step[:6], step[7:]
