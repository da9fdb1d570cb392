"""The VQ-VAE whose entries are running means of the latents that chose them.

A. van den Oord et al., "Neural discrete representation learning", 2017, doi:10.48550/arXiv.1711.00937, appendix A.1; as the baseline of
A. Lizarraga et al. (see `resnet_codec`): 512 entries of 64 numbers, commitment 0.25, decay 0.99. Departures: see `codebook`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tractode.generative.codebook import Codebook
from tractode.generative.resnet_codec import Bottleneck, GroupCodec
from tractode.generative.vq_vae import VqSettings

_LEAST = 1e-5  # of a count, so that no entry is divided by nothing


@dataclass(frozen=True)
class EmaSettings(VqSettings):
    """``decay`` of the running means."""

    decay: float = 0.99


class RunningMeans(Codebook):
    """Entries follow the data, no gradient moves them."""

    entries: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, settings: EmaSettings, channels: int) -> None:
        super().__init__(settings, channels)
        self.commitment, self.decay = settings.commitment, settings.decay
        self.register_buffer("entries", torch.randn(settings.tables, settings.size, self.depth))
        self.register_buffer("counts", torch.zeros(settings.tables, settings.size))
        self.register_buffer("sums", self.entries.clone())

    def squeeze(
        self, latents: Float[Tensor, "g c i j"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "g c i j"], Float[Tensor, ""]]:
        rows = self.rows(latents)
        with torch.no_grad():
            chosen = self.squared_distance(rows).argmin(-1)
            moved = self.revive(rows, chosen, generator)
            if bool(moved.any()):
                self.counts[moved], self.sums[moved] = 1.0, self.entries[moved]
                chosen = self.squared_distance(rows).argmin(-1)
            found = self.looked_up(chosen)
            self._follow(rows, chosen)
        added = self.commitment * functional.mse_loss(rows, found)
        return latents + (self.pictured(found) - latents).detach(), added

    def _follow(self, rows: Float[Tensor, "t n d"], chosen: Int[Tensor, "t n"]) -> None:
        """Running counts and sums; an entry is their quotient, counts smoothed as if each entry had been chosen a little."""
        counts = torch.zeros_like(self.counts).scatter_add_(1, chosen, torch.ones_like(rows[..., 0]))
        sums = torch.zeros_like(self.sums).scatter_add_(1, chosen[..., None].expand_as(rows), rows)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum(1, keepdim=True)
        smooth = (self.counts + _LEAST) / (total + self.table.size * _LEAST) * total
        self.entries.copy_(self.sums / smooth[..., None])


class VqEma(GroupCodec):
    """The VQ-EMA of the paper."""

    label: ClassVar[str] = "vq_ema"

    @classmethod
    def bottleneck_of(cls, settings: EmaSettings, channels: int) -> Bottleneck:
        return RunningMeans(settings, channels)

    @classmethod
    def settings_of(cls, record: Mapping[str, Any]) -> EmaSettings:
        return EmaSettings(**record)
