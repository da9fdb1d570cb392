"""Several channels at once (T1w, T2w, FA …), each with its own metric and weight.

B. B. Avants et al., "Multivariate analysis of structural and diffusion imaging in traumatic brain injury", Academic Radiology
15:1360 (2008), doi:10.1016/j.acra.2008.07.007: the cost is the weighted mean of the channels' costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import SimilarityMetric
from tractode.errors import ShapeError
from tractode.registration.metrics.descriptor import DescriptorMetric


@dataclass(frozen=True)
class Channels(SimilarityMetric):
    """Channel ``n`` of both images is compared by metric ``n``: ``Σ wₙ costₙ / Σ wₙ``.

    Metrics differ in scale (mutual information in nats, squared differences of descriptors): weights are between costs, not
    between shares of their sum.
    """

    parts: tuple[tuple[SimilarityMetric, float], ...]

    def __post_init__(self) -> None:
        if not self.parts or min(weight for _, weight in self.parts) < 0 or self._total() <= 0:
            raise ValueError("A metric of several channels needs at least one part, and weights that are not negative.")

    @property
    def is_multimodal(self) -> bool:  # type: ignore[override]
        return all(metric.is_multimodal for metric, _ in self.parts)

    @property
    def needs_grid(self) -> bool:  # type: ignore[override]
        return any(metric.needs_grid for metric, _ in self.parts)

    @property
    def invariances(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset.intersection(*(metric.invariances for metric, _ in self.parts))

    def __call__(
        self,
        fixed: Float[Tensor, "c i j k"],
        moving: Float[Tensor, "c i j k"],
        mask: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        self._check(len(fixed), len(moving))
        costs = [
            weight * metric(fixed[n : n + 1], moving[n : n + 1], mask) for n, (metric, weight) in enumerate(self.parts)
        ]
        return torch.stack(costs).sum() / self._total()

    def _total(self) -> float:
        return sum(weight for _, weight in self.parts)

    def _check(self, *counts: int) -> None:
        if set(counts) != {len(self.parts)}:
            raise ShapeError(f"A metric of {len(self.parts)} channels was given images of {counts}.")


@dataclass(frozen=True)
class DescriptorChannels(Channels, DescriptorMetric):
    """The same where every part is a descriptor: described once, then warped, as one descriptor of all channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(metric, DescriptorMetric) for metric, _ in self.parts):
            raise ValueError("Every part must be a descriptor; Channels takes any metric.")

    def describe(self, image: Float[Tensor, "c i j k"]) -> Float[Tensor, "d i j k"]:
        self._check(len(image))
        described = [
            (metric.describe(image[n : n + 1]), weight)
            for n, (metric, weight) in enumerate(self.parts)
            if isinstance(metric, DescriptorMetric)
        ]
        n_all = sum(len(part) for part, _ in described)
        # The mean of squares over all channels is then the weighted mean of the parts' own means.
        scaled = [part * (weight * n_all / (self._total() * len(part))) ** 0.5 for part, weight in described]
        return torch.cat(scaled)
