"""The plain autoencoder: no bottleneck at all, or numbers rounded to a stated number of bits.

The AE of A. Lizarraga et al. (see `resnet_codec`): its latent of 64 × 16 × 16 numbers is larger than the 64 × 64 × 3
numbers of the input. Departure of the corrected recipe: a few channels, each number brought to (-1, 1) by the hyperbolic
tangent and rounded to 2^bits levels, the gradient passed straight through (as in finite scalar quantisation, F. Mentzer et al. 2024,
doi:10.48550/arXiv.2309.15505), so that an autoencoder can be had at any rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tractode.generative.resnet_codec import Bottleneck, GroupCodec

PLACES = (16, 16)
_N_PLACES = PLACES[0] * PLACES[1]


@dataclass(frozen=True)
class AutoencoderSettings:
    """``bits`` of each number of the latent; 0 for numbers as they are, which are stored by 16 bits."""

    bits: int = 0


class Identity(Bottleneck):
    """The latent itself."""

    is_discrete = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.dtype = channels, torch.float16

    @property
    def bits(self) -> float:
        return 16.0 * self.channels * _N_PLACES

    def squeeze(
        self, latents: Float[Tensor, "g c i j"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "g c i j"], Float[Tensor, ""]]:
        return latents, latents.new_zeros(())

    def codes(self, latents: Float[Tensor, "g c i j"]) -> Float[Tensor, "g n"]:
        return latents.flatten(1).half()

    def values(self, codes: Shaped[Tensor, "g n"]) -> Float[Tensor, "g c i j"]:
        return codes.float().reshape(len(codes), self.channels, *PLACES)


class Rounded(Bottleneck):
    """tanh, then the nearest of 2^bits equally spaced levels from -1 to 1."""

    is_discrete = True

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.channels, self.bits_each = channels, bits

    @property
    def bits(self) -> float:
        return float(self.bits_each * self.channels * _N_PLACES)

    @property
    def levels(self) -> tuple[int, ...]:
        return (2**self.bits_each,) * (self.channels * _N_PLACES)

    @property
    def _steps(self) -> int:
        return int(2**self.bits_each - 1)

    def squeeze(
        self, latents: Float[Tensor, "g c i j"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "g c i j"], Float[Tensor, ""]]:
        bounded = latents.tanh()
        return bounded + (self._placed(self._levels(bounded)) - bounded).detach(), latents.new_zeros(())

    def codes(self, latents: Float[Tensor, "g c i j"]) -> Int[Tensor, "g n"]:
        return self._levels(latents.tanh()).flatten(1).to(self.dtype)

    def values(self, codes: Shaped[Tensor, "g n"]) -> Float[Tensor, "g c i j"]:
        return self._placed(codes.float()).reshape(len(codes), self.channels, *PLACES)

    def _levels(self, bounded: Float[Tensor, "g c i j"]) -> Float[Tensor, "g c i j"]:
        return ((bounded + 1) / 2 * self._steps).round()

    def _placed(self, levels: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return levels * (2 / self._steps) - 1


class Autoencoder(GroupCodec):
    """The AE of the paper; with ``bits`` an autoencoder of stated rate."""

    label: ClassVar[str] = "ae"
    settings: AutoencoderSettings

    @classmethod
    def bottleneck_of(cls, settings: AutoencoderSettings, channels: int) -> Bottleneck:
        return Rounded(channels, settings.bits) if settings.bits else Identity(channels)

    @classmethod
    def settings_of(cls, record: Mapping[str, Any]) -> AutoencoderSettings:
        return AutoencoderSettings(**record)

    def with_bits(self, bits: int) -> Autoencoder:
        """The same networks with numbers rounded otherwise."""
        settings = dataclasses.replace(self.settings, bits=bits)
        tensors, record = self.weights()
        made = self.from_weights(tensors, {**record, "bottleneck": dataclasses.asdict(settings)})
        assert isinstance(made, Autoencoder)
        return made
