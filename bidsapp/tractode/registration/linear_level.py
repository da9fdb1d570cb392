"""Two images at one resolution, points drawn from both, and what a pose of one against the other costs.

Part of `affine`, which says how and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields.image import Image, ImageGrid
from tractode.ops import affine as aff
from tractode.ops import interpolate, smooth
from tractode.registration.metrics.mutual_information import unit_range
from tractode.registration.point_costs import PointCost

if TYPE_CHECKING:
    from tractode.registration.affine import AffineSettings

# Of the range of intensities: less is air.
_AIR = 0.1


@dataclass(frozen=True, eq=False)
class Side:
    """One image at one resolution: intensity in [0, 1] and mask, and points drawn from it with both."""

    values: Float[Tensor, "2 i j k"]
    to_voxel: Float[Tensor, "4 4"]
    points: Float[Tensor, "g p 3"]
    weight: Float[Tensor, "g p"]
    unit: Float[Tensor, "g p"]
    prepared: Float[Tensor, "g p b"]
    centre: Float[Tensor, " 3"]

    def sample(self, points: Float[Tensor, "g p 3"]) -> tuple[Float[Tensor, "g p"], Float[Tensor, "g p"]]:
        """Intensity (the edge goes on) and weight (0 out of view) at world points."""
        at = aff.apply_affine(self.to_voxel, points)
        intensity = interpolate.sample(self.values[:1], at, outside="nearest")[..., 0]
        return intensity, interpolate.sample(self.values[1:], at)[..., 0]

    def counted(self, matrix: Float[Tensor, "4 4"], other: Side, bins: int) -> tuple[Tensor, Tensor]:
        """Joint histogram of this image's points (rows) and the other image there, and the share that the other sees."""
        from tractode.ops.joint_histogram import joint_histogram  # numba takes a while to import

        to_voxel = other.to_voxel.double() @ matrix.double()
        points, unit, weight = self.points[0], self.unit[0], self.weight[0]
        joint, seen = joint_histogram(to_voxel, other.values, points, unit, weight, bins)
        return joint, seen / weight.sum(dtype=torch.float64).clamp_min(1e-6)

    @property
    def middle(self) -> Float[Tensor, " 3"]:
        """Of the field of view."""
        middle = (torch.tensor(self.values.shape[1:], dtype=torch.float64) - 1) / 2
        return aff.apply_affine(torch.linalg.inv(self.to_voxel).cpu(), middle)


@dataclass(frozen=True, eq=False)
class Level:
    """Both images at one resolution, and the cost of a pose."""

    fixed: Side
    moving: Side
    measure: PointCost

    def evaluate(self, matrix: Float[Tensor, "4 4"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The cost over the points of both images, with a guard against sliding apart; and the larger share seen."""
        backward = torch.linalg.inv(matrix)
        by_loops = self.measure.is_joint_histogram and self.fixed.values.device.type == "cpu"
        ways = self._counted if by_loops else self._tallied
        tally, share, share_back = ways(matrix, backward)
        largest = torch.maximum(share, share_back)
        return (0.6 - largest).clamp_min(0) + self.measure.cost(tally), largest

    def _tallied(self, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the cost is made of, and the shares seen of either image; any device, any measure."""
        fixed, moving, measure = self.fixed, self.moving, self.measure
        there, seen = moving.sample(aff.apply_affine(forward.to(fixed.points), fixed.points))
        back, seen_back = fixed.sample(aff.apply_affine(backward.to(fixed.points), moving.points))
        weight, weight_back = seen * fixed.weight, seen_back * moving.weight
        tally = measure.together(
            measure.tally(fixed.prepared, measure.prepare(there), weight),
            measure.tally(measure.prepare(back), moving.prepared, weight_back),
        )
        total, total_back = (side.weight.sum().clamp_min(1e-6) for side in (fixed, moving))
        return tally, weight.sum() / total, weight_back.sum() / total_back

    def _counted(self, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same by loops over points, for a joint histogram on a CPU; in float64."""
        joint, share = self.fixed.counted(forward, self.moving, self.measure.bins)
        other, share_back = self.moving.counted(backward, self.fixed, self.measure.bins)
        return (joint + other.mT)[None], share, share_back


@dataclass(frozen=True, eq=False)
class Pair:
    """The two images and where to look at them."""

    fixed: Image
    fixed_mask: Image | None
    moving: Image
    moving_mask: Image | None
    settings: AffineSettings
    stripped: bool = False

    def level(self, size: float, points: int, measure: PointCost) -> Level:
        """Both at voxels of about ``size`` mm, with at most ``points`` points of each."""
        # Each image draws from a generator of its own, so that its points do not depend on which side it stands on.
        sides = [_side(each, size, points, self.settings.seed, measure) for each in self._each]
        return Level(sides[0], sides[1], measure)

    @cached_property
    def _each(self) -> tuple[_Shown, _Shown]:
        """What all resolutions start from; made once."""
        return (
            _shown(self.fixed, self.fixed_mask, self.settings.margin, self.stripped),
            _shown(self.moving, self.moving_mask, self.settings.margin, self.stripped),
        )


@dataclass(frozen=True, eq=False)
class _Shown:
    """Intensity in [0, 1] and the widened mask of one image, and whether a mask was given."""

    image: Image
    has_mask: bool


def thinned(image: Image, mask: Image | None, size: float) -> tuple[Image, Image | None]:
    """Image and mask once at the finest voxel size that is used; every level starts from there."""
    values, affine = smooth.reduce(image.values[:1].to(torch.float32), image.grid.affine, size)
    shape = (values.shape[1], values.shape[2], values.shape[3])
    grid = ImageGrid(shape, affine, image.grid.space)
    if mask is None:
        return Image(grid, values), None
    steps = [round(float(n / o)) for n, o in zip(grid.voxel_sizes, image.grid.voxel_sizes, strict=True)]
    return Image(grid, values), Image(grid, mask.mask[None, :: steps[0], :: steps[1], :: steps[2]])


def _shown(image: Image, mask: Image | None, margin: float, stripped: bool) -> _Shown:
    grid = image.grid
    values = image.values[:1].to(torch.float32)
    wide = torch.ones(grid.shape, dtype=torch.bool, device=values.device) if mask is None else mask.mask
    if mask is not None and margin > 0:
        i, j, k = (round(margin / edge) for edge in grid.voxel_sizes)
        wide = smooth.dilate(wide, (i, j, k))
    if mask is not None and stripped:
        unit = (0.3 + 0.7 * unit_range(values, mask.mask[None])) * mask.mask
    else:
        unit = unit_range(values, wide[None])
    return _Shown(Image(grid, torch.cat([unit, wide[None].to(unit)])), mask is not None)


def _side(shown: _Shown, size: float, n: int, seed: int, measure: PointCost) -> Side:
    stacked, affine = smooth.reduce(shown.image.values, shown.image.grid.affine, size)
    inside = stacked[1] > 0.5
    if not shown.has_mask:
        inside = inside & _not_air(stacked[0])
    at = _draw(inside, affine, n, size, measure, torch.Generator().manual_seed(seed))
    drawn = interpolate.sample(stacked, at)
    return Side(
        stacked,
        torch.linalg.inv(affine).to(stacked.device),
        aff.apply_affine(affine, at),
        drawn[..., 1],
        drawn[..., 0],
        measure.prepare(drawn[..., 0]),
        _centre(stacked, affine, has_mask=shown.has_mask),
    )


def _not_air(unit: Float[Tensor, "i j k"]) -> Bool[Tensor, "i j k"]:
    """Where there is something, and two voxels around it: points in air say little, and how many there are is chance."""
    near = smooth.dilate(unit > _AIR, (2, 2, 2))
    return near if float(near.float().mean()) > 0.02 else torch.ones_like(near)


def _draw(
    inside: Tensor, affine: Float[Tensor, "4 4"], n: int, size: float, measure: PointCost, generator: torch.Generator
) -> Float[Tensor, "g p 3"]:
    """Voxel coordinates of random points: one group of ``n``, or groups in cubes around random middles."""
    chosen = inside.nonzero()
    most = max(n // measure.group, 1) if measure.group else n
    if len(chosen) > most:
        order = torch.randperm(len(chosen), generator=generator)[:most]
        chosen = chosen[order.to(chosen.device)]
    shape = (len(chosen), max(measure.group, 1), 3)
    offsets = torch.rand(shape, generator=generator) - 0.5
    if measure.group:
        half = measure.width * size if measure.in_voxels else measure.width
        offsets = 2 * half * offsets / aff.voxel_sizes(affine).float()
    # Off the lattice by a random part of a voxel: points on it make the cost ripple with the voxel's period.
    at = chosen[:, None] + offsets.to(chosen.device)
    upper = torch.tensor(inside.shape, device=chosen.device) - 1
    at = torch.minimum(at.clamp_min(0), upper)
    return at if measure.group else at.transpose(0, 1)


def _centre(stacked: Float[Tensor, "2 i j k"], affine: Tensor, *, has_mask: bool) -> Float[Tensor, " 3"]:
    """Centre of mass of the mask, or of the intensity where there is none (float64, CPU)."""
    weights = (stacked[1] if has_mask else stacked[0]).double().cpu()
    total = weights.sum().clamp_min(1e-12)
    axes = [torch.arange(n, dtype=torch.float64) for n in weights.shape]
    sums = [weights.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)]
    index = torch.stack([(axis * along).sum() / total for axis, along in zip(axes, sums, strict=True)])
    return aff.apply_affine(affine, index)
