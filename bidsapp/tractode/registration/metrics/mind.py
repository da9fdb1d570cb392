"""The modality-independent neighbourhood descriptor, in its first form and in its self-similarity-context form (MIND-SSC).

M. P. Heinrich et al., "MIND: Modality independent neighbourhood descriptor for multi-modal deformable registration", Medical
Image Analysis 16:1423 (2012), doi:10.1016/j.media.2012.05.008 (`MIND6`: the voxel against its six neighbours, equations
2–5); the twelve pairs of `MIND` are those of M. P. Heinrich et al., "Towards realtime multimodal fusion for image-guided
interventions using self-similarities", MICCAI 2013, doi:10.1007/978-3-642-40811-3_24.

Departures: patches are boxes; the local variance is kept between 1/1000 and 1000 times its mean over the image, so that
air does not shout; the descriptor of several channels is that of each, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tractode.ops import smooth
from tractode.registration.metrics.descriptor import DescriptorMetric

_FACES = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
# The twelve pairs of faces of the voxel that are √2 apart.
PAIRS = tuple(
    (a, b)
    for n, a in enumerate(_FACES)
    for b in _FACES[n + 1 :]
    if sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) == 2
)


_CENTRE = (0, 0, 0)
Offset = tuple[int, int, int]


@dataclass(frozen=True)
class MIND(DescriptorMetric):
    """Squared difference of descriptors of twelve pairs of neighbours.

    Parameters
    ----------
    radius
        Of the patches, voxels.
    dilation
        Distance of the patches from the centre, voxels.
    """

    radius: int = 1
    dilation: int = 2
    is_multimodal: ClassVar[bool] = True
    invariances: ClassVar[frozenset[str]] = frozenset({"linear", "shading"})

    def describe(self, image: Float[Tensor, "c i j k"]) -> Float[Tensor, "d i j k"]:
        return torch.cat([self._describe(image[n : n + 1]) for n in range(len(image))])

    def _describe(self, image: Float[Tensor, "1 i j k"]) -> Float[Tensor, "12 i j k"]:
        distances = patch_distances(image, PAIRS, self.radius, self.dilation)
        distances = distances - distances.amin(0, keepdim=True)
        return torch.exp(-distances / _variance(distances))


@dataclass(frozen=True)
class MIND6(DescriptorMetric):
    """The first form: patches around the voxel against those around its six neighbours, largest value 1."""

    radius: int = 1
    dilation: int = 1
    is_multimodal: ClassVar[bool] = True
    invariances: ClassVar[frozenset[str]] = frozenset({"linear", "shading"})

    def describe(self, image: Float[Tensor, "c i j k"]) -> Float[Tensor, "d i j k"]:
        return torch.cat([self._describe(image[n : n + 1]) for n in range(len(image))])

    def _describe(self, image: Float[Tensor, "1 i j k"]) -> Float[Tensor, "6 i j k"]:
        distances = patch_distances(image, tuple((_CENTRE, face) for face in _FACES), self.radius, self.dilation)
        # The estimate of the local variance is the mean distance itself; dividing by the largest value is subtracting the least distance.
        return torch.exp(-(distances - distances.amin(0, keepdim=True)) / _variance(distances))


def patch_distances(
    image: Float[Tensor, "1 i j k"], pairs: tuple[tuple[Offset, Offset], ...], radius: int, dilation: int
) -> Float[Tensor, "d i j k"]:
    """Mean squared difference of the patches around both ends of every pair of offsets (times ``dilation``)."""
    padded = functional.pad(image[None], [dilation] * 6, mode="replicate")[0]

    def at(offset: Offset) -> Tensor:
        view = padded
        for axis, step in enumerate(offset):
            view = view.narrow(axis + 1, dilation + step * dilation, image.shape[axis + 1])
        return view

    return torch.cat([smooth.box((at(a) - at(b)).square(), radius) for a, b in pairs])


def _variance(distances: Float[Tensor, "d i j k"]) -> Float[Tensor, "1 i j k"]:
    variance = distances.mean(0, keepdim=True)
    mean = variance.detach().mean().clamp_min(1e-12)
    return variance.clamp(1e-3 * mean.item(), 1e3 * mean.item())
