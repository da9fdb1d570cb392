"""Mutual information of windows: images whose intensities correspond in one place need not do so in another.

C. Studholme, C. Drapaca, B. Iordanova, V. Cardenas, "Deformation-based mapping of volume change from serial brain MRI in the
presence of local tissue contrast change", IEEE TMI 25:626 (2006), doi:10.1109/TMI.2006.872745; S. Klein et al., "Automatic
segmentation of the prostate in 3D MR images by atlas matching using localized mutual information", Medical Physics 35:1407
(2008), doi:10.1118/1.2842076.

Departure: instead of a window around every sample, the joint histogram of every cell of a lattice is made once, and those of
2 × 2 × 2 neighbouring cells added: windows overlap by half, and each voxel is counted once. Memory is that of two
Parzen windows of a slab of cells, whatever the image's size, since slabs are computed anew in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tractode.contracts import SimilarityMetric
from tractode.registration.metrics.mutual_information import between_extremes, parzen

_TINY = 1e-10


def window_information(joint: Float[Tensor, "g a b"]) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"]]:
    """Mutual information (nats) and weight of each of many unnormalised joint histograms."""
    total = joint.sum((1, 2))
    p = joint / total.clamp_min(_TINY)[:, None, None]

    def entropy(q: Tensor) -> Tensor:
        return -(q * (q + _TINY).log()).flatten(1).sum(1)

    return entropy(p.sum(2)) + entropy(p.sum(1)) - entropy(p), total


@dataclass(frozen=True)
class LocalMutualInformation(SimilarityMetric):
    """Minus the mean mutual information (nats) of windows, each weighted by the voxels of the mask in it.

    Parameters
    ----------
    cell
        Edge of the lattice's cells, voxels; windows are two cells wide and overlap by one.
    bins
        Of each image; bins span the image's own extremes.
    """

    cell: int = 8
    bins: int = 16
    is_multimodal: ClassVar[bool] = True
    invariances: ClassVar[frozenset[str]] = frozenset({"linear", "mapping"})
    needs_grid: ClassVar[bool] = True

    def __call__(
        self,
        fixed: Float[Tensor, "c i j k"],
        moving: Float[Tensor, "c i j k"],
        mask: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        weight = torch.ones_like(fixed[0]) if mask is None else mask.to(fixed)
        inside = weight > 0
        if not bool(inside.any()):
            return 0 * moving.sum()
        first, second = (_unit_inside(image[0], inside) for image in (fixed, moving))
        cells = self._cells(torch.stack([first, second, weight]))
        windows = _overlapping(cells)
        information, total = window_information(windows.flatten(0, 2))
        return -(information * total).sum() / total.sum().clamp_min(_TINY)

    def _cells(self, stacked: Float[Tensor, "3 i j k"]) -> Float[Tensor, "x y z a b"]:
        """The joint histogram of every cell, slab by slab."""
        size = self.cell
        missing = [-n % size for n in stacked.shape[1:]]
        padded = functional.pad(stacked, [0, missing[2], 0, missing[1], 0, missing[0]])
        slabs = []
        for slab in padded.split(size, dim=1):
            if torch.is_grad_enabled() and slab.requires_grad:
                slabs.append(checkpoint(self._slab, slab, use_reentrant=False))
            else:
                slabs.append(self._slab(slab))
        return torch.stack(slabs)

    def _slab(self, slab: Float[Tensor, "3 i j k"]) -> Float[Tensor, "y z a b"]:
        size = self.cell
        y, z = slab.shape[2] // size, slab.shape[3] // size
        cells = slab.reshape(3, size, y, size, z, size).permute(0, 2, 4, 1, 3, 5).reshape(3, y * z, size**3)
        first, second = (parzen(image.reshape(-1), self.bins).reshape(y * z, size**3, -1) for image in cells[:2])
        return ((first * cells[2][:, :, None]).mT @ second).reshape(y, z, self.bins, self.bins)


def _overlapping(cells: Float[Tensor, "x y z a b"]) -> Float[Tensor, "r s t a b"]:
    """Sums of 2 × 2 × 2 neighbouring cells; a lattice of one cell along an axis is its own window there."""
    for axis in range(3):
        n = cells.shape[axis]
        if n > 1:
            cells = cells.narrow(axis, 0, n - 1) + cells.narrow(axis, 1, n - 1)
    return cells


def _unit_inside(values: Float[Tensor, "i j k"], inside: Tensor) -> Float[Tensor, "i j k"]:
    """Scaled by the extremes inside the mask; 0 (without gradient) outside it."""
    unit = torch.zeros_like(values)
    return unit.masked_scatter(inside, between_extremes(values[inside]))
