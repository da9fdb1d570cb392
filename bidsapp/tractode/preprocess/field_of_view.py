"""What a stored series does not show: blocks of noughts that another program wrote beyond a volume's own field of view.

A series that was registered before it was stored holds exact noughts where a volume, once moved, showed nothing. A voxel of volume v
is such a nought if it lies in a solid block of them, of 3×3×3 voxels at least (an opening: J. Serra, *Image Analysis and Mathematical
Morphology*, 1982), while volumes of its kind are bright there: their mean is a quarter of that over the brain, or more. Noughts that a
scanner wrote where the signal had vanished (air, fluid at high b) are dark in all volumes of the kind, lone ones are in no block, and a
lost slice is none, because it is one voxel thick. Blocks are grown by one voxel, whose values were interpolated between signal and nought.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields.dwi import DWI
from tractode.ops import smooth
from tractode.preprocess.outliers import kinds

_BRIGHT = 0.25  # of the mean over the brain
_SOLID = (1, 1, 1)
_LEAST = 27


def seen_by_all(scan: DWI) -> Bool[Tensor, "i j k"]:
    """The voxels that every volume shows."""
    seen = torch.ones(scan.grid.shape, dtype=torch.bool)
    if min(scan.grid.shape) < 3 or not bool(scan.mask.any()):
        return seen
    signal, mask = scan.signal.cpu(), scan.mask.cpu()
    for index in kinds(scan.gtab):
        bright = _mean(signal, index)
        bright = mask & (bright > _BRIGHT * float(bright[mask].mean()))
        for volume in index.tolist():
            empty = signal[volume] == 0
            if int((empty & bright).sum()) >= _LEAST:
                seen &= ~_blocks(empty, bright)
    return seen


def _mean(signal: Float[Tensor, "n i j k"], index: Tensor) -> Float[Tensor, "i j k"]:
    """Volume by volume: a shell may be nearly the whole series."""
    total = torch.zeros(signal.shape[1:])
    for volume in index.tolist():
        total += signal[volume]
    return total / len(index)


def _blocks(empty: Bool[Tensor, "i j k"], bright: Bool[Tensor, "i j k"]) -> Bool[Tensor, "i j k"]:
    """Solid blocks of noughts where it is bright, and a voxel around them; beyond the image they go on."""
    # An erosion is a dilation of the rest, and what lies beyond the image is no rest.
    core = ~smooth.dilate(~empty, _SOLID)
    return smooth.dilate(smooth.dilate(core, _SOLID) & bright, _SOLID)
