"""A deformation as the flow of a neural field: a small network from a place (and a time) to a velocity.

J. M. Wolterink, J. C. Zwienenberg, C. Brune, "Implicit neural representations for deformable image registration", MIDL 2022
(PMLR 172:1349); Fourier features: M. Tancik et al., NeurIPS 2020, arXiv:2006.10739; as the right-hand side of an ordinary
differential equation: Y. Wu et al., NODEO, CVPR 2022, doi:10.1109/CVPR52688.2022.02018.

Departures: the network gives a velocity, not a displacement, and the flow is integrated, so that nothing can fold; it is
evaluated on nodes and smoothed between them, which with features of bounded frequency bounds its band; the last layer starts
at 0, so that the start is the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import smooth
from tractode.registration.deformation import Deformation, border_window


@dataclass(frozen=True, eq=False)
class NeuralVelocity(Deformation):
    """Fourier features of the place, two hidden layers, a velocity.

    Parameters
    ----------
    times
        1: stationary; more: the time is an input, and the velocity is kept at so many times.
    features, width
        Of the first layer; of the hidden ones.
    wavelength
        Shortest of the features, mm.
    amplitude
        mm that an output of 1 stands for.
    """

    times: int = 1
    features: int = 96
    width: int = 96
    wavelength: float = 24.0
    amplitude: float = 10.0
    smoothing: float = 1.0
    seed: int = 0
    step: ClassVar[float] = 3e-3

    def parameters(self, device: torch.device | str = "cpu") -> Float[Tensor, " p"]:
        """Weights of all layers in one vector; those of the last are 0."""
        generator = torch.Generator().manual_seed(self.seed)
        parts = []
        for n, (inputs, outputs) in enumerate(pairwise(self._widths)):
            bound = math.sqrt(6 / inputs)
            scale = 0.0 if n == len(self._widths) - 2 else bound
            parts += [(2 * torch.rand(outputs * inputs, generator=generator) - 1) * scale, torch.zeros(outputs)]
        return torch.cat(parts).to(device)

    def velocity(self, parameters: Float[Tensor, " p"]) -> Float[Tensor, "t 3 i j k"]:
        points = self.grid.centres(parameters.dtype, parameters.device).reshape(-1, 3)
        phases = points @ self._frequencies().to(parameters)
        window = border_window(self.grid.shape).to(parameters)
        fields = []
        for n in range(self.times):
            time = n / max(self.times - 1, 1)
            seen = torch.cat([phases.sin(), phases.cos(), torch.full_like(points[:, :1], 2 * time - 1)], dim=1)
            out = self.amplitude * _layers(seen, parameters, self._widths)
            field = out.mT.reshape(3, *self.grid.shape)
            fields.append(smooth.gaussian(field, (self.smoothing,) * 3) * window)
        return torch.stack(fields)

    def refined(self, parameters: Float[Tensor, " p"], finer: Deformation) -> Float[Tensor, " p"]:
        return parameters

    @property
    def _widths(self) -> tuple[int, ...]:
        return (2 * self.features + 1, self.width, self.width, 3)

    def _frequencies(self) -> Float[Tensor, "3 f"]:
        """Random wave vectors (radians per mm), none longer than the shortest wavelength allows."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        direction = torch.randn(3, self.features, generator=generator)
        direction = direction / direction.norm(dim=0)
        length = torch.rand(self.features, generator=generator)
        return direction * length * (2 * math.pi / self.wavelength)


def _layers(values: Float[Tensor, "n f"], parameters: Float[Tensor, " p"], widths: tuple[int, ...]) -> Tensor:
    """A multilayer perceptron whose weights lie one after the other in a vector."""
    at = 0
    for n, (inputs, outputs) in enumerate(pairwise(widths)):
        weight = parameters[at : at + inputs * outputs].reshape(outputs, inputs)
        bias = parameters[at + inputs * outputs : at + (inputs + 1) * outputs]
        at += (inputs + 1) * outputs
        values = values @ weight.mT + bias
        if n < len(widths) - 2:
            values = torch.nn.functional.silu(values)
    return values
