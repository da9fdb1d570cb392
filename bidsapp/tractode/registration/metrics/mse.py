"""Mean squared difference of intensities: for images of one contrast and scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tractode.registration.metrics.descriptor import DescriptorMetric


@dataclass(frozen=True)
class MeanSquares(DescriptorMetric):
    """The image is its own descriptor."""

    is_multimodal: ClassVar[bool] = False

    def describe(self, image: Float[Tensor, "c i j k"]) -> Float[Tensor, "c i j k"]:
        return image
