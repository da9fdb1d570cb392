"""Names for streamlines: a classifier on the codes of a bundle codec, with probabilities that mean what they say.

No paper. A perceptron with residual blocks (K. He et al., CVPR 2016, doi:10.1109/CVPR.2016.90) sees what a line's codes say, the
dequantised latent, and gives each bundle and "no bundle" a probability; one temperature makes them true (C. Guo et al.,
"On calibration of modern neural networks", ICML 2017, doi:10.48550/arXiv.1706.04599). A line is judged by itself: nothing is
compared with lines of an atlas, neither in space nor in the latent space, when names are given.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

OTHER = "other"
_TILE = 4096


class BundleNamer(nn.Module):
    """Latents → classes: the bundles of ``names``, then `OTHER`, whose index is ``len(names)``.

    ``mean`` and ``spread`` bring the latents to unit scale; ``temperature`` divides the logits where probabilities are asked for.
    """

    mean: Tensor
    spread: Tensor
    temperature: Tensor

    def __init__(self, names: tuple[str, ...], n_latent: int, width: int = 256, blocks: int = 2) -> None:
        super().__init__()
        self.names, self.width = tuple(names), width
        self.register_buffer("mean", torch.zeros(n_latent))
        self.register_buffer("spread", torch.ones(n_latent))
        self.register_buffer("temperature", torch.ones(()))
        self.first = nn.Linear(n_latent, width)
        self.blocks = nn.ModuleList([_Block(width) for _ in range(blocks)])
        self.last = nn.Linear(width, len(self.names) + 1)

    def settings(self) -> dict[str, object]:
        """What `from_settings` needs to make this network again."""
        return {
            "names": list(self.names),
            "n_latent": len(self.mean),
            "width": self.width,
            "blocks": len(self.blocks),
        }

    @classmethod
    def from_settings(cls, settings: dict[str, object]) -> BundleNamer:
        names, n_latent, width, blocks = (settings[key] for key in ("names", "n_latent", "width", "blocks"))
        return cls(tuple(names), int(n_latent), int(width), int(blocks))  # type: ignore[arg-type, call-overload]

    def forward(self, latents: Float[Tensor, "s d"]) -> Float[Tensor, "s k"]:
        """Logits."""
        state = self.first((latents - self.mean) / self.spread)
        for block in self.blocks:
            state = block(state)
        found: Float[Tensor, "s k"] = self.last(functional.gelu(state))
        return found

    @torch.no_grad()
    def probabilities(self, latents: Float[Tensor, "s d"]) -> Float[Tensor, "s k"]:
        """Of each class, calibrated. Lines go through in tiles, padded to one size, so that none depends on how many stand beside it."""
        found = []
        for part in latents.split(_TILE):
            padded = functional.pad(part, (0, 0, 0, _TILE - len(part)))
            found.append((self(padded)[: len(part)] / self.temperature).softmax(1))
        return torch.cat(found) if found else latents.new_zeros(0, len(self.names) + 1)

    def named(self, latents: Float[Tensor, "s d"], least: float = 0.5) -> tuple[Int[Tensor, " s"], Float[Tensor, " s"]]:
        """The likeliest class and its probability; where a bundle's is below ``least``: `OTHER`, with what all but that bundle have."""
        best = self.probabilities(latents).max(1)
        is_doubtful = (best.values < least) & (best.indices < len(self.names))
        index = torch.where(is_doubtful, torch.full_like(best.indices, len(self.names)), best.indices)
        return index, torch.where(is_doubtful, 1 - best.values, best.values)


class _Block(nn.Module):
    """``x + W2 gelu(W1 norm(x))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, state: Float[Tensor, "s w"]) -> Float[Tensor, "s w"]:
        found: Float[Tensor, "s w"] = state + self.outer(functional.gelu(self.inner(self.norm(state))))
        return found
