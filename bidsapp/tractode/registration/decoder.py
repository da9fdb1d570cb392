"""A deformation as the flow of a velocity that a convolutional decoder makes of a grid of coordinates.

The family of A. Rodríguez-Sanz, M. Hernandez, "Multimodal diffeomorphic registration with Neural ODEs and structural
descriptors", arXiv:2512.22689 (2025), and of Y. Wu et al., NODEO, CVPR 2022, doi:10.1109/CVPR52688.2022.02018: a small network
without data, whose weights are fitted to one pair of images.

Departures: the exact network is not published; here coordinates on a coarse grid go through two convolutions, are enlarged to
the nodes, and through one more. It gives a velocity of space, which is integrated (there, the state of all particles goes
through the network at once, which does not keep them from crossing), and any number of nodes will do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tractode.ops import smooth
from tractode.registration.deformation import Deformation, Integrator, border_window


@dataclass(frozen=True, eq=False)
class DecodedVelocity(Deformation):
    """Coordinates → features on a coarse grid → a stationary velocity on the nodes.

    Parameters
    ----------
    coarse
        Spacing of the coarse grid, mm.
    channels
        Of the features, half of them fixed waves of the place and half learned.
    amplitude
        mm that an output of 1 stands for.
    """

    integrator: Integrator = "squaring"
    coarse: float = 16.0
    channels: int = 24
    amplitude: float = 10.0
    smoothing: float = 1.0
    seed: int = 0
    step: ClassVar[float] = 5e-3

    def parameters(self, device: torch.device | str = "cpu") -> Float[Tensor, " p"]:
        """Features of the coarse grid's places, then weights of all layers; those of the last are 0."""
        generator = torch.Generator().manual_seed(self.seed)
        parts = [0.1 * torch.randn(self.channels * math.prod(self._coarse_shape()), generator=generator)]
        for n, (inputs, outputs) in enumerate(pairwise(self._widths)):
            scale = 0.0 if n == len(self._widths) - 2 else math.sqrt(6 / (27 * inputs))
            parts += [(2 * torch.rand(27 * outputs * inputs, generator=generator) - 1) * scale, torch.zeros(outputs)]
        return torch.cat(parts).to(device)

    def velocity(self, parameters: Float[Tensor, " p"]) -> Float[Tensor, "1 3 i j k"]:
        shape = self._coarse_shape()
        at = self.channels * math.prod(shape)
        latent = parameters[:at].reshape(1, self.channels, *shape)
        values = torch.cat([_coordinates(shape).to(parameters), latent], dim=1)
        for n, (inputs, outputs) in enumerate(pairwise(self._widths)):
            size = 27 * inputs * outputs
            weight = parameters[at : at + size].reshape(outputs, inputs, 3, 3, 3)
            bias = parameters[at + size : at + size + outputs]
            at += size + outputs
            padded = functional.pad(values, [1] * 6, mode="replicate")
            values = functional.conv3d(padded, weight, bias)
            if n < len(self._widths) - 2:
                values = functional.leaky_relu(values, 0.2)
        nodal = functional.interpolate(values, size=self.grid.shape, mode="trilinear", align_corners=True)[0]
        window = border_window(self.grid.shape).to(parameters)
        return (self.amplitude * smooth.gaussian(nodal, (self.smoothing,) * 3) * window)[None]

    def refined(self, parameters: Float[Tensor, " p"], finer: Deformation) -> Float[Tensor, " p"]:
        """The coarse grid's features on the coarse grid of the finer nodes (which cover nearly the same box)."""
        assert isinstance(finer, DecodedVelocity)
        shape, other = self._coarse_shape(), finer._coarse_shape()
        at = self.channels * math.prod(shape)
        latent = parameters[:at].reshape(1, self.channels, *shape)
        moved = functional.interpolate(latent, size=other, mode="trilinear", align_corners=True)
        return torch.cat([moved.flatten(), parameters[at:]])

    @property
    def _widths(self) -> tuple[int, ...]:
        return (self.channels + 3, self.channels, self.channels, 3)

    def _coarse_shape(self) -> tuple[int, int, int]:
        edge = self.grid.voxel_sizes[0]
        shape = [max(3, math.ceil((n - 1) * edge / self.coarse) + 1) for n in self.grid.shape]
        return shape[0], shape[1], shape[2]


def _coordinates(shape: tuple[int, int, int]) -> Float[Tensor, "1 3 i j k"]:
    axes = [torch.linspace(-1, 1, n) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
