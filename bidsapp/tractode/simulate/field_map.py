"""A field map as a scanner takes it: two gradient echoes whose phases part by ``2π · field · ΔTE``.

P. Jezzard, R. S. Balaban, MRM 34:65 (1995), doi:10.1002/mrm.1910340111. Departures: the echoes are as bright as one another and are
not distorted; the phase that the coil leaves is a smooth polynomial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import ImageGrid
from tractode.simulate.tissues import CSF, GREY, WHITE


@dataclass(frozen=True)
class GradientEchoSettings:
    """Echo times in s; ``snr`` is white matter over the noise of one channel, ``None`` for no noise; tissues relative to white matter."""

    echo_times: tuple[float, float] = (0.00492, 0.00738)
    voxel_mm: float = 3.0
    snr: float | None = 50.0
    white_matter_intensity: float = 1000.0
    grey: float = 1.05
    csf: float = 1.2


@dataclass(frozen=True, eq=False)
class GradientEchoes:
    """Magnitudes and phases (rad, in −π … π) of both echoes; the second phase less the first, wrapped; the field that they show (Hz)."""

    magnitudes: Float[Tensor, "2 i j k"]
    phases: Float[Tensor, "2 i j k"]
    difference: Float[Tensor, "1 i j k"]
    measured_hz: Float[Tensor, "1 i j k"]


def gradient_echoes(
    tissues: Float[Tensor, "3 i j k"],
    field_hz: Float[Tensor, "i j k"],
    grid: ImageGrid,
    settings: GradientEchoSettings,
    noise: torch.Generator,
    coil: torch.Generator,
) -> GradientEchoes:
    """Both echoes of a head of these tissue fractions in this field. Outside the head there is noise alone."""
    tissues, field_hz = tissues.double(), field_hz.double()
    bright = tissues[WHITE] + settings.grey * tissues[GREY] + settings.csf * tissues[CSF]
    start = _coil_phase(grid, coil)
    sigma = 0.0 if settings.snr is None else 1 / settings.snr
    echoes = []
    for time in settings.echo_times:
        clean = torch.polar(bright, start + 2 * math.pi * field_hz * time)
        parts = torch.randn(2, *bright.shape, generator=noise, dtype=torch.float64) * sigma
        echoes.append(clean + torch.complex(parts[0], parts[1]))
    both = torch.stack(echoes)
    difference = (both[1] * both[0].conj()).angle()
    apart = settings.echo_times[1] - settings.echo_times[0]
    # What an ideal unwrapping of the difference would find.
    turned = 2 * math.pi * field_hz * apart
    error = torch.atan2((difference - turned).sin(), (difference - turned).cos())
    measured = (field_hz + error / (2 * math.pi * apart)) * (tissues.sum(0) > 0.5)
    return GradientEchoes(
        (both.abs() * settings.white_matter_intensity), both.angle(), difference[None], measured[None]
    )


def _coil_phase(grid: ImageGrid, generator: torch.Generator) -> Float[Tensor, "i j k"]:
    """A random polynomial of second order: a few radians over the head."""
    points = grid.centres(torch.float64)
    x, y, z = ((points - points.mean((0, 1, 2))) / 100).unbind(-1)
    terms = torch.stack((torch.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, z * x))
    return torch.einsum("a,aijk->ijk", torch.randn(10, generator=generator, dtype=torch.float64), terms)
