"""The learned part of the bundle codec: a line to a latent vector, its codewords, and back.

The latent vector is the line's Karhunen-Loève transform (K. Karhunen 1947; N. Ahmed, K. R. Rao, *Orthogonal transforms for
digital signal processing*, 1975, doi:10.1007/978-3-642-45450-9), an orthonormal one: distances between latents are distances
between lines (times √31, as root mean squares over the points), so the quantiser's errors are errors in mm. `residual_quantiser` holds the
codewords; after them a small network adds what the transform leaves out. Encoders that were learned lost (decision 0011).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tractode.generative.line_code import N_POINTS
from tractode.generative.residual_quantiser import ResidualQuantiser

_NUMBERS = 3 * N_POINTS


@dataclass(frozen=True)
class CodecSettings:
    """Sizes. ``stages`` are those a code has by default; the codebooks of ``most_stages`` are there for finer ones."""

    n_latent: int = 48
    n_codewords: int = 1024
    stages: int = 16
    most_stages: int = 24
    width: int = 256
    beam: int = 1

    def record(self) -> dict[str, Any]:
        return asdict(self)


class CodecNetwork(nn.Module):
    """``mean`` (93) and the orthonormal ``basis`` (93, d) are of lines in mm; ``spread`` is each latent's standard deviation."""

    mean: Tensor
    basis: Tensor
    spread: Tensor

    def __init__(self, settings: CodecSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or CodecSettings()
        d, width = self.settings.n_latent, self.settings.width
        self.register_buffer("mean", torch.zeros(_NUMBERS))
        self.register_buffer("basis", torch.eye(_NUMBERS)[:, :d].contiguous())
        self.register_buffer("spread", torch.ones(d))
        self.quantiser = ResidualQuantiser(self.settings.most_stages, self.settings.n_codewords, d)
        self.finish = nn.Sequential(
            nn.Linear(d, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, _NUMBERS)
        )
        last = self.finish[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @torch.no_grad()
    def begin(self, lines: Float[Tensor, "s 31 3"], generator: torch.Generator) -> None:
        """Transform and codebooks from a sample of lines."""
        flat = lines.flatten(1).double()
        self.mean.copy_(flat.mean(0))
        variance, basis = torch.linalg.eigh(torch.cov((flat - flat.mean(0)).mT))
        d = self.settings.n_latent
        self.basis.copy_(basis.flip(1)[:, :d])
        self.spread.copy_(variance.flip(0)[:d].clamp_min(1e-6).sqrt())
        self.quantiser.begin(self.latents(lines.float()), generator)

    def latents(self, lines: Float[Tensor, "s 31 3"]) -> Float[Tensor, "s d"]:
        """In mm, before quantisation; in the precision of the lines."""
        return (lines.flatten(1) - self.mean.to(lines)) @ self.basis.to(lines)

    def lines(self, latents: Float[Tensor, "s d"]) -> Float[Tensor, "s 31 3"]:
        """RAS+ mm."""
        flat: Tensor = latents @ self.basis.mT + self.mean + self.finish(latents / self.spread)
        return flat.unflatten(1, (N_POINTS, 3))
