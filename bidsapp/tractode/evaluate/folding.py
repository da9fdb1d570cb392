"""The folding certificate: whether a transform, as sampled on a grid, maps every part of every cell without turning it over.

Y. Liu, J. Chen, S. Wei, A. Carass, J. Prince, "On finite difference Jacobian computation in deformable image registration",
IJCV 132:3678 (2024), doi:10.1007/s11263-024-02047-1: a cell of eight neighbouring samples is cut into five tetrahedra in two
ways; the determinants of these ten are the eight one-sided finite-difference Jacobians of the corners and two more. All are
positive where the piecewise linear map is one to one (a digital diffeomorphism); a central difference alone misses folds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields.image import ImageGrid
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
    min_jacobian
        The least of the ten over all cells, as a ratio of volumes.
    non_diffeomorphic_volume
        Volume of turned-over tetrahedra, mean of the two ways of cutting, as a share of the grid's volume.
    """

    n_cells: int
    n_folded: int
    min_jacobian: float
    non_diffeomorphic_volume: float

    @property
    def is_diffeomorphic(self) -> bool:
        return self.n_folded == 0

    def record(self) -> dict[str, float | int | bool]:
        """Plain data for sidecars and the report."""
        return {**asdict(self), "is_diffeomorphic": self.is_diffeomorphic}


def certificate(transform: Transform, grid: ImageGrid, device: torch.device | str = "cpu") -> FoldingCertificate:
    """Samples the transform at every voxel centre of the grid and examines every cell between them."""
    return certify_positions(transform.map(grid.centres(torch.float64, device)), grid)


def certify_positions(positions: Float[Tensor, "i j k 3"], grid: ImageGrid) -> FoldingCertificate:
    """The certificate of mapped voxel centres (mm)."""
    # In units of the source's voxels the identity has determinant 1, whatever the grid's handedness.
    local = aff.apply_affine(grid.inverse_affine, positions)
    n_cells = n_folded = 0
    least, turned = float("inf"), 0.0
    for start in range(0, grid.shape[0] - 1, 16):
        slab = local[start : start + 17]
        dets = finite_difference.ten_jacobians(slab)
        lowest = dets.amin(0)
        n_cells += lowest.numel()
        n_folded += int((lowest <= 0).sum())
        least = min(least, float(lowest.min()))
        # Volumes of tetrahedra in voxels: det/6 at a corner; an inner one has twice the corner's determinant for 1.
        negative = (-dets).clamp_min(0).sum((1, 2, 3))
        turned += float(negative[:8].sum() / 6 + negative[8:].sum() / 3) / 2
    return FoldingCertificate(n_cells, n_folded, least, turned / max(n_cells, 1))
