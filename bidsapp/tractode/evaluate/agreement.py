"""Agreement between two sets of streamlines that should be the same, line by line."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import ShapeError, SpaceMismatchError
from tractode.fields import Streamlines
from tractode.ops import polyline


@dataclass(frozen=True)
class Agreement:
    """``n`` pairs; shares are fractions of 1; distances in mm. A line missing on either side counts as infinitely far."""

    n: int
    n_missing: int
    median_hausdorff_mm: float
    share_within_1mm: float
    share_within_01mm: float


def compare_lines(first: Streamlines, second: Streamlines) -> Agreement:
    """Pair the lines of two sets by ``per_streamline["seed"]`` (by position where absent) and measure their distances."""
    if first.space != second.space:
        raise SpaceMismatchError(f"Cannot compare streamlines of {first.space!r} with those of {second.space!r}.")
    one, two = _keys(first), _keys(second)
    common = sorted(one.keys() & two.keys())
    n = len(one.keys() | two.keys())
    distances = hausdorff_distances(first.select(torch.tensor([one[k] for k in common], dtype=torch.long)),
                                    second.select(torch.tensor([two[k] for k in common], dtype=torch.long)))  # fmt: skip
    padded = torch.cat((distances, distances.new_full((n - len(common),), torch.inf)))
    if n == 0:
        return Agreement(0, 0, 0.0, 1.0, 1.0)
    return Agreement(
        n=n,
        n_missing=n - len(common),
        median_hausdorff_mm=float(padded.median()),
        share_within_1mm=float((padded < 1).double().mean()),
        share_within_01mm=float((padded < 0.1).double().mean()),
    )


def hausdorff_distances(first: Streamlines, second: Streamlines) -> Float[Tensor, " s"]:
    """The Hausdorff distance of each pair of lines, mm."""
    if len(first) != len(second):
        raise ShapeError(f"Pairs need as many lines on both sides; got {len(first)} and {len(second)}.")
    pairs = [polyline.hausdorff(a.double(), b.double()) for a, b in zip(first, second, strict=True)]
    return torch.stack(pairs) if pairs else torch.zeros(0, dtype=torch.float64)


def _keys(lines: Streamlines) -> dict[int, int]:
    seeds = lines.per_streamline.get("seed")
    return {int(key): i for i, key in enumerate(range(len(lines)) if seeds is None else seeds.tolist())}
