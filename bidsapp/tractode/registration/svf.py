"""A deformation as the flow of a stationary velocity field, and its exponential by scaling and squaring.

V. Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006, doi:10.1007/11866565_113;
J. Ashburner, NeuroImage 38:95 (2007), doi:10.1016/j.neuroimage.2007.07.007.

Departure: the free parameters are smoothed by a Gaussian before they are a velocity, which makes descent on them a descent
in a smoother metric and keeps neighbouring nodes from working against one another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields.image import ImageGrid
from tractode.fields.transform import Flow
from tractode.fields.velocity import VelocityField
from tractode.ops import interpolate, smooth


def velocity_grid(image: ImageGrid, spacing: float, margin: float = 20.0) -> ImageGrid:
    """Nodes ``spacing`` mm apart along the image's axes, over the image and ``margin`` mm around it."""
    sizes = torch.tensor(image.voxel_sizes, dtype=torch.float64)
    reach = math.ceil(margin / spacing)
    shape = [
        math.ceil((n - 1) * size / spacing) + 1 + 2 * reach for n, size in zip(image.shape, sizes.tolist(), strict=True)
    ]
    affine = image.affine.clone()
    affine[:3, :3] = image.affine[:3, :3] / sizes * spacing
    affine[:3, 3] = image.affine[:3, 3] - affine[:3, :3] @ torch.full((3,), float(reach), dtype=torch.float64)
    return ImageGrid((shape[0], shape[1], shape[2]), affine, image.space)


def border_window(shape: tuple[int, int, int], width: int = 3) -> Float[Tensor, "i j k"]:
    """1 inside and 0 on the outermost nodes: beyond the grid a velocity is 0, and must get there without a jump."""
    total = torch.ones(shape)
    for axis, n in enumerate(shape):
        index = torch.arange(n, dtype=torch.float32)
        ramp = (torch.minimum(index, n - 1 - index) / width).clamp(max=1)
        total = total * ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    return total


def exponential(velocity_vox: Float[Tensor, "3 i j k"], squarings: int) -> Float[Tensor, "3 i j k"]:
    """Displacement (voxels) at time 1 of a stationary velocity (voxels per unit time), on its own grid."""
    axes = [torch.arange(n, dtype=velocity_vox.dtype, device=velocity_vox.device) for n in velocity_vox.shape[1:]]
    here = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    displacement = velocity_vox / 2**squarings
    for _ in range(squarings):
        there = here + displacement.permute(1, 2, 3, 0)
        displacement = displacement + interpolate.sample(displacement, there).permute(3, 0, 1, 2)
    return displacement


@dataclass(frozen=True, eq=False)
class StationaryVelocity:
    """What can be optimised and how it becomes a transform.

    Parameters
    ----------
    grid
        Nodes of the velocity, with a margin around the image.
    smoothing
        Standard deviation of the Gaussian between parameters and velocity, nodes.
    """

    grid: ImageGrid
    smoothing: float = 1.0
    squarings: int = 6

    def parameters(self, device: torch.device | str = "cpu") -> Float[Tensor, "3 i j k"]:
        """Of the identity."""
        return torch.zeros(3, *self.grid.shape, device=device)

    def velocity(self, parameters: Float[Tensor, "3 i j k"]) -> Float[Tensor, "3 i j k"]:
        """mm per unit time, RAS+ components."""
        window = border_window(self.grid.shape).to(parameters)
        return smooth.gaussian(parameters, (self.smoothing,) * 3) * window

    def displacement(self, velocity: Float[Tensor, "3 i j k"]) -> Float[Tensor, "3 i j k"]:
        """Displacement of the flow at time 1 on the nodes: voxels, along the grid's axes."""
        to_voxel = self.grid.inverse_affine[:3, :3].to(velocity)
        return exponential(torch.einsum("ab,bijk->aijk", to_voxel, velocity), self.squarings)

    def refined(self, parameters: Float[Tensor, "3 i j k"], other: StationaryVelocity) -> Float[Tensor, "3 r s t"]:
        """Parameters of ``other`` (a finer grid) that give about the same velocity."""
        points = other.grid.centres(device=parameters.device)
        velocity = interpolate.sample(self.velocity(parameters), self.grid.to_voxel(points))
        return velocity.permute(3, 0, 1, 2).contiguous()

    def transform(self, parameters: Float[Tensor, "3 i j k"], source: str, target: str) -> Flow:
        """The flow, from the image's space to a copy of it that the deformation has moved."""
        velocity = self.velocity(parameters.detach())
        # Four steps are within 0.001 mm of sixteen for flows of a centimetre or two between nodes this far apart.
        return Flow(VelocityField(self.grid, velocity[None]), source, target, steps=4)
