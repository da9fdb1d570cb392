"""A diffusion-weighted series: signal, gradient table and brain mask on one grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import ShapeError
from tractode.fields.gradients import GradientTable
from tractode.fields.image import Image, ImageGrid


@dataclass(frozen=True, eq=False)
class DWI:
    """``signal`` is volumes first; ``mask`` marks the voxels to model."""

    grid: ImageGrid
    signal: Float[Tensor, "n i j k"]
    gtab: GradientTable
    mask: Bool[Tensor, "i j k"]

    def __post_init__(self) -> None:
        expected = (len(self.gtab), *self.grid.shape)
        if tuple(self.signal.shape) != expected or tuple(self.mask.shape) != self.grid.shape:
            raise ShapeError(
                f"A DWI needs signal {expected} and mask {self.grid.shape}; got {tuple(self.signal.shape)} and {tuple(self.mask.shape)}."
            )

    def voxels(self) -> Float[Tensor, "v n"]:
        """The masked voxels' signals, ravelled once in storage order."""
        return self.signal[:, self.mask].mT

    def unravel(self, values: Float[Tensor, "v c"]) -> Image:
        """Per-voxel values back on the grid, 0 outside the mask."""
        out = torch.zeros(values.shape[1], *self.grid.shape, dtype=values.dtype, device=values.device)
        out[:, self.mask.to(values.device)] = values.mT
        return Image(self.grid, out)

    def mean_b0(self) -> Image:
        """Mean of the b=0 volumes; where there are none, the signal of the two lowest shells extrapolated to b = 0."""
        b0 = self.gtab.is_b0.to(self.signal.device)
        if bool(b0.any()):
            return Image(self.grid, self.signal[b0].mean(0, keepdim=True))
        shells = self.gtab.shells()
        if len(shells) < 2:
            raise ShapeError("Without b=0 volumes the unweighted signal needs two shells; this table has one.")
        (b_low, low), (b_high, high) = shells[:2]
        tiny = torch.finfo(self.signal.dtype).tiny
        log_low, log_high = (
            self.signal[index.to(self.signal.device)].mean(0, keepdim=True).clamp(min=tiny).log()
            for index in (low, high)
        )
        # Never below the lower shell: noise must not make the signal grow with b.
        return Image(self.grid, (log_low + (log_low - log_high).clamp(min=0) * b_low / (b_high - b_low)).exp())
