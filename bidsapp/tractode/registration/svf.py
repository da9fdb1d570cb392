"""A deformation as the flow of a stationary velocity field on a grid, and its exponential by scaling and squaring.

V. Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006, doi:10.1007/11866565_113;
J. Ashburner, NeuroImage 38:95 (2007), doi:10.1016/j.neuroimage.2007.07.007.

Departure: where Adam descends, the free parameters are smoothed by a Gaussian before they are a velocity, which makes it a
descent in a smoother metric; Gauss–Newton works on the velocity itself (``smoothing=0``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import smooth
from tractode.ops.ode import exponential
from tractode.registration.deformation import Deformation, Integrator, border_window, resampled


@dataclass(frozen=True, eq=False)
class StationaryVelocity(Deformation):
    """One velocity for all times.

    Parameters
    ----------
    smoothing
        Standard deviation of the Gaussian between parameters and velocity, nodes; 0: the parameters are the velocity.
    """

    integrator: Integrator = "squaring"
    smoothing: float = 1.0

    def parameters(self, device: torch.device | str = "cpu") -> Float[Tensor, "1 3 i j k"]:
        """Of the identity."""
        return torch.zeros(1, 3, *self.grid.shape, device=device)

    def velocity(self, parameters: Float[Tensor, "1 3 i j k"]) -> Float[Tensor, "1 3 i j k"]:
        if self.smoothing == 0:
            return parameters
        window = border_window(self.grid.shape).to(parameters)
        return smooth.gaussian(parameters[0], (self.smoothing,) * 3)[None] * window

    def refined(self, parameters: Float[Tensor, "1 3 i j k"], finer: Deformation) -> Float[Tensor, "1 3 r s t"]:
        return resampled(self.velocity(parameters), self.grid, finer.grid) * border_window(finer.grid.shape).to(
            parameters
        )


__all__ = ["StationaryVelocity", "border_window", "exponential"]
