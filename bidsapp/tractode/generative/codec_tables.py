"""What the bundle codec has learned: an orthonormal transform of lines, and codewords.

The latent vector is the line's Karhunen-Loève transform (N. Ahmed, K. R. Rao, *Orthogonal transforms for digital signal
processing*, 1975, doi:10.1007/978-3-642-45450-9): distances between latents are distances between lines (√31 times the root
mean square over the points), so the quantiser's errors are errors in mm. Networks in place of the transform or after it lost
(decision 0011).
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

    def record(self) -> dict[str, Any]:
        return asdict(self)


class CodecTables(nn.Module):
    """``mean`` (93) and the orthonormal ``basis`` (93, d) are of lines in mm."""

    mean: Tensor
    basis: Tensor

    def __init__(self, settings: CodecSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or CodecSettings()
        d = self.settings.n_latent
        self.register_buffer("mean", torch.zeros(_NUMBERS))
        self.register_buffer("basis", torch.eye(_NUMBERS)[:, :d].contiguous())
        self.quantiser = ResidualQuantiser(self.settings.most_stages, self.settings.n_codewords, d)

    @torch.no_grad()
    def begin(self, lines: Float[Tensor, "s 31 3"], generator: torch.Generator) -> None:
        """Transform and codebooks from a sample of lines."""
        flat = lines.flatten(1).double()
        self.mean.copy_(flat.mean(0))
        _, basis = torch.linalg.eigh(torch.cov((flat - flat.mean(0)).mT))
        self.basis.copy_(basis.flip(1)[:, : self.settings.n_latent])
        self.quantiser.begin(self.latents(lines.float()), generator)

    def latents(self, lines: Float[Tensor, "s 31 3"]) -> Float[Tensor, "s d"]:
        """In mm, before quantisation; in the precision of the lines."""
        return (lines.flatten(1) - self.mean.to(lines)) @ self.basis.to(lines)

    def lines(self, latents: Float[Tensor, "s d"]) -> Float[Tensor, "s 31 3"]:
        """RAS+ mm, in the precision of the latents."""
        flat = latents @ self.basis.to(latents).mT + self.mean.to(latents)
        return flat.unflatten(1, (N_POINTS, 3))
