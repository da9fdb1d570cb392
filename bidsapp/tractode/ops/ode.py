"""Integration of flows: streamlines, warps and generated paths all go through here.

Solvers are torchdiffeq's; gradients are those of the discrete steps (backpropagation through the solver), because the
continuous adjoint of a coarse Euler grid is not the gradient of what was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchdiffeq import odeint

Method = Literal["euler", "midpoint", "rk4"]


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    t0: float,
    t1: float,
    steps: int,
    method: Method = "rk4",
) -> Tensor:
    """``y(t1)`` of ``dy/dt = velocity(t, y)``, ``y(t0) = start``, in ``steps`` equal steps; t1 may be below t0."""
    if steps < 1:
        raise ValueError(f"An integration needs at least one step; got {steps}.")
    times = torch.linspace(t0, t1, steps + 1, dtype=start.dtype, device=start.device)
    return odeint(velocity, start, times, method=method)[-1]
