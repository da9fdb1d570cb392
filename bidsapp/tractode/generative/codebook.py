"""What the codecs with a codebook share: every place of the latent stands for the entries of a table that are nearest to it.

A. van den Oord et al., "Neural discrete representation learning", 2017, doi:10.48550/arXiv.1711.00937. Departures of the corrected recipes:
the channels of a place may be shared out among several tables (product quantisation, H. Jégou et al. 2011,
doi:10.1109/TPAMI.2010.57), so that the rate can be set; entries that nothing chose for a while are put where data are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tractode.generative.autoencoder import PLACES
from tractode.generative.resnet_codec import Bottleneck

_PATIENCE = 100  # steps without being chosen


@dataclass(frozen=True)
class TableSettings:
    """``size`` entries in each of ``tables`` tables; ``revives``: whether entries that are not chosen are moved."""

    size: int = 32
    tables: int = 8
    revives: bool = True


class Codebook(Bottleneck):
    """Tables of entries, and the choice of the nearest. ``entries`` is made by the method: learned, or kept as a mean."""

    is_discrete = True
    entries: Tensor | nn.Parameter
    unused: Tensor

    def __init__(self, table: TableSettings, channels: int) -> None:
        super().__init__()
        if channels % table.tables:
            raise ValueError(f"{channels} channels cannot be shared out among {table.tables} tables.")
        self.table, self.channels, self.depth = table, channels, channels // table.tables
        # Counted as long unused at first, so that a table that is revived starts where data are.
        self.register_buffer("unused", torch.full((table.tables, table.size), float(_PATIENCE)))

    @property
    def bits(self) -> float:
        return PLACES[0] * PLACES[1] * self.table.tables * math.log2(self.table.size)

    @property
    def levels(self) -> tuple[int, ...]:
        return (self.table.size,) * (self.table.tables * PLACES[0] * PLACES[1])

    def codes(self, latents: Float[Tensor, "g c i j"]) -> Int[Tensor, "g n"]:
        chosen = self.squared_distance(self.rows(latents)).argmin(-1)
        return chosen.reshape(self.table.tables, len(latents), -1).movedim(0, 1).flatten(1).to(self.dtype)

    def values(self, codes: Shaped[Tensor, "g n"]) -> Float[Tensor, "g c i j"]:
        chosen = codes.long().reshape(len(codes), self.table.tables, -1).movedim(1, 0).flatten(1)
        return self.pictured(self.looked_up(chosen))

    def rows(self, latents: Float[Tensor, "g c i j"]) -> Float[Tensor, "t n d"]:
        """What each table has to find an entry for: its channels of every place."""
        parts = latents.reshape(len(latents), self.table.tables, self.depth, -1)
        return parts.permute(1, 0, 3, 2).flatten(1, 2)

    def pictured(self, rows: Float[Tensor, "t n d"]) -> Float[Tensor, "g c i j"]:
        """The inverse of `rows`."""
        parts = rows.reshape(self.table.tables, -1, PLACES[0] * PLACES[1], self.depth)
        return parts.permute(1, 0, 3, 2).reshape(-1, self.channels, *PLACES)

    def squared_distance(self, rows: Float[Tensor, "t n d"]) -> Float[Tensor, "t n k"]:
        """|z - e|² to every entry."""
        own, theirs = rows.square().sum(-1, keepdim=True), self.entries.square().sum(-1)[:, None]
        return torch.baddbmm(own + theirs, rows, self.entries.transpose(1, 2), alpha=-2)

    def looked_up(self, chosen: Int[Tensor, "t n"]) -> Float[Tensor, "t n d"]:
        """Entries by their numbers."""
        return torch.stack([entries[index] for entries, index in zip(self.entries, chosen, strict=True)])

    @torch.no_grad()
    def revive(
        self, rows: Float[Tensor, "t n d"], chosen: Int[Tensor, "t n"], generator: torch.Generator
    ) -> Shaped[Tensor, "t k"]:
        """Counts how long entries were not chosen, and moves those out of patience onto random rows; which they were."""
        used = torch.zeros_like(self.unused).scatter_(1, chosen, 1.0)
        self.unused.add_(1).mul_(1 - used)
        is_idle = (self.unused > _PATIENCE) & self.table.revives
        for table, idle in enumerate(is_idle):
            where = idle.nonzero().ravel()
            if len(where):
                drawn = torch.randint(rows.shape[1], (len(where),), generator=generator)
                self.entries[table, where] = rows[table, drawn.to(rows.device)]
                self.unused[table, where] = 0
        return is_idle
