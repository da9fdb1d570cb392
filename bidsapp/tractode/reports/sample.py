"""A bounded, evenly spread sample of streamlines that come in batches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields.streamlines import Streamlines

SHOWN = 20_000
"""Streamlines held for the pictures; the others go to the file as they come."""


class StreamlineSample:
    """Every n-th streamline of all that were added, n the least power of two that keeps at most ``most``.

    Which ones are kept depends on their order only, not on the batches. Lengths (mm) are kept of all.
    """

    def __init__(self, space: str, most: int = SHOWN) -> None:
        self.space, self.most = space, most
        self.n_seen = 0
        self._spacing = 1
        self._index: list[int] = []
        self._parts: list[Streamlines] = []
        self._lengths: list[Tensor] = []

    def add(self, lines: Streamlines) -> None:
        """The next streamlines; only a few of them are held."""
        self._lengths.append(lines.lengths().detach().cpu())
        first = -self.n_seen % self._spacing
        chosen = torch.arange(min(first, len(lines)), len(lines), self._spacing)
        self._parts.append(_plain(lines.select(chosen.to(lines.points.device))))
        self._index += (chosen + self.n_seen).tolist()
        self.n_seen += len(lines)
        while len(self._index) > self.most:
            self._thin()

    def _thin(self) -> None:
        self._spacing *= 2
        kept = [k for k, index in enumerate(self._index) if index % self._spacing == 0]
        self._parts = [Streamlines.concatenate(self._parts, self.space).select(torch.tensor(kept, dtype=torch.long))]
        self._index = [self._index[k] for k in kept]

    @property
    def lines(self) -> Streamlines:
        """The sample, in order."""
        return Streamlines.concatenate(self._parts, self.space)

    @property
    def lengths(self) -> Float[Tensor, " s"]:
        """Of all streamlines added, mm."""
        return torch.cat(self._lengths) if self._lengths else torch.zeros(0)


def _plain(lines: Streamlines) -> Streamlines:
    return Streamlines(lines.points.detach().cpu(), lines.offsets.cpu(), lines.space)
