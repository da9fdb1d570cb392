"""The folding certificate: whether a transform, as sampled on a grid, maps every part of every cell without turning it over.

Y. Liu, J. Chen, S. Wei, A. Carass, J. Prince, "On finite difference Jacobian computation in deformable image registration",
IJCV 132:3678 (2024), doi:10.1007/s11263-024-02047-1: a cell of eight neighbouring samples is cut into five tetrahedra in two
ways; the determinants of these ten are the eight one-sided finite-difference Jacobians of the corners and two more. All are
positive where the piecewise linear map is one to one (a digital diffeomorphism); a central difference alone misses folds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import SpaceMismatchError
from tractode.fields.image import Image, ImageGrid, check_same_grid
from tractode.fields.transform import Transform
from tractode.ops import affine as aff
from tractode.ops import finite_difference


@dataclass(frozen=True)
class FoldingCertificate:
    """What the ten Jacobians of every cell say.

    Parameters
    ----------
    n_cells, n_folded
        Cells of eight samples, and those with at least one Jacobian that is not positive.
    min_jacobian, max_jacobian
        The least and the greatest of the ten over all cells, as ratios of volumes.
    worst
        Where the least is: the middle of that cell, RAS+ mm of the source space.
    non_diffeomorphic_volume
        Volume of turned-over tetrahedra, mean of the two ways of cutting, as a share of the grid's volume.
    """

    n_cells: int
    n_folded: int
    min_jacobian: float
    max_jacobian: float
    worst: tuple[float, float, float]
    non_diffeomorphic_volume: float

    @property
    def is_diffeomorphic(self) -> bool:
        return self.n_folded == 0

    def record(self) -> dict[str, float | int | bool | list[float]]:
        """Plain data for sidecars and the report."""
        worst = [round(x, 2) for x in self.worst]
        return {**asdict(self), "worst": worst, "is_diffeomorphic": self.is_diffeomorphic}


def certificate(transform: Transform, grid: ImageGrid, device: torch.device | str = "cpu") -> FoldingCertificate:
    """Samples the transform at every voxel centre of the grid and examines every cell between them."""
    return certify_positions(transform.map(grid.centres(torch.float64, device)), grid)


def certify_positions(positions: Float[Tensor, "i j k 3"], grid: ImageGrid) -> FoldingCertificate:
    """The certificate of mapped voxel centres (mm)."""
    # In units of the source's voxels the identity has determinant 1, whatever the grid's handedness.
    local = aff.apply_affine(grid.inverse_affine, positions)
    n_cells = n_folded = 0
    least, most, turned = float("inf"), -float("inf"), 0.0
    worst = (0, 0, 0)
    for start in range(0, grid.shape[0] - 1, 16):
        slab = local[start : start + 17]
        dets = finite_difference.ten_jacobians(slab)
        lowest = dets.amin(0)
        n_cells += lowest.numel()
        n_folded += int((lowest <= 0).sum())
        most = max(most, float(dets.max()))
        if lowest.numel() and float(lowest.min()) < least:
            least = float(lowest.min())
            i, j, k = (int(n) for n in np.unravel_index(int(lowest.argmin()), lowest.shape))
            worst = (start + i, j, k)
        # Volumes of tetrahedra in voxels: det/6 at a corner; an inner one has twice the corner's determinant for 1.
        negative = (-dets).clamp_min(0).sum((1, 2, 3))
        turned += float(negative[:8].sum() / 6 + negative[8:].sum() / 3) / 2
    x, y, z = grid.to_world(torch.tensor(worst, dtype=torch.float64) + 0.5).tolist()
    return FoldingCertificate(n_cells, n_folded, least, most, (x, y, z), turned / max(n_cells, 1))


def inverse_consistency(
    forward: Transform,
    backward: Transform,
    grid: ImageGrid,
    mask: Image | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float | int]:
    """How far from home the way there and back ends: percentiles over voxel centres, in voxels of the grid.

    Parameters
    ----------
    forward, backward
        From the grid's space to another, and from there back.
    mask
        Voxels that count (all of them by default), on the same grid.

    Returns
    -------
    dict
        ``p50``, ``p95``, ``p99``, ``max`` and ``n``.

    Raises
    ------
    SpaceMismatchError
        The two are not each other's way back, or the grid lies in another space.
    """
    if (forward.source, forward.target) != (backward.target, backward.source) or forward.source != grid.space:
        raise SpaceMismatchError(
            f"There and back again was asked for {grid.space!r} by {forward.source!r} → {forward.target!r} and "
            f"{backward.source!r} → {backward.target!r}; give a transform from {grid.space!r} and one back to it."
        )
    points = grid.centres(torch.float64, device)
    if mask is not None:
        check_same_grid(mask.grid, grid, "The mask of voxels that count")
        points = points[mask.mask.to(points.device)]
    away = (
        aff.rotate(grid.inverse_affine, backward.map(forward.map(points)) - points).norm(dim=-1).flatten().cpu().numpy()
    )
    if not away.size:
        return {"p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0, "n": 0}
    p50, p95, p99 = np.percentile(away, [50, 95, 99]).tolist()
    return {"p50": p50, "p95": p95, "p99": p99, "max": float(away.max()), "n": int(away.size)}
