"""Metrics that compare descriptors voxel by voxel: a descriptor may be computed once and then warped."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import SimilarityMetric


class DescriptorMetric(SimilarityMetric):
    """``metric(f, m) = compare(describe(f), describe(m))``."""

    @abstractmethod
    def describe(self, image: Float[Tensor, "c i j k"]) -> Float[Tensor, "d i j k"]:
        """The descriptor of an image."""

    def compare(
        self,
        fixed: Float[Tensor, "d i j k"],
        moving: Float[Tensor, "d i j k"],
        mask: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean squared difference of descriptors, weighted by the mask."""
        squares = (fixed - moving).square().mean(0)
        return squares.mean() if mask is None else (squares * mask).sum() / mask.sum().clamp_min(1e-6)

    def __call__(
        self,
        fixed: Float[Tensor, "c i j k"],
        moving: Float[Tensor, "c i j k"],
        mask: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        if mask is not None:
            # A descriptor inside the mask may reach beyond it: what it finds there counts, but is not to be changed.
            fixed, moving = (torch.where(mask > 0, image, image.detach()) for image in (fixed, moving))
        return self.compare(self.describe(fixed), self.describe(moving), mask)
