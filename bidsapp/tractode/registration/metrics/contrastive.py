"""A learned descriptor: a small convolutional network that says the same of one place in any two contrasts.

A. van den Oord, Y. Li, O. Vinyals, "Representation learning with contrastive predictive coding" (2018),
doi:10.48550/arXiv.1807.03748 (the InfoNCE loss); contrastive descriptors of anatomy for registration: N. Dey et al., "ContraReg",
MICCAI 2022, doi:10.1007/978-3-031-16446-0_7; training on painted label maps: M. Hoffmann et al., "SynthMorph", IEEE TMI 41:543
(2022), doi:10.1109/TMI.2021.3116879.

Departures: two invariances are built in and not learned. The input is divided by its local mean and deviation (no gain, no
shading), and the first layer's responses are taken without their sign (no difference between an image and its negative).

The weights are trained by ``tractode-train contrastive`` and read by ``tractode.io.weights``: this floor knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tractode.errors import ResourceUnavailableError
from tractode.ops import smooth
from tractode.registration.metrics.descriptor import DescriptorMetric


@dataclass(frozen=True)
class DescriptorSettings:
    """Shape of the network.

    Parameters
    ----------
    width
        Channels of the layers between.
    channels
        Of the descriptor, which has length 1.
    dilations
        Of the 3 × 3 × 3 layers after the first: with (1, 2, 2) a descriptor sees 13 voxels across.
    window
        Standard deviation of the window of the local mean and deviation, voxels.
    floor
        Added to the local deviation, as a share of the image's own.
    """

    width: int = 16
    channels: int = 12
    dilations: tuple[int, ...] = (1, 2, 2)
    window: float = 4.0
    floor: float = 0.1

    def record(self) -> dict[str, Any]:
        return {**vars(self), "dilations": list(self.dilations)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DescriptorSettings:
        return cls(**{**record, "dilations": tuple(record["dilations"])})


class DescriptorNetwork(nn.Module):
    """Image → descriptor of length 1 at every voxel."""

    def __init__(self, settings: DescriptorSettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.first = nn.Conv3d(1, width, 3, bias=False)
        self.middle = nn.ModuleList(nn.Conv3d(width, width, 3, dilation=d) for d in settings.dilations)
        self.last = nn.Conv3d(width, settings.channels, 1)

    def forward(self, image: Float[Tensor, "1 i j k"]) -> Float[Tensor, "d i j k"]:
        values = _padded(locally_normalised(image, self.settings.window, self.settings.floor)[None], 1)
        values = self.first(values).abs()
        for layer, dilation in zip(self.middle, self.settings.dilations, strict=True):
            values = functional.relu(layer(_padded(values, dilation)))
        return functional.normalize(self.last(values), dim=1, eps=1e-6)[0]


def _padded(values: Tensor, reach: int) -> Tensor:
    return functional.pad(values, [reach] * 6, mode="replicate")


def locally_normalised(image: Float[Tensor, "1 i j k"], window: float, floor: float) -> Float[Tensor, "1 i j k"]:
    """Less its local mean, over its local deviation; a flat place stays near 0."""
    sigma = (window, window, window)
    # Less the whole mean first: the difference of two large squares would lose the small ones.
    image = image - image.mean()
    mean = smooth.gaussian(image, sigma)
    variance = (smooth.gaussian(image.square(), sigma) - mean.square()).clamp_min(0)
    deviation = (variance + 1e-12).sqrt()
    return (image - mean) / (deviation + floor * image.square().mean().sqrt() + 1e-9)


@dataclass(frozen=True, eq=False)
class Contrastive(DescriptorMetric):
    """Mean squared difference of learned descriptors; the network is cast to the image's dtype and device."""

    network: DescriptorNetwork | None = None
    is_multimodal: ClassVar[bool] = True
    invariances: ClassVar[frozenset[str]] = frozenset({"linear", "shading"})

    def __post_init__(self) -> None:
        if self.network is None:
            raise ResourceUnavailableError(
                "The contrastive metric was asked for without its learned weights",
                id="E-REG-WEIGHTS",
                needed="a trained DescriptorNetwork",
                fix="use tractode.io.weights.load_metric('contrastive')",
            )

    @classmethod
    def from_weights(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Contrastive:
        """From tensors and the network's settings, as read from a folder of weights."""
        network = DescriptorNetwork(DescriptorSettings.from_record(record))
        network.load_state_dict(dict(tensors))
        return cls(network.requires_grad_(False).eval())

    def describe(self, image: Float[Tensor, "c i j k"]) -> Float[Tensor, "d i j k"]:
        assert self.network is not None
        network = self.network.to(image.device, image.dtype)
        return torch.cat([network(image[n : n + 1]) for n in range(len(image))])
