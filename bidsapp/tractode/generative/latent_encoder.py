"""The class-conditioned residual encoder: latents of all coefficients, through one network, to the tokens of a context.

A. Sargood et al., "GenTract: generative global tractography", arXiv:2511.13183 (2025), section 4.1, "Fusion and refinement": the
weights are shared over the coefficients, the index of the coefficient is given as an embedding, the grid is halved, the places
become tokens and the coefficients' channels are laid side by side. It is fitted together with the transformer. Two residual
blocks with group normalisation, as the down block of diffusion U-nets (J. Ho et al., NeurIPS 2020,
doi:10.48550/arXiv.2006.11239).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class LatentEncoderSettings:
    """Channels that each coefficient gets in a token, width of the index's embedding, blocks, groups of the normalisation."""

    channels: int = 32
    embedding: int = 128
    n_blocks: int = 2
    groups: int = 2


class LatentEncoder(nn.Module):
    """``(n, c, a, b, d)`` latents of n coefficients → ``(tokens, n · channels)``, a token for each place of the halved grid."""

    def __init__(self, n: int, latent_channels: int, settings: LatentEncoderSettings) -> None:
        super().__init__()
        self.n_features = n * settings.channels
        self.index = nn.Embedding(n, settings.embedding)
        widths = [latent_channels] + [settings.channels] * settings.n_blocks
        self.blocks = nn.ModuleList(
            [
                _ConditionedBlock(before, after, settings.embedding, settings.groups)
                for before, after in pairwise(widths)
            ]
        )
        self.halve = nn.Conv3d(settings.channels, settings.channels, 3, stride=2, padding=1)

    def forward(self, latents: Float[Tensor, "n c a b d"]) -> Float[Tensor, "k f"]:
        features = latents
        for block in self.blocks:
            features = block(features, self.index.weight)
        return self.halve(features).flatten(2).permute(2, 0, 1).flatten(1)


class _ConditionedBlock(nn.Module):
    """Two convolutions around a skip; the embedding is added between them. The second starts at nought: the block is its skip."""

    def __init__(self, before: int, after: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv1 = nn.Conv3d(before, after, 3, padding=1)
        self.shift = nn.Linear(embedding, after)
        self.norm2 = nn.GroupNorm(groups, after, eps=1e-6)
        self.conv2 = nn.Conv3d(after, after, 3, padding=1)
        self.skip = nn.Conv3d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "n c a b d"], index: Float[Tensor, "n e"]) -> Float[Tensor, "n o a b d"]:
        inner = self.conv1(functional.silu(self.norm1(x)))
        inner = inner + self.shift(functional.silu(index))[:, :, None, None, None]
        return self.skip(x) + self.conv2(functional.silu(self.norm2(inner)))


def n_tokens(latent_shape: tuple[int, int, int]) -> int:
    """How many tokens latents of this grid give."""
    halves = [(n + 1) // 2 for n in latent_shape]
    return int(torch.tensor(halves).prod())
