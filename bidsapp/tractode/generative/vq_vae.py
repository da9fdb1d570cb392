"""The VQ-VAE: every place is replaced by its nearest entry, and the gradient passed straight through.

A. van den Oord et al., "Neural discrete representation learning", 2017, doi:10.48550/arXiv.1711.00937, equation 3; as the baseline of
A. Lizarraga et al. (see `resnet_codec`): 512 entries of 64 numbers, commitment 0.25. Departures: see `codebook`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tractode.generative.codebook import Codebook, TableSettings
from tractode.generative.resnet_codec import Bottleneck, GroupCodec


@dataclass(frozen=True)
class VqSettings(TableSettings):
    """``commitment`` is the weight with which the latent is drawn to its entry."""

    commitment: float = 0.25


class Nearest(Codebook):
    """Entries are learned: each is drawn to the latents that chose it."""

    def __init__(self, settings: VqSettings, channels: int) -> None:
        super().__init__(settings, channels)
        self.commitment = settings.commitment
        uniform = (2 * torch.rand(settings.tables, settings.size, self.depth) - 1) / settings.size
        self.entries = nn.Parameter(uniform)

    def squeeze(
        self, latents: Float[Tensor, "g c i j"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "g c i j"], Float[Tensor, ""]]:
        rows = self.rows(latents)
        with torch.no_grad():
            self.revive(rows, self.squared_distance(rows).argmin(-1), generator)
            chosen = self.squared_distance(rows).argmin(-1)
        found = self.looked_up(chosen)
        added = functional.mse_loss(found, rows.detach()) + self.commitment * functional.mse_loss(rows, found.detach())
        return latents + (self.pictured(found) - latents).detach(), added


class VqVae(GroupCodec):
    """The VQ-VAE of the paper."""

    label: ClassVar[str] = "vq"

    @classmethod
    def bottleneck_of(cls, settings: VqSettings, channels: int) -> Bottleneck:
        return Nearest(settings, channels)

    @classmethod
    def settings_of(cls, record: Mapping[str, Any]) -> VqSettings:
        return VqSettings(**record)
