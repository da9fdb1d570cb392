"""What every family of deformations can do: parameters to a velocity, a velocity to the two halves of its flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields.image import ImageGrid
from tractode.fields.transform import Flow, at_time
from tractode.fields.velocity import VelocityField
from tractode.ops import interpolate, ode

Integrator = Literal["squaring", "euler", "rk4"]


@dataclass(frozen=True, eq=False)
class Deformation(ABC):
    """A family of velocity fields on one grid of nodes.

    Parameters
    ----------
    grid
        Nodes of the velocity, along the world's axes, with a margin around the images.
    integrator
        Of the flow while it is sought: scaling and squaring (stationary fields only), Euler, or Runge–Kutta 4.
    gradient
        Through the integration: of its own steps, or the continuous adjoint.
    steps
        From the middle to either end; 0: as many as the velocity's slope asks for.
    """

    grid: ImageGrid
    integrator: Integrator = "rk4"
    gradient: ode.Gradient = "discrete"
    steps: int = 0
    step: ClassVar[float] = 0.3  # of Adam, in the units of the parameters

    @abstractmethod
    def parameters(self, device: torch.device | str = "cpu") -> Float[Tensor, "..."]:
        """Of the identity."""

    @abstractmethod
    def velocity(self, parameters: Float[Tensor, "..."]) -> Float[Tensor, "t 3 i j k"]:
        """mm per unit time, RAS+ components, at equally spaced times in [0, 1]."""

    @abstractmethod
    def refined(self, parameters: Float[Tensor, "..."], finer: Deformation) -> Float[Tensor, "..."]:
        """Parameters of ``finer``, of the same family on other nodes, that give about the same velocity."""

    def halves(self, velocity: Float[Tensor, "t 3 i j k"]) -> tuple[Tensor, Tensor]:
        """Displacements (nodes) of the flow from the middle to time 1 and to time 0."""
        to_voxel = self.grid.inverse_affine[:3, :3].to(velocity)
        values = torch.einsum("ab,tbijk->taijk", to_voxel, velocity)
        return half_flows(values, self.integrator, self.gradient, self.steps)

    def flow(self, parameters: Float[Tensor, "..."], source: str, target: str) -> Flow:
        """The flow from time 0 to 1."""
        values = self.velocity(parameters.detach())
        to_voxel = self.grid.inverse_affine[:3, :3].to(values)
        # Two Runge–Kutta steps of an ordinary flow are within 0.004 mm of thirty-two, and undo each other to 0.001 mm.
        steps = ode.steps_for(torch.einsum("ab,tbijk->taijk", to_voxel, values))
        return Flow(VelocityField(self.grid, values), source, target, steps=max(2, steps))


def half_flows(
    values: Float[Tensor, "t 3 i j k"],
    integrator: Integrator = "squaring",
    gradient: ode.Gradient = "discrete",
    steps: int = 0,
) -> tuple[Tensor, Tensor]:
    """Displacements (nodes) from time 1/2 to 1 and to 0 of a velocity in nodes per unit time."""
    if integrator == "squaring":
        if len(values) > 1:
            raise ValueError("Scaling and squaring is for stationary velocities; give integrator='rk4'.")
        squarings = ode.squarings_for(values[0], 0.5)
        return ode.exponential(values[0] / 2, squarings), ode.exponential(-values[0] / 2, squarings)
    axes = [torch.arange(n, dtype=values.dtype, device=values.device) for n in values.shape[2:]]
    here = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    # Euler needs small steps to stay one to one, Runge–Kutta only to stay accurate.
    steps = steps or max(2, ode.steps_for(values, 0.5, bound=0.1 if integrator == "euler" else 0.5))

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        return interpolate.sample(at_time(values, t), y)

    ends = [ode.integrate(velocity, here, 0.5, end, steps, integrator, gradient, (values,)) for end in (1.0, 0.0)]
    forward, back = ((end - here).permute(3, 0, 1, 2) for end in ends)
    return forward, back


def border_window(shape: tuple[int, int, int], width: int = 3) -> Float[Tensor, "i j k"]:
    """1 inside and 0 on the outermost nodes: beyond the grid a velocity is 0, and must get there without a jump."""
    total = torch.ones(shape)
    for axis, n in enumerate(shape):
        index = torch.arange(n, dtype=torch.float32)
        ramp = (torch.minimum(index, n - 1 - index) / width).clamp(max=1)
        total = total * ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    return total


def resampled(velocity: Float[Tensor, "t 3 i j k"], grid: ImageGrid, finer: ImageGrid) -> Float[Tensor, "t 3 r s t2"]:
    """A velocity on other nodes, 0 beyond its own."""
    points = grid.to_voxel(finer.centres(device=velocity.device))
    return torch.stack([interpolate.sample(v, points).permute(3, 0, 1, 2) for v in velocity]).contiguous()
