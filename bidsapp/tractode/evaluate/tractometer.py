"""Tractograms against bundles that are known: which streamlines connect what a bundle connects, along its way.

Côté et al., *Tractometer: towards validation of tractography pipelines*, Med Image Anal 2013,
doi:10.1016/j.media.2013.03.009. Departure: a streamline is valid when its two ends lie in the two end regions of one
bundle, one in each, and it stays in that bundle's mask widened by a tolerance; the others are all "invalid".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.errors import SpaceMismatchError
from tractode.fields import ImageGrid, Streamlines
from tractode.ops import smooth


@dataclass(frozen=True, eq=False)
class BundleRegions:
    """Where a bundle is and where its two ends are, on one grid."""

    grid: ImageGrid
    mask: Bool[Tensor, "i j k"]
    start: Bool[Tensor, "i j k"]
    end: Bool[Tensor, "i j k"]


@dataclass(frozen=True)
class Validity:
    """``bundle_of`` is the index of the bundle each streamline belongs to (the one it fits best), −1 for none."""

    names: tuple[str, ...]
    bundle_of: Int[Tensor, " s"]

    @property
    def valid_rate(self) -> float:
        """Share of valid streamlines; NaN for an empty tractogram."""
        return float((self.bundle_of >= 0).double().mean()) if len(self.bundle_of) else math.nan

    def counts(self) -> dict[str, int]:
        """Valid streamlines of each bundle."""
        return {name: int((self.bundle_of == index).sum()) for index, name in enumerate(self.names)}


def end_point_validity(
    streamlines: Streamlines,
    bundles: Mapping[str, BundleRegions],
    tolerance_mm: float = 2.0,
    inside_share: float = 0.95,
) -> Validity:
    """Assign streamlines to bundles by their ends; ``inside_share`` of a streamline's points must be in its bundle.

    Mask and end regions are widened by ``tolerance_mm``, rounded up to whole voxels. Raises `SpaceMismatchError` if
    streamlines and regions are of different spaces.
    """
    best = torch.full((len(streamlines),), -1, dtype=torch.long)
    share = torch.zeros(len(streamlines), dtype=torch.float64)
    points = streamlines.points.detach().cpu()
    nonempty = streamlines.n_points.cpu() > 0
    first = points[streamlines.offsets[:-1].cpu().clamp(max=max(len(points) - 1, 0))] if len(points) else points
    last = points[(streamlines.offsets[1:].cpu() - 1).clamp(min=0)] if len(points) else points
    for index, regions in enumerate(bundles.values()):
        if regions.grid.space != streamlines.space:
            raise SpaceMismatchError(
                f"Streamlines of {streamlines.space!r} cannot be scored in regions of {regions.grid.space!r}; move one of them first."
            )
        if not len(points):
            break
        start, end, whole = _widened(regions, tolerance_mm)
        grid = regions.grid
        forward = _is_in(start, grid, first) & _is_in(end, grid, last)
        backward = _is_in(end, grid, first) & _is_in(start, grid, last)
        candidate = (forward | backward) & nonempty
        part = _share_inside(streamlines, candidate, whole, grid)
        wins = candidate & (part >= inside_share) & (part > share)
        best[wins], share[wins] = index, part[wins]
    return Validity(tuple(bundles), best)


def _widened(regions: BundleRegions, tolerance_mm: float) -> tuple[Tensor, Tensor, Tensor]:
    i, j, k = (math.ceil(tolerance_mm / edge - 1e-6) for edge in regions.grid.voxel_sizes)
    start, end = (smooth.dilate(region, (i, j, k)) for region in (regions.start, regions.end))
    return start, end, smooth.dilate(regions.mask, (i, j, k)) | start | end


def _is_in(region: Bool[Tensor, "i j k"], grid: ImageGrid, points: Float[Tensor, "p 3"]) -> Bool[Tensor, " p"]:
    """Whether the voxel of each point belongs to the region; points beyond the grid do not."""
    index = grid.to_voxel(points.double()).round().long()
    shape = torch.tensor(grid.shape)
    inside = ((index >= 0) & (index < shape)).all(-1)
    i, j, k = index.clamp(min=0).minimum(shape - 1).unbind(-1)
    return region[i, j, k] & inside


def _share_inside(
    streamlines: Streamlines, candidate: Bool[Tensor, " s"], region: Bool[Tensor, "i j k"], grid: ImageGrid
) -> Float[Tensor, " s"]:
    share = torch.zeros(len(streamlines), dtype=torch.float64)
    chosen = candidate.nonzero().ravel()
    if len(chosen):
        part = streamlines.select(chosen.to(streamlines.offsets.device))
        hits = _is_in(region, grid, part.points.detach().cpu()).double()
        total = torch.zeros(len(part), dtype=torch.float64).index_add(0, part.streamline_of_point.cpu(), hits)
        share[chosen] = total / part.n_points.cpu()
    return share
