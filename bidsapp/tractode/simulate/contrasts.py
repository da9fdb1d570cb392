"""T2-weighted and FLAIR images painted from tissue fractions: mixed in each voxel, under a smooth coil field, with Rician noise.

Intensities are relative, white matter's being what noise is measured by: fluid is brightest on T2w and darkest on FLAIR (whose inversion
nulls it), and grey matter is brighter than white on both. Departures: each tissue has one intensity everywhere; iron, vessels and flow
are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Image, ImageGrid
from tractode.simulate.signal import rician
from tractode.simulate.tissues import CSF, GREY, WHITE


@dataclass(frozen=True)
class Contrast:
    """Intensities of the tissues as stored, and times in s (``InversionTime`` only of FLAIR)."""

    grey: float
    white: float
    csf: float
    echo_time: float
    repetition_time: float
    inversion_time: float | None = None


CONTRASTS = {
    "T2w": Contrast(grey=540.0, white=400.0, csf=1000.0, echo_time=0.1, repetition_time=3.2),
    "FLAIR": Contrast(grey=620.0, white=500.0, csf=80.0, echo_time=0.39, repetition_time=5.0, inversion_time=1.8),
}


def painted(
    tissues: Float[Tensor, "3 i j k"],
    grid: ImageGrid,
    contrast: Contrast,
    snr: float | None,
    noise: torch.Generator,
    bias: torch.Generator,
    bias_strength: float = 0.15,
) -> Image:
    """The scan of these fractions; ``snr`` is white matter over the noise of one channel, ``None`` for no noise and no bias."""
    tissues = tissues.double()
    clean = contrast.grey * tissues[GREY] + contrast.white * tissues[WHITE] + contrast.csf * tissues[CSF]
    if snr is None:
        return Image(grid, clean[None].float())
    lit = clean[None] * bias_field(grid, bias, bias_strength)
    return Image(grid, rician(lit, contrast.white / snr, noise).round().float())


def bias_field(grid: ImageGrid, generator: torch.Generator, strength: float) -> Float[Tensor, "i j k"]:
    """A smooth factor about 1: the exponential of a random polynomial of second order over the field of view."""
    points = grid.centres(torch.float64)
    x, y, z = ((points - points.mean((0, 1, 2))) / 100).unbind(-1)
    terms = torch.stack((x, y, z, x * x - x.square().mean(), y * y - y.square().mean(), x * y, y * z, z * x))
    weights = torch.randn(len(terms), generator=generator, dtype=torch.float64).clamp(-2, 2)
    return (strength * torch.einsum("a,aijk->ijk", weights, terms)).exp()
