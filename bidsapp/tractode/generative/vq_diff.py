"""VQ-Diff: every place is replaced by a weighted sum of entries, the weights a Gumbel softmax of the distances to them.

A. Lizarraga et al., "Differentiable VQ-VAE's for robust white matter streamline encodings" (github.com/drewrl3v/diff-vq-vae), section 2.1; E. Jang et al.,
"Categorical reparameterization with Gumbel-softmax", 2017, doi:10.48550/arXiv.1611.01144. As published, temperature 10 throughout: the sum
mixes hundreds of entries, so nothing is chosen, what is stored are numbers and not codes, and the noise stays on in use, so
that two encodings differ. Departures of the corrected recipe: temperature and noise fall in the course of training, at last
the entry of the largest weight alone is passed on (straight through), and in use the nearest entry is chosen without noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from tractode.generative.autoencoder import PLACES
from tractode.generative.codebook import Codebook, TableSettings
from tractode.generative.resnet_codec import Bottleneck, GroupCodec

_LEAST = 1e-20


@dataclass(frozen=True)
class DiffSettings(TableSettings):
    """Of the Gumbel softmax.

    Parameters
    ----------
    deviation
        Of the entries at first.
    temperature, last_temperature
        At the beginning, and when entries begin to be chosen; it falls as a geometric series.
    chooses_from
        The share of the training after which single entries are passed on. 1 for never.
    is_mixture
        Whether the mixture itself is stored and decoded, as published, with the noise on.
    """

    deviation: float = 2.0
    temperature: float = 10.0
    last_temperature: float = 0.05
    chooses_from: float = 0.7
    is_mixture: bool = False


class GumbelSoftmax(Codebook):
    """Mixtures of entries, or the chosen one."""

    def __init__(self, settings: DiffSettings, channels: int) -> None:
        super().__init__(settings, channels)
        self.set = settings
        self.entries = nn.Parameter(settings.deviation * torch.randn(settings.tables, settings.size, self.depth))
        self.is_discrete = self.is_deterministic = not settings.is_mixture
        self.dtype = torch.float16 if settings.is_mixture else torch.int32
        self.noise = torch.Generator().manual_seed(0)  # of the mixtures in use

    @property
    def bits(self) -> float:
        return 16.0 * self.channels * PLACES[0] * PLACES[1] if self.set.is_mixture else super().bits

    @property
    def levels(self) -> tuple[int, ...]:
        return () if self.set.is_mixture else super().levels

    def squeeze(
        self, latents: Float[Tensor, "g c i j"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "g c i j"], Float[Tensor, ""]]:
        rows, course = self.rows(latents), self._course()
        distance = self.squared_distance(rows)
        if self.table.revives:
            self.revive(rows, distance.detach().argmin(-1), generator)
            distance = self.squared_distance(rows)
        temperature = self.set.temperature * (self.set.last_temperature / self.set.temperature) ** course
        noise = self._gumbel(distance, generator) * (1 - course) if course < 1 else torch.zeros(())
        weights = functional.softmax((noise - distance) / temperature, dim=-1)
        if course >= 1:
            chosen = functional.one_hot(distance.argmin(-1), self.table.size).to(weights)
            weights = weights + (chosen - weights).detach()
        return self.pictured(weights @ self.entries), latents.new_zeros(())

    def codes(self, latents: Float[Tensor, "g c i j"]) -> Shaped[Tensor, "g n"]:
        if not self.set.is_mixture:
            return super().codes(latents)
        return self.pictured(self.weights(latents) @ self.entries).flatten(1).half()

    def values(self, codes: Shaped[Tensor, "g n"]) -> Float[Tensor, "g c i j"]:
        if not self.set.is_mixture:
            return super().values(codes)
        return codes.float().reshape(len(codes), self.channels, *PLACES)

    def weights(self, latents: Float[Tensor, "g c i j"]) -> Float[Tensor, "t n k"]:
        """Of the entries in a mixture, with noise as published."""
        distance = self.squared_distance(self.rows(latents))
        return functional.softmax((self._gumbel(distance, self.noise) - distance) / self.set.temperature, dim=-1)

    def _course(self) -> float:
        """From 0 (as published) to 1 (entries are chosen)."""
        return 0.0 if self.set.chooses_from >= 1 else min(float(self.share) / self.set.chooses_from, 1.0)

    @staticmethod
    def _gumbel(like: Float[Tensor, "t n k"], generator: torch.Generator) -> Float[Tensor, "t n k"]:
        """Standard Gumbel noise."""
        exponential = torch.empty(like.shape).exponential_(generator=generator).clamp_min(_LEAST)
        return -exponential.log().to(like)


class VqDiff(GroupCodec):
    """VQ-Diff."""

    label: ClassVar[str] = "vq_diff"
    settings: DiffSettings

    @classmethod
    def bottleneck_of(cls, settings: DiffSettings, channels: int) -> Bottleneck:
        return GumbelSoftmax(settings, channels)

    @classmethod
    def settings_of(cls, record: Mapping[str, Any]) -> DiffSettings:
        return DiffSettings(**record)

    def chosen(self) -> VqDiff:
        """The same network that stores the nearest entries: true codes, whatever it was trained for."""
        tensors, record = self.weights()
        settings = dataclasses.replace(self.settings, is_mixture=False)
        made = self.from_weights(tensors, {**record, "bottleneck": dataclasses.asdict(settings)})
        assert isinstance(made, VqDiff)
        return made
