"""Integration of flows: streamlines, warps and generated paths all go through here.

Solvers are torchdiffeq's, and scaling and squaring for stationary fields on a grid (V. Arsigny et al., MICCAI 2006,
doi:10.1007/11866565_113). Gradients are those of the discrete steps (backpropagation through the solver) unless the
continuous adjoint (R. T. Q. Chen et al., NeurIPS 2018, arXiv:1806.07366) is asked for: it keeps no steps, but the adjoint of a
coarse grid of times is not the gradient of what was computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import interpolate

Method = Literal["euler", "midpoint", "rk4"]
Gradient = Literal["discrete", "adjoint"]


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    t0: float,
    t1: float,
    steps: int,
    method: Method = "rk4",
    gradient: Gradient = "discrete",
    parameters: tuple[Tensor, ...] = (),
) -> Tensor:
    """``y(t1)`` of ``dy/dt = velocity(t, y)``, ``y(t0) = start``, in ``steps`` equal steps; t1 may be below t0.

    ``gradient="adjoint"`` integrates the adjoint equation backwards over the same times; the leaves that ``velocity`` depends
    on are then ``parameters``.
    """
    from torchdiffeq import odeint, odeint_adjoint  # it brings SciPy's solvers, which few that import this need

    if steps < 1:
        raise ValueError(f"An integration needs at least one step; got {steps}.")
    times = torch.linspace(t0, t1, steps + 1, dtype=start.dtype, device=start.device)
    if gradient == "adjoint":
        # Only the two ends are kept; in between both directions take the same steps.
        options = {"step_size": abs(t1 - t0) / steps}
        ends = times[[0, -1]]
        return odeint_adjoint(
            velocity, start, ends, method=method, options=options, adjoint_params=parameters, adjoint_options=options
        )[-1]
    return odeint(velocity, start, times, method=method)[-1]


def steepest(values_vox: Float[Tensor, "*t 3 i j k"]) -> float:
    """The largest difference of neighbouring nodes, per node: a bound of ``|∇v|`` that does not depend on units."""
    largest = 0.0
    for axis in (-3, -2, -1):
        n = values_vox.shape[axis]
        if n > 1:
            slope = values_vox.detach().narrow(axis, 1, n - 1) - values_vox.detach().narrow(axis, 0, n - 1)
            largest = max(largest, float(slope.abs().max()))
    return largest


def steps_for(values_vox: Float[Tensor, "*t 3 i j k"], duration: float = 1.0, bound: float = 0.5) -> int:
    """Equal steps so that ``h · max|∇v| < bound``: below 1 an Euler step is one to one, and Runge–Kutta is well inside."""
    return max(1, math.ceil(duration * steepest(values_vox) / bound))


def squarings_for(values_vox: Float[Tensor, "3 i j k"], duration: float = 1.0, bound: float = 0.1) -> int:
    """Halvings so that the first step of scaling and squaring keeps ``h · max|∇v|`` under the bound."""
    return max(1, math.ceil(math.log2(max(duration * steepest(values_vox) / bound, 1.0))))


def exponential(velocity_vox: Float[Tensor, "3 i j k"], squarings: int) -> Float[Tensor, "3 i j k"]:
    """Displacement (voxels) at time 1 of a stationary velocity (voxels per unit time), on its own grid."""
    axes = [torch.arange(n, dtype=velocity_vox.dtype, device=velocity_vox.device) for n in velocity_vox.shape[1:]]
    here = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    displacement = velocity_vox / 2**squarings
    for _ in range(squarings):
        there = here + displacement.permute(1, 2, 3, 0)
        displacement = displacement + interpolate.sample(displacement, there).permute(3, 0, 1, 2)
    return displacement
