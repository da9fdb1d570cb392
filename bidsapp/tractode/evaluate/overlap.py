"""Overlap of masks and labels: L. R. Dice, Ecology 26:297 (1945), doi:10.2307/1932409."""

from __future__ import annotations

from jaxtyping import Bool, Shaped
from torch import Tensor


def dice(first: Bool[Tensor, "*v"], second: Bool[Tensor, "*v"]) -> float:
    """``2 |A ∩ B| / (|A| + |B|)``; 1 for two empty masks."""
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2 * int((first & second).sum()) / total


def dice_of_labels(first: Shaped[Tensor, "*v"], second: Shaped[Tensor, "*v"]) -> dict[int, float]:
    """Dice of every label that either image holds, 0 (background) left out."""
    labels = sorted((set(first.unique().tolist()) | set(second.unique().tolist())) - {0})
    return {int(label): dice(first == label, second == label) for label in labels}
