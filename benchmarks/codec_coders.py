"""Every codec behind one face: what a benchmark asks of a published model, of ours and of plain transform coding alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from codec_klt import Klt
from codec_scores import perplexity
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import Codes
from tractode.fields import Streamlines
from tractode.generative import CODECS
from tractode.generative.bundle_groups import N_LINES, grouped
from tractode.generative.codec import BundleCodec
from tractode.generative.knots import points_of
from tractode.generative.line_code import lines31
from tractode.generative.resnet_codec import GroupCodec
from tractode.generative.vq_diff import VqDiff
from tractode.io.weights import read_weights

Latents = Float[Tensor, "r *any"]


@dataclass(frozen=True, eq=False)
class Coder:
    """A codec, and its two halves: ``before`` the bottleneck, ``after`` it, and the lines of what stands after it (64 points)."""

    name: str
    codec: Any
    n_bytes: int
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def bits(self) -> float:
        return float(self.codec.bits_per_streamline)

    def decoded(self, streamlines: Streamlines) -> tuple[Codes, Float[Tensor, "s 64 3"]]:
        """Through the codec and back."""
        codes = self.codec.encode(streamlines)
        return codes, self.codec.decode(codes, 64).points.reshape(-1, 64, 3).float()

    def before(self, streamlines: Streamlines) -> Latents:
        with torch.no_grad():
            if isinstance(self.codec, GroupCodec):
                return self.codec.latents(grouped(streamlines))
            return self.codec.latents(lines31(streamlines).float())  # type: ignore[no-any-return]

    def after(self, before: Latents) -> Latents:
        with torch.no_grad():
            if isinstance(self.codec, GroupCodec):
                squeeze = self.codec.network.bottleneck
                return torch.cat([squeeze.values(squeeze.codes(tile)) for tile in before.split(16)])
            return self.codec.dequantise(self.codec.quantise(before))  # type: ignore[no-any-return]

    def lines(self, after: Latents) -> Float[Tensor, "s 64 3"]:
        """Decoded lines by 64 points."""
        with torch.no_grad():
            if isinstance(self.codec, GroupCodec):
                squeeze = self.codec.network.bottleneck
                tiles = [self.codec.groups(squeeze.widen(tile)) for tile in after.split(16)]
                return torch.cat(tiles).flatten(0, 1)
            return points_of(self.codec.lines(after), 64).float()

    @torch.no_grad()
    def used(self, codes: Codes, streamlines: Streamlines) -> dict[str, float | None]:
        """Perplexity of the codes, and the bits that an ideal coder of single codes needs a streamline."""
        if isinstance(self.codec, VqDiff) and not self.codec.is_discrete:
            weights = self.codec.network.bottleneck.weights(self.before(streamlines))  # type: ignore[operator]
            entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1)
            return {"perplexity": None, "entries_mixed": float(f"{float(entropy.mean().exp()):.4g}")}
        if not self.codec.is_discrete:
            return {"perplexity": None}
        values = codes.values.long()
        if not isinstance(self.codec, GroupCodec):
            found, bits = perplexity(values)
            return {"perplexity": found, "entropy_bits_per_streamline": bits}
        # Places share an alphabet: the table, or the channel.
        places = values.reshape(len(values), -1, 256).movedim(1, 0).flatten(1)
        found, bits = perplexity(places.T)
        return {"perplexity": found, "entropy_bits_per_streamline": bits * 256 / N_LINES}


def published(folder: Path) -> Coder:
    """A published codec that was trained: the folder is named <model>-<recipe>."""
    tensors, settings = read_weights(folder)
    name, _, recipe = folder.name.rpartition("-")
    codec = CODECS[settings["codec"]].from_weights(tensors, settings)
    told = name if recipe == "corrected" else f"{name}_{recipe}"
    return Coder(told, codec, _bytes(folder), settings["training"])


def ours(folder: Path) -> Coder:
    tensors, settings = read_weights(folder)
    codec = BundleCodec.from_weights(tensors, settings)
    # Of the shipped file, the part that codes: neither the classifier nor the prior.
    n_bytes = 2 * sum(v.numel() for k, v in tensors.items() if not k.startswith(("namer.", "prior.")))
    return Coder("tractode", codec, n_bytes, settings.get("training", {}))


def klt(learned: Float[Tensor, "s 31 3"], step: float) -> Coder:
    codec = Klt(learned, step)
    return Coder("klt", codec, codec.n_bytes)


def variants(coder: Coder) -> list[Coder]:
    """The same weights at other rates."""
    codec = coder.codec
    makers: list[Callable[[], Any]] = []
    if isinstance(codec, BundleCodec):
        makers = [lambda n=n: codec.with_stages(n) for n in range(2, codec.most_stages + 1)]  # type: ignore[misc]
    elif coder.name.startswith("ae") and codec.is_discrete:
        makers = [lambda n=n: codec.with_bits(n) for n in (3, 4, 5, 6, 8)]  # type: ignore[misc]
    elif isinstance(codec, VqDiff) and not codec.is_discrete:
        makers = [lambda: codec, codec.chosen]
    else:
        makers = [lambda: codec]
    return [Coder(coder.name, make(), coder.n_bytes, coder.training) for make in makers]


def searched(coder: Coder) -> list[Coder]:
    """Ours where the encoder looks for the best codes among several, at a few rates."""
    stages = [n for n in (8, 12, 16, 24) if n <= coder.codec.most_stages]
    return [Coder("tractode_beam", coder.codec.with_stages(n).with_beam(4), coder.n_bytes) for n in stages]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
