"""Mutual information of two images from a joint histogram with cubic B-spline Parzen windows.

P. Thévenaz, M. Unser, "Optimization of mutual information for multiresolution image registration", IEEE TIP 9:2083 (2000),
doi:10.1109/83.887976; the normalised form, which changes less with the overlap, is that of C. Studholme et al., Pattern
Recognition 32:71 (1999), doi:10.1016/S0031-3203(98)00091-0.

Departure: both images get the cubic window (the 2000 paper gives one of them a box), so that the cost is smooth in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import SimilarityMetric

_TINY = 1e-10


def parzen(unit: Float[Tensor, " n"], bins: int) -> Float[Tensor, "n bins"]:
    """Cubic B-spline weights of intensities in [0, 1] (others are clamped) over ``bins`` bins; rows sum to 1."""
    # Two bins are kept free on each side, so that the whole window always lies on the axis.
    position = unit.clamp(0, 1) * (bins - 5) + 2
    distance = (position[:, None] - torch.arange(bins, dtype=unit.dtype, device=unit.device)).abs()
    return ((2 - distance).clamp_min(0) ** 3 - 4 * (1 - distance).clamp_min(0) ** 3) / 6


def entropies(joint: Float[Tensor, "a b"]) -> tuple[Tensor, Tensor, Tensor]:
    """Entropies (nats) of the first image, the second, and both together, of an unnormalised joint histogram."""
    p = joint / joint.sum().clamp_min(_TINY)

    def entropy(q: Tensor) -> Tensor:
        return -(q * (q + _TINY).log()).sum()

    return entropy(p.sum(1)), entropy(p.sum(0)), entropy(p)


def mutual_information(joint: Float[Tensor, "a b"]) -> Float[Tensor, ""]:
    """``H(F) + H(M) − H(F, M)``, nats."""
    first, second, both = entropies(joint)
    return first + second - both


def normalised_mutual_information(joint: Float[Tensor, "a b"]) -> Float[Tensor, ""]:
    """Studholme's ``(H(F) + H(M)) / H(F, M)``: 1 for independent images, 2 for images that determine each other."""
    first, second, both = entropies(joint)
    return (first + second) / both.clamp_min(_TINY)


def unit_range(
    values: Tensor, inside: Tensor | None = None, low: float = 0.005, high: float = 0.995
) -> Float[Tensor, "..."]:
    """Values scaled so that the given quantiles (over ``inside``) become 0 and 1; beyond them clamped."""
    sample = (values if inside is None else values[inside]).detach().flatten()
    # torch.quantile refuses more than 16 M numbers; a regular thinning is enough for a quantile.
    sample = sample[:: max(1, sample.numel() // 1_000_000)].double()
    if sample.numel() == 0:
        return torch.zeros_like(values)
    lower, upper = torch.quantile(sample, torch.tensor([low, high], dtype=torch.float64, device=sample.device)).tolist()
    if upper <= lower:
        lower, upper = float(sample.min()), float(sample.max())
    return ((values - lower) / max(upper - lower, 1e-12)).clamp(0, 1)


@dataclass(frozen=True)
class MutualInformation(SimilarityMetric):
    """Minus the normalised mutual information of the first channels; intensities are scaled by their own extremes."""

    bins: int = 32
    is_multimodal: ClassVar[bool] = True
    invariances: ClassVar[frozenset[str]] = frozenset({"linear", "mapping"})

    def __call__(
        self,
        fixed: Float[Tensor, "c i j k"],
        moving: Float[Tensor, "c i j k"],
        mask: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        inside = torch.ones_like(fixed[0], dtype=torch.bool) if mask is None else mask > 0
        weights = torch.ones_like(fixed[0])[inside] if mask is None else mask[inside].to(fixed)
        first = parzen(between_extremes(fixed[0][inside]), self.bins)
        second = parzen(between_extremes(moving[0][inside]), self.bins)
        return -normalised_mutual_information((first * weights[:, None]).mT @ second)


def between_extremes(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Scaled so that the least value is 0 and the greatest 1."""
    low, high = values.detach().min(), values.detach().max()
    return (values - low) / (high - low).clamp_min(1e-12)
