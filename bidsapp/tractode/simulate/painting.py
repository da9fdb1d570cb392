"""Painting label maps with contrasts drawn at random, so that what is learned from them belongs to none in particular.

B. Billot et al., "SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without retraining", Medical Image
Analysis 86:102789 (2023), doi:10.1016/j.media.2023.102789; M. Hoffmann et al., IEEE TMI 41:543 (2022),
doi:10.1109/TMI.2021.3116879.

Departures: no deformation (a pair shares its anatomy), and each label may share the intensity of another, as real tissues do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tractode.ops import smooth

# FreeSurfer's right-hand structures by their left-hand twins: a contrast belongs to a tissue, not to a side.
_RIGHT = {41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18, 58: 26, 60: 28}
_RIGHT |= {62: 30, 63: 31, 137: 136, 164: 163}
# Typical intensities by tissue: T1w, T2w, FLAIR. Everything unnamed is soft tissue outside the brain.
_TISSUES = {
    "white": ((2, 7, 16, 28, 60, 77, 85), (0.95, 0.33, 0.50)),
    "grey": ((3, 8, 17, 18, 26), (0.62, 0.52, 0.66)),
    "deep": ((10, 11, 12), (0.72, 0.47, 0.60)),
    "pallidum": ((13,), (0.85, 0.30, 0.45)),
    "fluid": ((4, 5, 14, 15, 24, 31, 72), (0.22, 1.0, 0.10)),
    "air": ((0,), (0.0, 0.0, 0.0)),
}
CONTRASTS = {"T1w": 0, "T2w": 1, "FLAIR": 2}


@dataclass(frozen=True)
class Palette:
    """Mean and spread of the intensity of every compact label (see `compact`)."""

    mean: Float[Tensor, " n"]
    spread: Float[Tensor, " n"]


@dataclass(frozen=True)
class PaintSettings:
    """Upper bounds; each painting draws its own values below them.

    Parameters
    ----------
    noise
        Standard deviation of the noise (intensities span about 1).
    bias
        Standard deviation of the logarithm of the shading.
    blur
        Standard deviation of the blur before thinning out, as a share of the thinning factor.
    """

    noise: float = 0.06
    bias: float = 0.4
    blur: float = 0.6


def compact(labels: Int[Tensor, "i j k"]) -> tuple[Int[Tensor, "i j k"], Int[Tensor, " n"]]:
    """Labels numbered from 0, left and right alike, and the FreeSurfer code of each number."""
    codes, inverse = torch.unique(labels, return_inverse=True)
    merged = torch.tensor([_RIGHT.get(int(code), int(code)) for code in codes])
    kept, places = torch.unique(merged, return_inverse=True)
    return places[inverse], kept


def random_palette(n: int, generator: torch.Generator) -> Palette:
    """Uniform means, of which some labels share one; spreads up to 0.06."""
    mean = torch.rand(n, generator=generator)
    shared = torch.rand(n, generator=generator) < 0.25
    mean = torch.where(shared, mean[torch.randint(n, (n,), generator=generator)], mean)
    return Palette(mean, 0.06 * torch.rand(n, generator=generator))


def known_palette(codes: Int[Tensor, " n"], contrast: str) -> Palette:
    """The typical intensities of a T1w, T2w or FLAIR image."""
    column = CONTRASTS[contrast]
    of = {code: levels[column] for members, levels in _TISSUES.values() for code in members}
    mean = torch.tensor([of.get(int(code), 0.3) for code in codes])
    return Palette(mean, torch.full_like(mean, 0.02))


def paint(
    labels: Int[Tensor, "i j k"],
    palette: Palette,
    generator: torch.Generator,
    factor: int = 2,
    settings: PaintSettings | None = None,
) -> Float[Tensor, "1 r s t"]:
    """An image of compact labels, blurred and averaged over ``factor`` voxels along each axis (partial volume).

    The texture within tissues, shading and noise are drawn anew each time.
    """
    settings = settings or PaintSettings()

    def draw() -> float:
        return float(torch.rand((), generator=generator))

    texture = torch.randn(labels.shape, generator=generator)
    image = (palette.mean[labels] + palette.spread[labels] * texture)[None]
    sigma = factor * settings.blur * draw()
    if sigma > 0.2:
        image = smooth.gaussian(image, (sigma, sigma, sigma))
    image = functional.avg_pool3d(image[None], factor)[0]
    knots = torch.randn(1, 1, 4, 4, 4, generator=generator)
    shading = functional.interpolate(knots, size=image.shape[1:], mode="trilinear", align_corners=True)[0]
    image = image * torch.exp(settings.bias * draw() * shading)
    return image + settings.noise * draw() * torch.randn(image.shape, generator=generator)
