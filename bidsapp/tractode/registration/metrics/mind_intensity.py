"""Structure and brightness together, for two images of one contrast: `mind` and the intensities themselves.

M. P. Heinrich et al., "MIND: Modality independent neighbourhood descriptor for multi-modal deformable registration", Medical
Image Analysis 16:1423 (2012), doi:10.1016/j.media.2012.05.008, beside the oldest measure there is.

A descriptor of differences between neighbours knows where borders are, not which tissue lies on either side: between two
people it may settle on the wrong fold, which the intensities would tell apart. Where they mean the same on both sides,
they are worth having. Departure: both are one descriptor, so that Gauss–Newton solves for them at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.registration.metrics.descriptor import DescriptorMetric
from tractode.registration.metrics.mind import MIND


@dataclass(frozen=True)
class MINDAndIntensity(DescriptorMetric):
    """``cost = (MIND's + intensity · mean squared difference of intensities) / (1 + intensity)``.

    Images must be scaled alike; `register` brings both to [0, 1] by their quantiles first.
    """

    intensity: float = 4.0
    mind: MIND = field(default_factory=lambda: MIND(radius=1, dilation=1))
    is_multimodal: ClassVar[bool] = False

    def describe(self, image: Float[Tensor, "c i j k"]) -> Float[Tensor, "d i j k"]:
        structure = self.mind.describe(image)
        n_all = len(structure) + len(image)
        # The mean of squares over all channels is then the weighted mean of the two parts' own means.
        shares = [
            (n_all * weight / ((1 + self.intensity) * len(part))) ** 0.5
            for part, weight in ((structure, 1.0), (image, self.intensity))
        ]
        return torch.cat([structure * shares[0], image * shares[1]])
