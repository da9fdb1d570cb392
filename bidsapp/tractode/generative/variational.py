"""The variational autoencoder: means and variances, 20 numbers a group as published, or a picture of numbers rounded to bits.

D. P. Kingma, M. Welling, "Auto-encoding variational Bayes", 2014, doi:10.48550/arXiv.1312.6114; as the baseline of A. Lizarraga et al.
(see `resnet_codec`): two more convolutions of stride 2, then 20 means and variances, the divergence (summed) weighted by 1e-7.
Departure of the corrected recipe: the latent stays a picture of 16 × 16 places, a few channels of means and variances, and a
mean is stored by ``bits`` between ±4 of its channel's standard deviations, as measured in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tractode.generative.autoencoder import PLACES
from tractode.generative.resnet_codec import Bottleneck, GroupCodec

_REACH = 4.0  # standard deviations that the levels span on either side
_SLOW = 0.99  # of the running mean and variance


@dataclass(frozen=True)
class VaeSettings:
    """Of the variational bottleneck.

    Parameters
    ----------
    dims
        Numbers a group where the whole latent is one vector; 0 where it is a picture.
    kept
        Channels of the picture that are stored, where it is one.
    bits
        Of each stored number; 0 for 16 as they are.
    divergence
        Weight of the Kullback-Leibler divergence, summed over the latent and averaged over groups.
    """

    dims: int = 0
    kept: int = 5
    bits: int = 8
    divergence: float = 1e-7


class Variational(Bottleneck):
    """A normal distribution about the mean in training, the mean itself in use."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: VaeSettings, channels: int) -> None:
        super().__init__()
        self.set, self.channels = settings, channels
        self.is_discrete = bool(settings.bits)
        self.dtype = torch.int32 if settings.bits else torch.float16
        if settings.dims:
            self.down = nn.Sequential(
                nn.Conv2d(channels, channels, 4, 2, 1), nn.ReLU(), nn.Conv2d(channels, channels, 4, 2, 1), nn.ReLU(),
                nn.Flatten(), nn.Linear(channels * 16, 2 * settings.dims),
            )  # fmt: skip
            self.up = nn.Sequential(
                nn.Linear(settings.dims, channels * 16), nn.Unflatten(1, (channels, 4, 4)), nn.ReLU(),
                nn.ConvTranspose2d(channels, channels, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(channels, channels, 4, 2, 1),
            )  # fmt: skip
        else:
            self.down = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 2 * settings.kept, 1))
            self.up = nn.Sequential(nn.Conv2d(settings.kept, channels, 1))
        self.register_buffer("mean", torch.zeros(self._numbers))
        self.register_buffer("deviation", torch.ones(self._numbers))

    @property
    def _numbers(self) -> int:
        """Kinds of numbers: the dimensions, or the channels."""
        return self.set.dims or self.set.kept

    @property
    def _n(self) -> int:
        """Numbers of a group."""
        return self.set.dims or self.set.kept * PLACES[0] * PLACES[1]

    @property
    def bits(self) -> float:
        return float((self.set.bits or 16) * self._n)

    @property
    def levels(self) -> tuple[int, ...]:
        return (2**self.set.bits,) * self._n if self.set.bits else ()

    def squeeze(
        self, latents: Float[Tensor, "g c i j"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "g c i j"], Float[Tensor, ""]]:
        mean, log_variance = self.down(latents).chunk(2, dim=1)
        self._measure(mean)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()
        return self.up(mean + (0.5 * log_variance).exp() * noise), self.set.divergence * divergence

    def means(self, latents: Float[Tensor, "g c i j"]) -> Float[Tensor, "g m *place"]:
        """The latent proper."""
        return self.down(latents).chunk(2, dim=1)[0]  # type: ignore[no-any-return]

    def codes(self, latents: Float[Tensor, "g c i j"]) -> Shaped[Tensor, "g n"]:
        mean = self.means(latents)
        if not self.set.bits:
            return mean.flatten(1).half()
        share = (mean - self._shaped(self.mean, mean)) / self._shaped(self.deviation, mean) / _REACH
        steps = 2**self.set.bits - 1
        return ((share.clamp(-1, 1) + 1) / 2 * steps).round().flatten(1).to(self.dtype)

    def values(self, codes: Shaped[Tensor, "g n"]) -> Float[Tensor, "g m *place"]:
        values = codes.float().reshape(len(codes), self._numbers, *(() if self.set.dims else PLACES))
        if self.set.bits:
            share = values * (2 / (2**self.set.bits - 1)) - 1
            values = self._shaped(self.mean, values) + share * _REACH * self._shaped(self.deviation, values)
        return values

    def widen(self, values: Float[Tensor, "g m *place"]) -> Float[Tensor, "g c i j"]:
        return self.up(values)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _measure(self, mean: Float[Tensor, "g m *place"]) -> None:
        """Running mean and deviation of each kind of number."""
        each = mean.detach().transpose(0, 1).flatten(1)
        self.mean.lerp_(each.mean(1), 1 - _SLOW)
        self.deviation.lerp_(each.std(1), 1 - _SLOW)

    @staticmethod
    def _shaped(each: Float[Tensor, " m"], like: Float[Tensor, "g m *place"]) -> Tensor:
        return each.reshape(1, -1, *(1,) * (like.ndim - 2))


class VariationalAutoencoder(GroupCodec):
    """The VAE of the paper."""

    label: ClassVar[str] = "vae"

    @classmethod
    def bottleneck_of(cls, settings: VaeSettings, channels: int) -> Bottleneck:
        return Variational(settings, channels)

    @classmethod
    def settings_of(cls, record: Mapping[str, Any]) -> VaeSettings:
        return VaeSettings(**record)
