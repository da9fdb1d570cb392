"""Trilinear sampling of an SH field as polynomial components: the inner loop of tracking.

Voxels whose coefficients are all zero are not stored: a point whose nearest voxel is one of them counts as outside the
field, as MRtrix3's masked interpolator has it. Between the outermost voxel centres and the edge of the image the value
of the outermost centre is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from tractode.fields import ImageGrid, ShField
from tractode.ops import sh_polynomial

CONVERSION_TILE = 65536


def to_voxel(grid: ImageGrid, positions: Float[Tensor, "3 m"]) -> Float[Tensor, "3 m"]:
    """Voxel coordinates row by row, without a matrix product: the result of a column does not depend on the others."""
    x, y, z = positions.unbind(0)
    return torch.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in grid.inverse_rows[:3]])


def nearest_index(
    shape: tuple[int, int, int], vox: Float[Tensor, "3 m"]
) -> tuple[Int[Tensor, " m"], Bool[Tensor, " m"]]:
    """The flat index of the nearest voxel (0 where outside) and whether the point lies in the image."""
    i, j, k = (vox + 0.5).floor().nan_to_num(-1.0).clamp(-1.0, 2.0**30).long().unbind(0)
    ni, nj, nk = shape
    is_inside = (i >= 0) & (i < ni) & (j >= 0) & (j < nj) & (k >= 0) & (k < nk)
    return torch.where(is_inside, (i * nj + j) * nk + k, 0), is_inside


@dataclass(frozen=True, eq=False)
class ComponentTable:
    """The components of every non-zero voxel as rows (row 0 is zero), and the row of every voxel.

    ``rows`` is padded by one repeated voxel at the upper end of each axis, so that the upper corner always exists.
    """

    grid: ImageGrid
    values: Float[Tensor, "r n"]
    rows: Int[Tensor, "i1 j1 k1"]

    @classmethod
    def of(cls, field: ShField) -> ComponentTable:
        """Differentiable in ``field.coeffs``. Products are summed in double precision, then rounded once."""
        coeffs = field.coeffs.flatten(1)
        is_stored = (coeffs.detach() != 0).any(0)
        index = is_stored.nonzero().ravel()
        matrix = sh_polynomial.from_harmonics(field.order).to(coeffs.device)
        tiles = [(matrix @ coeffs[:, part].double()).mT.to(coeffs.dtype) for part in index.split(CONVERSION_TILE)]
        values = torch.cat([coeffs.new_zeros(1, len(matrix)), *tiles])
        return cls(field.grid, values, _padded_rows(index, field.grid))

    @classmethod
    def of_values(cls, grid: ImageGrid, values: Float[Tensor, "n i j k"]) -> ComponentTable:
        """Any values, as they are; differentiable in them."""
        flat = values.flatten(1)
        index = (flat.detach() != 0).any(0).nonzero().ravel()
        table = torch.cat([flat.new_zeros(1, len(flat)), flat[:, index].mT])
        return cls(grid, table, _padded_rows(index, grid))

    def corners(self, vox: Float[Tensor, "3 m"]) -> tuple[Int[Tensor, "m 8"], Float[Tensor, "m 8"], Bool[Tensor, " m"]]:
        """Table rows and weights of the eight surrounding voxels, and whether there is data at each point."""
        ni, nj, nk = self.grid.shape
        _, pj, pk = self.rows.shape
        lower, offset, is_inside = [], [], torch.ones_like(vox[0], dtype=torch.bool)
        for axis, n in enumerate((ni, nj, nk)):
            v = vox[axis]
            is_inside &= (v > -0.5) & (v < n - 0.5)
            v = v.nan_to_num(0.0).clamp(0, n - 1)
            base = v.floor()
            lower.append(base.int())
            offset.append(v - base)
        first = (lower[0] * pj + lower[1]) * pk + lower[2]
        flat = self.rows.view(-1)
        steps = torch.tensor([(a * pj + b) * pk + c for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=torch.int32)
        rows = flat[(first[:, None] + steps.to(first.device)).long()]
        x1, y1, z1 = offset
        x0, y0, z0 = 1 - x1, 1 - y1, 1 - z1
        planes = (x0 * y0, x0 * y1, x1 * y0, x1 * y1)
        weights = torch.stack([plane * z for plane in planes for z in (z0, z1)], dim=1)
        half = [(o >= 0.5).int() for o in offset]
        nearest = first + (half[0] * pj + half[1]) * pk + half[2]
        return rows, weights, is_inside & (flat[nearest.long()] != 0)

    def sample(self, vox: Float[Tensor, "3 m"]) -> tuple[Float[Tensor, "n m"], Bool[Tensor, " m"]]:
        """Interpolated components (component first) and whether there is data at each point."""
        rows, weights, has_data = self.corners(vox)
        values = functional.embedding_bag(rows, self.values, per_sample_weights=weights, mode="sum")
        return values.mT.contiguous(), has_data

    def sample_pullback(
        self, vox: Float[Tensor, "3 m"], grad: Float[Tensor, "n m"]
    ) -> tuple[Int[Tensor, "m 8"], Float[Tensor, "m 8"], Float[Tensor, "3 m"]]:
        """Rows, weights, and the gradient with respect to the voxel coordinates, given that of the components."""
        rows, weights, _ = self.corners(vox)
        along = torch.einsum("mcn,nm->mc", self.values[rows.long()], grad)
        offset = vox - vox.floor()
        upper = torch.tensor(self.grid.shape, device=vox.device)[:, None] - 1
        offset = torch.where((vox < 0) | (vox > upper), 0.0, offset)
        x1, y1, z1 = offset
        cube = along.reshape(-1, 2, 2, 2)
        wx, wy, wz = (torch.stack((1 - o, o), dim=-1) for o in (x1, y1, z1))
        slopes = torch.stack(
            (
                torch.einsum("mbc,mb,mc->m", cube[:, 1] - cube[:, 0], wy, wz),
                torch.einsum("mac,ma,mc->m", cube[:, :, 1] - cube[:, :, 0], wx, wz),
                torch.einsum("mab,ma,mb->m", cube[..., 1] - cube[..., 0], wx, wy),
            )
        )
        is_clamped = (vox < 0) | (vox >= upper)
        return rows, weights, torch.where(is_clamped, 0.0, slopes)


def _padded_rows(index: Int[Tensor, " r"], grid: ImageGrid) -> Int[Tensor, "i1 j1 k1"]:
    """Row 1, 2, … for the stored voxels and 0 elsewhere, with the last voxel of each axis repeated once."""
    rows = torch.zeros(grid.n_voxels, dtype=torch.int32, device=index.device)
    rows[index] = torch.arange(1, len(index) + 1, dtype=torch.int32, device=index.device)
    padded = functional.pad(rows.reshape(1, 1, *grid.shape).double(), (0, 1, 0, 1, 0, 1), mode="replicate")
    return padded[0, 0].to(torch.int32)
