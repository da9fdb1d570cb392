"""Rules on finished streamlines: what they share, which is cutting lines and choosing among them.

A line is seen as two halves that start at its seed point (``per_streamline["seed_point"]``), because trackers decide
each half on its own. Without that entry the first point counts as the seed, and the line is one half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tractode.contracts import Rule
from tractode.fields import Streamlines

LARGEST_PIECE = 1 << 20
"""Points of the lines that are judged at a time: a rule may need some 200 bytes for each."""


def seed_points(lines: Streamlines) -> Int[Tensor, " s"]:
    """The index of each line's seed within the line; 0 where the tracker does not say."""
    known = lines.per_streamline.get("seed_point")
    return torch.zeros_like(lines.n_points) if known is None else known.to(lines.offsets)


def cut(
    lines: Streamlines, first: Int[Tensor, " s"], last: Int[Tensor, " s"], is_kept: Bool[Tensor, " s"]
) -> Streamlines:
    """The kept lines from point ``first`` to point ``last``, both included and counted within each line."""
    index = is_kept.nonzero().ravel()
    counts = (last - first + 1)[index]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    total = int(offsets[-1]) if len(counts) else 0
    within = torch.arange(total, device=counts.device) - torch.repeat_interleave(offsets[:-1], counts)
    rows = torch.repeat_interleave((lines.offsets[:-1] + first)[index], counts) + within
    data = {key: value[index] for key, value in lines.per_streamline.items()}
    if "seed_point" in data:
        data["seed_point"] = data["seed_point"] - first[index].to(data["seed_point"])
    per_point = {key: value[rows] for key, value in lines.per_point.items()}
    return Streamlines(lines.points[rows], offsets, lines.space, per_point, data)


@dataclass(frozen=True, eq=False)
class Halves:
    """The points of lines in the order in which they were tracked: for each line its first half outwards, then its second.

    ``rows`` indexes the lines' points, ``half`` is 2 × the line, plus 1 in the second half, and ``step`` counts from 1
    at the first point after the seed. The seeds themselves are not among them.
    """

    rows: Int[Tensor, " m"]
    half: Int[Tensor, " m"]
    step: Int[Tensor, " m"]
    length: Int[Tensor, " h"]

    @classmethod
    def of(cls, lines: Streamlines) -> Halves:
        seed = seed_points(lines)
        first, second = seed, lines.n_points - 1 - seed
        length = torch.stack((first, second), dim=1).ravel().clamp_min(0)
        half = torch.repeat_interleave(torch.arange(len(length), device=length.device), length)
        starts = length.cumsum(0) - length
        step = torch.arange(len(half), device=length.device) - starts[half] + 1
        way = torch.where(half % 2 == 0, -1, 1)
        rows = (lines.offsets[:-1] + seed)[half // 2] + way * step
        return cls(rows, half, step, length)

    def first_step_where(self, condition: Bool[Tensor, " m"]) -> Int[Tensor, " h"]:
        """The first step of each half at which a condition holds; one more than the half's length where it never does."""
        out = self.length + 1
        chosen = condition.nonzero().ravel()
        return out.scatter_reduce(0, self.half[chosen], self.step[chosen], "amin")


def apply_all(rules: Sequence[Rule], lines: Streamlines) -> Streamlines:
    """One rule after the other, for so many lines at a time that memory does not grow with their number."""
    if not rules or not len(lines):
        return lines
    done = []
    for piece in _pieces(lines, LARGEST_PIECE):
        left = piece
        for rule in rules:
            left = rule.apply(left) if len(left) else left
        done.append(left)
    return done[0] if len(done) == 1 else Streamlines.concatenate(done, lines.space)


def _pieces(lines: Streamlines, n_points: int) -> Iterator[Streamlines]:
    """Consecutive lines of about so many points."""
    piece = lines.offsets[:-1] // n_points
    bounds = [0, *((piece.diff() > 0).nonzero().ravel() + 1).tolist(), len(lines)]
    if len(bounds) == 2:
        yield lines
        return
    for first, last in pairwise(bounds):
        yield lines.select(torch.arange(first, last, device=lines.offsets.device))
