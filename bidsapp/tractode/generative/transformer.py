"""The transformer of GenTract: noisy points of a streamline attend to each other and to a context that the whole subject shares.

A. Sargood et al., "GenTract: generative global tractography", arXiv:2511.13183 (2025), section 4.2; layers as A. Vaswani et al.,
NeurIPS 2017, doi:10.48550/arXiv.1706.03762 (normalised after each sum), sinusoidal places, time as in W. Peebles, S. Xie, ICCV 2023,
doi:10.48550/arXiv.2212.09748. Points, not streamlines, are the tokens; the output is a vector for each point.

Departures: keys and values of the context are computed once a subject (`Memory`), and the queries of all streamlines are put to
them as one long row, since all of them look at the same context; the paper's code projects the context again for every
streamline. Time in [0, 1] is multiplied by 1,000 before its embedding, for flow matching too (there it was not, so most of the
embedding was constant). A learned null context stands for "no subject", for classifier-free guidance (J. Ho, T. Salimans,
doi:10.48550/arXiv.2207.12598). Places of the context's tokens may be added (``context_places``); the paper does not say that its
tokens know where they lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

TIME_SCALE = 1000.0


@dataclass(frozen=True)
class TransformerSettings:
    """Layers M and width n of the paper, heads, width of the feed-forward layer, dropout; ``context_places``: see above."""

    layers: int = 8
    width: int = 256
    heads: int = 8
    feedforward: int = 2048
    dropout: float = 0.1
    context_places: bool = False


@dataclass(frozen=True, eq=False)
class Memory:
    """Keys and values of a subject's context, one pair a layer, and the values of the null context."""

    keys: tuple[Float[Tensor, "h k e"], ...]
    values: tuple[Float[Tensor, "h k e"], ...]
    null_values: tuple[Float[Tensor, " n"], ...]


def sinusoidal(places: Float[Tensor, "*p"], width: int) -> Float[Tensor, "*p n"]:
    """Sines and cosines of wavelengths from 2π to 20,000 π, as many of each as half the width."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2, device=places.device) / width).to(places)
    phase = places[..., None] * rates
    return torch.cat([phase.sin(), phase.cos()], dim=-1)[..., :width]


class StreamlineTransformer(nn.Module):
    """Noisy points, their times and a `Memory` → what the path's network has to predict at each point."""

    def __init__(self, n_features: int, settings: TransformerSettings) -> None:
        super().__init__()
        self.settings, n = settings, settings.width
        self.points = nn.Linear(3, n)
        self.time = nn.Sequential(nn.Linear(n, 4 * n), nn.SiLU(), nn.Linear(4 * n, n))
        self.context = nn.Linear(n_features, n)
        self.null = nn.Parameter(0.02 * torch.randn(n))
        self.layers = nn.ModuleList([_Layer(settings) for _ in range(settings.layers)])
        self.norm = nn.LayerNorm(n)
        self.out = nn.Linear(n, 3)

    def memory(self, tokens: Float[Tensor, "k f"], places: Float[Tensor, "k 3"] | None = None) -> Memory:
        """What every streamline of a subject looks at. ``places`` of the tokens in [−1, 1] where the settings ask for them."""
        context = self.context(tokens)
        if self.settings.context_places and places is not None:
            third = 2 * (self.settings.width // 6)
            waves = sinusoidal(100 * places, third).flatten(1)
            context = context + functional.pad(waves, [0, self.settings.width - waves.shape[1]])
        pairs = [layer.looked_up.keys_values(context) for layer in self._stack]
        nulls = [layer.looked_up.null_value(self.null) for layer in self._stack]
        return Memory(tuple(k for k, _ in pairs), tuple(v for _, v in pairs), tuple(nulls))

    def forward(
        self,
        x: Float[Tensor, "s p 3"],
        time: Float[Tensor, " s"],
        memory: Memory,
        is_blind: Bool[Tensor, " s"] | None = None,
    ) -> Float[Tensor, "s p 3"]:
        """``is_blind`` rows see the null context instead of the subject."""
        n = self.settings.width
        places = sinusoidal(torch.arange(x.shape[1], device=x.device).to(x), n)
        when = self.time(sinusoidal(TIME_SCALE * time, n))
        hidden = functional.relu(self.points(x)) * math.sqrt(n) + places + when[:, None]
        for layer, keys, values, null in zip(self._stack, memory.keys, memory.values, memory.null_values, strict=True):
            hidden = layer(hidden, keys, values, null, is_blind)
        return self.out(self.norm(hidden))

    @property
    def _stack(self) -> list[_Layer]:
        return list(self.layers)  # type: ignore[arg-type]


class _Layer(nn.Module):
    """Self-attention, attention to the context, two linear layers; each is added and then normalised."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        n = settings.width
        self.among = _SelfAttention(n, settings.heads, settings.dropout)
        self.looked_up = _ContextAttention(n, settings.heads, settings.dropout)
        self.wide = nn.Linear(n, settings.feedforward)
        self.narrow = nn.Linear(settings.feedforward, n)
        self.norms = nn.ModuleList([nn.LayerNorm(n) for _ in range(3)])
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self,
        x: Float[Tensor, "s p n"],
        keys: Float[Tensor, "h k e"],
        values: Float[Tensor, "h k e"],
        null: Float[Tensor, " n"],
        is_blind: Bool[Tensor, " s"] | None,
    ) -> Float[Tensor, "s p n"]:
        x = self.norms[0](x + self.dropout(self.among(x)))
        seen = self.looked_up(x, keys, values)
        if is_blind is not None:
            seen = torch.where(is_blind[:, None, None], null, seen)
        x = self.norms[1](x + self.dropout(seen))
        wide = self.dropout(functional.relu(self.wide(x)))
        return self.norms[2](x + self.dropout(self.narrow(wide)))


class _SelfAttention(nn.Module):
    """Of the points of each streamline."""

    def __init__(self, n: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.project, self.out = nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, x: Float[Tensor, "s p n"]) -> Float[Tensor, "s p n"]:
        s, p, n = x.shape
        parts = self.project(x).view(s, p, 3, self.heads, n // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], dropout_p=dropout)
        return self.out(seen.transpose(1, 2).reshape(s, p, n))


class _ContextAttention(nn.Module):
    """Of all points of all streamlines to one context."""

    def __init__(self, n: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value, self.out = nn.Linear(n, n), nn.Linear(n, 2 * n), nn.Linear(n, n)

    def keys_values(self, context: Float[Tensor, "k n"]) -> tuple[Float[Tensor, "h k e"], Float[Tensor, "h k e"]]:
        k, n = context.shape
        parts = self.key_value(context).view(k, 2, self.heads, n // self.heads).permute(1, 2, 0, 3)
        return parts[0], parts[1]

    def null_value(self, null: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What attention to a single token gives, whoever asks: its value."""
        return self.out(self.key_value(null)[len(null) :])

    def forward(
        self, x: Float[Tensor, "s p n"], keys: Float[Tensor, "h k e"], values: Float[Tensor, "h k e"]
    ) -> Float[Tensor, "s p n"]:
        s, p, n = x.shape
        query = self.query(x).view(1, s * p, self.heads, n // self.heads).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, keys[None], values[None], dropout_p=dropout)
        return self.out(seen.transpose(1, 2).reshape(s, p, n))
