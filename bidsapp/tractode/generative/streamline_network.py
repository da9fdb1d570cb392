"""The network that moves a streamline's knots: a transformer over them, each knowing the field where it is now.

GenTract's transformer (Sargood et al. 2025, doi:10.48550/arXiv.2511.13183) with these departures: conditioning is by looking
the subject up at the moving knots (`field_encoder`) instead of attending to a latent of the whole brain; the bundle is an
input; layers normalise first (Xiong et al. 2020, doi:10.48550/arXiv.2002.04745); time reaches the sinusoidal embedding as
1000·t. A second head says how likely a finished line is to be one of the subject's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tractode.generative import knots as knotted
from tractode.generative.field_encoder import (
    N_SLOPES,
    Context,
    FieldEncoder,
    alignments,
    context_of,
    look_up,
    n_features,
    slopes_of,
)
from tractode.generative.space import ORDER, training_grid
from tractode.ops import spherical_harmonics as sh

CENTRE = (0.0, -18.0, 12.0)
"""The middle of the training space's white matter, mm."""
_WAVELENGTHS = (180.0, 90.0, 45.0, 22.0)


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes. ``unit_mm`` is the length of 1 in the state that flows, ``gain`` what the last layer is multiplied by:
    small where the flow starts near its end."""

    n_bundles: int = 1
    width: int = 96
    depth: int = 4
    heads: int = 4
    encoder: tuple[int, int, int] = (16, 32, 64)
    mean_order: int = 4
    unit_mm: float = 40.0
    gain: float = 0.125

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "encoder": list(self.encoder)}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> NetworkSettings:
        first, second, third = record["encoder"]
        return cls(**{**record, "encoder": (int(first), int(second), int(third))})


class StreamlineNetwork(nn.Module):
    """Velocity (or noise) of every knot, and the logit of a line being valid.

    The state of a line is ``(knots − CENTRE) / unit_mm``.
    """

    mean: Tensor
    centre: Tensor

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings, self.grid = settings, training_grid()
        width = settings.width
        self.encoder = FieldEncoder(ORDER, settings.mean_order, settings.encoder)
        n_place = 2 * 3 * len(_WAVELENGTHS) + 3 + 3 + 3 + 1
        n_seen = n_features(ORDER, settings.mean_order, settings.encoder) + N_SLOPES
        self.enter = nn.Linear(n_seen + n_place, width)
        # Straight from what is seen to where to go, for a start; from the knot, its line and its bundle.
        self.shortcut = nn.Linear(2 * 3 * N_SLOPES, 3)
        self.bundle = nn.Embedding(settings.n_bundles, width)
        self.place = nn.Parameter(torch.randn(knotted.N_KNOTS, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList([_Layer(width, settings.heads) for _ in range(settings.depth)])
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, 3)
        self.judge = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        nn.init.zeros_(self.shortcut.weight)
        nn.init.zeros_(self.shortcut.bias)
        shape = (sh.n_coefficients(settings.mean_order), *self.grid.shape)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("centre", torch.tensor(CENTRE), persistent=False)

    def to_state(self, knots: Float[Tensor, "s k 3"]) -> Float[Tensor, "s k 3"]:
        return (knots - self.centre.to(knots)) / self.settings.unit_mm

    def to_knots(self, state: Float[Tensor, "s k 3"]) -> Float[Tensor, "s k 3"]:
        return state * self.settings.unit_mm + self.centre.to(state)

    def see(self, field: Float[Tensor, "l i j k"], knots: Float[Tensor, "s m 3"], bundle: Int[Tensor, " s"]) -> Context:
        """A subject's field (normalised, on the training grid), encoded once.

        ``knots`` are some of the atlas's lines, from which each bundle's evidence is gathered.
        """
        return self._with_evidence(context_of(self.encoder, field, self.mean), knots, bundle)

    def see_nobody(self) -> Context:
        """What stands for a subject that is not shown: the mean field, marked as no subject's."""
        blank = self.mean.new_zeros(sh.n_coefficients(ORDER), *self.grid.shape)
        blank[: len(self.mean)] = self.mean
        context = context_of(self.encoder, blank, self.mean, is_known=False)
        nothing = blank.new_zeros(self.settings.n_bundles, knotted.N_KNOTS, N_SLOPES)
        return replace(context, evidence=nothing)

    @torch.no_grad()
    def _with_evidence(self, context: Context, knots: Tensor, bundle: Int[Tensor, " s"]) -> Context:
        """What the lines of each bundle see where they are: the mean of their slopes, knot by knot."""
        s, k = knots.shape[:2]
        directions = knotted.tangents_of(knots).reshape(-1, 3)
        amplitudes, _ = alignments(context, self.grid, knots.reshape(-1, 3), directions, ORDER)
        slopes = slopes_of(amplitudes).reshape(s, k, -1)
        total = slopes.new_zeros(self.settings.n_bundles, k, N_SLOPES).index_add_(0, bundle, slopes)
        counts = torch.bincount(bundle, minlength=self.settings.n_bundles).clamp_min(1)
        return replace(context, evidence=total / counts[:, None, None])

    def forward(
        self, context: Context, state: Float[Tensor, "s k 3"], time: Float[Tensor, " s"], bundle: Int[Tensor, " s"]
    ) -> Float[Tensor, "s k 3"]:
        """d state / d t at ``time`` in [0, 1]."""
        tokens, slopes = self._tokens(context, state, time, bundle)
        straight = self.shortcut(torch.cat([slopes, slopes * time[:, None, None]], -1))
        return (self.leave(self.norm(tokens)) + straight) * self.settings.gain

    def confidence(
        self, context: Context, state: Float[Tensor, "s k 3"], bundle: Int[Tensor, " s"]
    ) -> Float[Tensor, " s"]:
        """The logit of finished lines being valid."""
        tokens, _ = self._tokens(context, state, torch.ones_like(state[:, 0, 0]), bundle)
        return self.judge(torch.cat([tokens.mean(1), tokens.amin(1)], -1))[:, 0]

    def _tokens(
        self, context: Context, state: Tensor, time: Tensor, bundle: Tensor
    ) -> tuple[Float[Tensor, "s k w"], Float[Tensor, "s k e"]]:
        """A token a knot, and the slopes at the knot, in the mean of its line, and in that of its bundle."""
        knots = self.to_knots(state)
        tangents = knotted.tangents_of(knots)
        s, k = knots.shape[:2]
        seen, slopes = (
            part.reshape(s, k, -1)
            for part in look_up(context, self.grid, knots.reshape(-1, 3), tangents.reshape(-1, 3), ORDER)
        )
        assert context.evidence is not None
        shared = context.evidence[bundle]
        angles = (knots - self.centre)[..., None] * (2 * math.pi / torch.tensor(_WAVELENGTHS).to(knots))
        known = knots.new_full((s, k, 1), context.is_known)
        bent = functional.pad(state[:, 2:] - 2 * state[:, 1:-1] + state[:, :-2], (0, 0, 1, 1)) * 8
        parts = [seen, shared, angles.sin().flatten(2), angles.cos().flatten(2), state, tangents, bent, known]
        whole = (self.bundle(bundle) + self.time(_sinusoids(time)))[:, None]
        tokens = self.enter(torch.cat(parts, -1)) + self.place + whole
        for layer in self.layers:
            tokens = layer(tokens)
        mean = slopes.mean(1, keepdim=True).expand_as(slopes)
        return tokens, torch.cat([slopes, mean, shared.mean(1, keepdim=True).expand_as(slopes)], -1)


class _Layer(nn.Module):
    """Self-attention between the knots of one line, then a network of one hidden layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x: Float[Tensor, "s k w"]) -> Float[Tensor, "s k w"]:
        s, k, w = x.shape
        split = self.qkv(self.norms[0](x)).reshape(s, k, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(s, k, w))
        return x + self.inner(self.norms[1](x))


def _sinusoids(time: Float[Tensor, " s"]) -> Float[Tensor, "s 64"]:
    """Sinusoids of 1000·t, wavelengths from 2π to 10,000·2π."""
    rate = torch.exp(-math.log(10_000) * torch.arange(32, device=time.device) / 32)
    angle = 1000 * time[:, None] * rate.to(time)
    return torch.cat([angle.sin(), angle.cos()], -1)
