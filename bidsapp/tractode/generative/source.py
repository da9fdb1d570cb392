"""Where the flow starts: streamlines of the atlas that came with the weights, shifted and bent at random.

The coupling of start and end is that of data-dependent couplings (Albergo et al. 2023, doi:10.48550/arXiv.2310.03725): a
subject's streamline is paired with the same streamline of the atlas, so the flow only has to learn what is the subject's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.generative import knots as knotted


@dataclass(frozen=True)
class SourceSettings:
    """``sd_mm`` of a whole line's random shift along each axis, then of its bends, each half as long as the one before.

    ``evenness`` is between 0 (every bundle as often as it has lines) and 1 (every bundle alike).
    """

    sd_mm: tuple[float, ...] = (1.5, 1.0, 0.7, 0.5)
    evenness: float = 0.5


@dataclass(frozen=True, eq=False)
class Source:
    """The atlas's lines by their knots, and the bundle of each."""

    knots: Float[Tensor, "s k 3"]
    bundle: Int[Tensor, " s"]
    settings: SourceSettings

    def counts(self, n_bundles: int) -> Int[Tensor, " b"]:
        return torch.bincount(self.bundle, minlength=n_bundles)

    def weights(self, n_bundles: int) -> Float[Tensor, " b"]:
        """How often each bundle is drawn; they add up to 1."""
        counts = self.counts(n_bundles).double()
        share = torch.where(counts > 0, counts.clamp_min(1) ** (1 - self.settings.evenness), torch.zeros_like(counts))
        return share / share.sum()

    def rows(self, bundles: Int[Tensor, " n"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """A line of each of the given bundles, by a uniform number in [0, 1)."""
        order = self.bundle.argsort(stable=True)
        counts = self.counts(int(self.bundle.max()) + 1)
        first = counts.cumsum(0) - counts
        return order[first[bundles] + (uniform * counts[bundles]).long().minimum(counts[bundles] - 1)]

    def examples(self, most: int = 12) -> tuple[Float[Tensor, "e k 3"], Int[Tensor, " e"]]:
        """Some lines of each bundle, evenly spaced among its rows, and their bundles: where a subject's evidence is gathered."""
        order = self.bundle.argsort(stable=True)
        counts = self.counts(int(self.bundle.max()) + 1)
        first = counts.cumsum(0) - counts
        rows = [
            order[a + torch.arange(min(n, most)) * n // min(n, most)]
            for a, n in zip(first.tolist(), counts.tolist(), strict=True)
            if n
        ]
        chosen = torch.cat(rows)
        return self.knots[chosen], self.bundle[chosen]

    def start(self, rows: Int[Tensor, " n"], draws: Float[Tensor, "n m 3"]) -> Float[Tensor, "n k 3"]:
        """Those lines, disturbed by standard normal ``draws`` (as many modes as ``sd_mm`` has)."""
        return self.knots[rows] + knotted.smooth_noise(draws, self.settings.sd_mm, self.knots.shape[1])
