"""The correlation ratio: how well the intensities of one image are a function of the other's.

A. Roche, G. Malandain, X. Pennec, N. Ayache, "The correlation ratio as a new similarity measure for multimodal image
registration", MICCAI 1998, LNCS 1496:1115, doi:10.1007/BFb0056301.

Departures: bins are cubic B-spline windows, so that the cost is smooth; and the paper's ratio asks how well M is a function
of F alone, here it is the mean of that and of how well F is a function of M, which treats both images alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import SimilarityMetric
from tractode.registration.metrics.mutual_information import between_extremes, parzen


def correlation_ratio(
    given: Float[Tensor, "n bins"], values: Float[Tensor, " n"], weight: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """``η² = 1 − E[var(Y | X)] / var(Y)`` of values ``Y`` under the windows of ``X``; 1 for a function, 0 for chance."""
    weighted = given * weight[:, None]
    total = weight.sum().clamp_min(1e-10)
    mean = (weight * values).sum() / total
    centred = values - mean
    variance = (weight * centred.square()).sum() / total
    # Σ over bins of (bin's sum)² / (bin's weight) is the variance that the bins' means explain.
    sums, counts = weighted.mT @ centred, weighted.sum(0)
    explained = (sums.square() / counts.clamp_min(1e-10)).sum() / total
    return explained / variance.clamp_min(1e-10)


@dataclass(frozen=True)
class CorrelationRatio(SimilarityMetric):
    """``1 − (η²(M|F) + η²(F|M)) / 2`` of the first channels; bins span each image's own extremes.

    ``symmetric=False`` is the ratio of the paper, ``1 − η²(M|F)``.
    """

    bins: int = 32
    symmetric: bool = True
    is_multimodal: ClassVar[bool] = True
    invariances: ClassVar[frozenset[str]] = frozenset({"linear"})

    def __call__(
        self,
        fixed: Float[Tensor, "c i j k"],
        moving: Float[Tensor, "c i j k"],
        mask: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        inside = torch.ones_like(fixed[0], dtype=torch.bool) if mask is None else mask > 0
        weight = torch.ones_like(fixed[0])[inside] if mask is None else mask[inside].to(fixed)
        first, second = between_extremes(fixed[0][inside]), between_extremes(moving[0][inside])
        ratio = correlation_ratio(parzen(first, self.bins), second, weight)
        if self.symmetric:
            ratio = (ratio + correlation_ratio(parzen(second, self.bins), first, weight)) / 2
        return 1 - ratio
