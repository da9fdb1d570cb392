"""A deformation as the flow of a velocity field on a grid that changes with time.

M. F. Beg et al., "Computing large deformation metric mappings via geodesic flows of diffeomorphisms", IJCV 61:139 (2005),
doi:10.1023/B:VISI.0000043755.93987.aa: a path of velocities v(t), here by its values at a few equally spaced times, linear in
between. Departures: as in `svf`, Gaussian-smoothed parameters and any regulariser in place of the paper's operator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import smooth
from tractode.registration.deformation import Deformation, border_window, resampled


@dataclass(frozen=True, eq=False)
class TimeVelocity(Deformation):
    """Velocities at ``times`` equally spaced times; twice as many parameters buy what one field's exponential cannot reach."""

    times: int = 3
    smoothing: float = 1.0

    def parameters(self, device: torch.device | str = "cpu") -> Float[Tensor, "t 3 i j k"]:
        """Of the identity."""
        return torch.zeros(self.times, 3, *self.grid.shape, device=device)

    def velocity(self, parameters: Float[Tensor, "t 3 i j k"]) -> Float[Tensor, "t 3 i j k"]:
        window = border_window(self.grid.shape).to(parameters)
        flat = smooth.gaussian(parameters.flatten(0, 1), (self.smoothing,) * 3)
        return flat.reshape(parameters.shape) * window

    def refined(self, parameters: Float[Tensor, "t 3 i j k"], finer: Deformation) -> Float[Tensor, "t 3 r s u"]:
        return resampled(self.velocity(parameters), self.grid, finer.grid)
