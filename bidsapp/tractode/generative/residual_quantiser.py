"""Residual vector quantisation: a vector as the sum of one codeword of each of many codebooks, coarse to fine.

B.-H. Juang, A. H. Gray, "Multiple stage vector quantization for speech coding", ICASSP 1982, doi:10.1109/ICASSP.1982.1171604;
N. Zeghidour et al., "SoundStream: an end-to-end neural audio codec", 2021, doi:10.48550/arXiv.2107.03312. Codebooks are
exponential averages of what was assigned to them (A. van den Oord et al., "Neural discrete representation learning", 2017,
doi:10.48550/arXiv.1711.00937, appendix); codewords that are hardly used begin anew at a vector of the batch.

Any first stages are a code of their own, of a lower rate. A few partial sums are kept from stage to stage (a beam), and the best
of the last is taken.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_TILE = 4096
_RARE = 0.03
_REBORN = 0.3


class ResidualQuantiser(nn.Module):
    """``codebooks[q]`` holds ``k`` codewords of ``d`` numbers; ``count`` and ``total`` are the averages behind them."""

    codebooks: Tensor
    count: Tensor
    total: Tensor

    def __init__(self, n_stages: int, n_codewords: int, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(n_stages, n_codewords, n_latent))
        self.register_buffer("count", torch.ones(n_stages, n_codewords))
        self.register_buffer("total", torch.zeros(n_stages, n_codewords, n_latent))

    def codes(self, latents: Float[Tensor, "s d"], n_stages: int | None = None, beam: int = 1) -> Int[Tensor, "s q"]:
        """A codeword of each stage; in the precision of the latents. Sums are formed in one order, whatever the batch."""
        n = n_stages or len(self.codebooks)
        books = self.codebooks[:n].to(latents)
        parts = [_searched(part, books, beam) for part in latents.detach().split(_TILE)]
        return torch.cat(parts) if parts else torch.zeros(0, n, dtype=torch.long)

    def vectors(self, codes: Int[Tensor, "s q"]) -> Float[Tensor, "s d"]:
        """The sum of the codewords. Differentiable in the codebooks."""
        stage = torch.arange(codes.shape[1], device=codes.device)
        return self.codebooks[stage, codes].sum(1)

    @torch.no_grad()
    def begin(self, latents: Float[Tensor, "s d"], generator: torch.Generator, rounds: int = 4) -> None:
        """Codebooks by a few rounds of k-means each, on what the stages before leave."""
        left = latents
        for stage in range(len(self.codebooks)):
            rows = torch.randperm(len(left), generator=generator)[: self.codebooks.shape[1]]
            self.codebooks[stage] = left[rows]
            for _ in range(rounds):
                chosen = self._average(stage, left, 0.0, generator)
            left = left - self.codebooks[stage][chosen]

    @torch.no_grad()
    def learn(self, latents: Float[Tensor, "s d"], decay: float, generator: torch.Generator) -> Int[Tensor, "s q"]:
        """Move every codebook towards what a batch assigns to it (greedily), coarse to fine; returns what was assigned."""
        left, codes = latents, []
        for stage in range(len(self.codebooks)):
            before = self.codebooks[stage].clone()
            chosen = self._average(stage, left, decay, generator)
            left = left - before[chosen]
            codes.append(chosen)
        return torch.stack(codes, 1)

    def _average(
        self, stage: int, left: Float[Tensor, "s d"], decay: float, generator: torch.Generator
    ) -> Int[Tensor, " s"]:
        book = self.codebooks[stage]
        chosen = _nearest(left, book)
        count = torch.bincount(chosen, minlength=len(book)).to(left)
        total = torch.zeros_like(book).index_add_(0, chosen, left)
        self.count[stage].mul_(decay).add_(count, alpha=1 - decay)
        self.total[stage].mul_(decay).add_(total, alpha=1 - decay)
        rare = self.count[stage] < _RARE
        n_rare = int(rare.sum())
        if n_rare:
            rows = torch.randint(len(left), (n_rare,), generator=generator)
            self.count[stage, rare] = _REBORN
            self.total[stage, rare] = _REBORN * left[rows]
        self.codebooks[stage] = self.total[stage] / self.count[stage][:, None]
        return chosen


def _nearest(vectors: Float[Tensor, "s d"], book: Float[Tensor, "k d"]) -> Int[Tensor, " s"]:
    return (book.square().sum(1) - 2 * vectors @ book.mT).argmin(1)


def _searched(vectors: Float[Tensor, "s d"], books: Float[Tensor, "q k d"], beam: int) -> Int[Tensor, "s q"]:
    """The codes of the best sum that a beam finds; a beam of 1 takes the nearest codeword at every stage."""
    n, width = len(vectors), books.shape[1]
    left = vectors[:, None]
    found = torch.zeros(n, 1, 0, dtype=torch.long, device=vectors.device)
    for book in books:
        # |left − c|² for every partial sum that is kept and every codeword
        cost = book.square().sum(1) - 2 * left @ book.mT + left.square().sum(-1, keepdim=True)
        kept = min(beam, cost.shape[1] * width)
        best = cost.flatten(1).topk(kept, dim=1, largest=False).indices
        parent, code = best // width, best % width
        left = left.gather(1, parent[..., None].expand(-1, -1, left.shape[-1])) - book[code]
        found = found.gather(1, parent[..., None].expand(-1, -1, found.shape[-1]))
        found = torch.cat([found, code[..., None]], -1)
    return found[:, 0]
