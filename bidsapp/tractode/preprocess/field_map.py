"""A field map in Hz from the phase of two gradient echoes: P. Jezzard, R. S. Balaban, MRM 34:65 (1995), doi:10.1002/mrm.1910340111.

``b = Δφ / (2π ΔTE)``, the phase unwrapped (`ops.unwrap`). Departures: where there is no signal the field goes on smoothly from
where there is some, so that nothing jumps at the edge of the head.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields.image import Image, check_same_grid
from tractode.ops import smooth
from tractode.ops.unwrap import TURN, unwrap, wrapped

GAMMA = 42.577e6  # Hz/T of the proton


def as_radians(image: Image, units: str | None = None) -> Image:
    """A stored phase image in rad: as it is where it says ``rad`` or fits into a turn; else its range is a turn.

    Scanners store a turn as a power of two (4096, or −4096 … 4095 for 8192).
    """
    values = image.values.to(torch.float32)
    span = float(values.amax() - values.amin())
    if units in ("rad", "radian", "radians") or span <= TURN + 0.01:
        return Image(image.grid, values)
    if span < 64:
        raise InputDataError(
            f"A phase image's values span {span:.2f}: neither radians nor a scanner's integers",
            id="E-FMAP-PHASE",
            needed="a span of 2π (rad), or of a power of two of at least 128",
            fix="say Units in the JSON file, or convert the image anew",
        )
    return Image(image.grid, values * (TURN / 2 ** math.ceil(math.log2(span * (1 - 1e-3)))))


def field_from_phase(difference: Image, magnitude: Image, echo_times: tuple[float, float]) -> Image:
    """Hz, from a phase difference (rad; second echo less first) and a magnitude image; echo times in s.

    Raises
    ------
    InputDataError
        The echo times are the same or not in seconds.
    """
    check_same_grid(difference.grid, magnitude.grid, "The phase and the magnitude of a field map")
    apart = echo_times[1] - echo_times[0]
    if not 1e-4 <= abs(apart) <= 0.05:
        raise InputDataError(
            f"The echo times of a field map cannot be right: {echo_times[0]} s and {echo_times[1]} s",
            id="E-FMAP-ECHOES",
            needed="EchoTime1 and EchoTime2 in seconds, 0.1 to 50 ms apart",
        )
    weight = _head_weight(magnitude)
    hz = unwrap(wrapped(difference.values[0].to(torch.float32)), weight) / (TURN * apart)
    return Image(difference.grid, filled(hz, weight)[None])


def field_from_two(first: Image, second: Image, magnitude: Image, echo_times: tuple[float, float]) -> Image:
    """Hz, from the phases (rad) of two echoes."""
    check_same_grid(first.grid, second.grid, "The two phases of a field map")
    return field_from_phase(Image(first.grid, wrapped(second.values - first.values)), magnitude, echo_times)


def as_hertz(field: Image, magnitude: Image, units: str) -> Image:
    """A stored field in Hz, in the head; beyond it the field goes on smoothly. Units: Hz, rad/s or T."""
    check_same_grid(field.grid, magnitude.grid, "A field and its magnitude image")
    factors = {"hz": 1.0, "rad/s": 1 / TURN, "t": GAMMA, "tesla": GAMMA}
    factor = factors.get(units.strip().lower())
    if factor is None:
        raise InputDataError(
            f"A field map is in {units!r}", id="E-FMAP-UNITS", needed="Units of Hz, rad/s or T in its JSON file"
        )
    weight = _head_weight(magnitude)
    return Image(field.grid, filled(field.values[0].to(torch.float32) * factor, weight)[None])


def _head_weight(magnitude: Image) -> Float[Tensor, "i j k"]:
    """Brightness (at most 1) where there is signal, 0 elsewhere."""
    bright = magnitude.values[0].to(torch.float32)
    head = bright > 0.15 * bright.quantile(0.98) if bright.numel() < 2**24 else bright > 0.15 * bright.amax()
    return torch.where(head, bright / bright.amax(), 0.0)


def filled(values: Float[Tensor, "i j k"], weight: Float[Tensor, "i j k"]) -> Float[Tensor, "i j k"]:
    """The values where there is weight; elsewhere their weighted mean around, the nearest that has any."""
    out, known = torch.where(weight > 0, values, 0.0), weight > 0
    for sigma in (1.0, 2.0, 4.0, 8.0, 16.0):
        pair = smooth.gaussian(torch.stack((values * weight, weight)), (sigma, sigma, sigma))
        near = (pair[1] > 1e-3) & ~known
        out = torch.where(near, pair[0] / pair[1].clamp_min(1e-3), out)
        known = known | near
    return out
