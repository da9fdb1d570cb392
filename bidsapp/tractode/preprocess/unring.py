"""Gibbs ringing removed by local shifts of less than a voxel.

E. Kellner et al., *Gibbs-ringing artifact removal based on local subvoxel-shifts*, MRM 76:1574 (2016), doi:10.1002/mrm.26054. Partial
Fourier: H.-H. Lee, D. S. Novikov, E. Fieremans, *Removal of partial Fourier-induced Gibbs (RPG) ringing artifacts in MRI*, MRM 86:2733
(2021), doi:10.1002/mrm.28830.

Departures: every line of a slice is treated as periodic, as its Fourier transform is; the shifts of 7/8 and 5/8 partial Fourier act on
lines made finer by zero-filling where the ringing's period is no whole number of voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import InputDataError

Progress = Callable[[int, int], None]
_TILE = 64  # slices
# Share of the lines measured → how much finer the lines are made, and every how many of those samples one ringing has its own.
_PARTIAL = {0.75: (1, 2), 0.875: (3, 4), 0.625: (1, 4)}


@dataclass(frozen=True)
class UnringSettings:
    """``n_shifts`` to either side within half a voxel; ``window``: nearest and farthest differences whose sum says how much it rings."""

    n_shifts: int = 20
    window: tuple[int, int] = (1, 3)


def unring(
    signal: Float[Tensor, "n i j k"],
    settings: UnringSettings | None = None,
    *,
    slice_axis: int = 2,
    fraction: float = 1.0,
    encoding_axis: int | None = None,
    axes: tuple[int, ...] | None = None,
    progress: Progress = lambda done, total: None,
    out: Float[Tensor, "n i j k"] | None = None,
) -> Float[Tensor, "n i j k"]:
    """The series without ringing in the plane of its slices, written to ``out`` if given, which may be the series itself.

    Parameters
    ----------
    slice_axis
        Stored axis (0, 1, 2) across the slices.
    fraction
        Share of the lines along ``encoding_axis`` that were measured, the rest filled with zeros: 5/8, 6/8, 7/8, or 1 for all of them.
    axes
        Stored axes that ring; None: both axes of the plane.

    Raises
    ------
    InputDataError
        E-UNRING-PARTIAL: another share, or no encoding axis in the plane.
    """
    settings = settings or UnringSettings()
    rest = [axis for axis in range(3) if axis != slice_axis]
    partial = _partial(fraction, encoding_axis, rest)
    ringing = tuple(rest.index(axis) for axis in (rest if axes is None else axes) if axis in rest)
    found = torch.empty_like(signal) if out is None else out
    for volume, (images, target) in enumerate(zip(signal, found, strict=True)):
        slices, there = images.movedim(slice_axis, 0), target.movedim(slice_axis, 0)
        for tile, place in zip(slices.split(_TILE), there.split(_TILE), strict=True):
            place.copy_(unring_slices(tile.contiguous(), settings, partial, ringing))
        progress(volume + 1, len(signal))
    return found


def _partial(share: float, axis: int | None, plane: list[int]) -> tuple[int, int, int] | None:
    """Axis within the slice, refinement and interval of the wider ringing; None where all lines were measured."""
    if share > 0.95:
        return None
    known = min(_PARTIAL, key=lambda each: abs(each - share))
    if abs(known - share) > 0.03 or axis not in plane:
        raise InputDataError(
            f"A partial Fourier share of {share:g} along axis {axis}",
            id="E-UNRING-PARTIAL",
            needed="5/8, 6/8 or 7/8 along an axis in the plane of the slices",
            fix="leave partial Fourier out: unringing then treats the scan as measured in full",
        )
    return plane.index(axis), *_PARTIAL[known]


def fraction_of(metadata: Mapping[str, Any]) -> float:
    """Share of the lines that a sidecar says were measured: 1 unless ``PartialFourier`` is a number below 1."""
    stated = metadata.get("PartialFourier")
    if isinstance(stated, int | float) and not isinstance(stated, bool) and 0.5 < stated <= 1:
        return float(stated)
    return 1.0


def unring_slices(
    images: Float[Tensor, "b x y"],
    settings: UnringSettings,
    partial: tuple[int, int, int] | None = None,
    axes: tuple[int, ...] = (0, 1),
) -> Float[Tensor, "b x y"]:
    """Slices without ringing: each axis treated in the part of the image in which the other axis does not ring (eq. 5)."""
    spectrum = torch.fft.fft2(images)
    kx, ky = (2 * torch.pi * torch.fft.fftfreq(n, device=images.device, dtype=images.dtype) for n in images.shape[1:])
    along_x, along_y = (1 + torch.cos(kx))[:, None], (1 + torch.cos(ky))[None]
    both = along_x + along_y
    # A frequency is "of x" as far as it is high along x: there 1 + cos(kx) is small.
    share = torch.where(both > 1e-6, along_y / both.clamp_min(1e-6), 0.5)
    first = torch.fft.ifft2(spectrum * share).real
    second = images - first
    lines = [first.mT.contiguous(), second.contiguous()]
    for axis in axes:
        if partial is not None and partial[0] == axis:
            lines[axis] = _wider(lines[axis], settings, partial[1], partial[2])
        lines[axis] = unring_lines(lines[axis], settings)
    return lines[0].mT + lines[1]


def unring_lines(lines: Float[Tensor, "*m n"], settings: UnringSettings) -> Float[Tensor, "*m n"]:
    """Each sample taken from the shift of its line that oscillates least beside it, brought back by linear interpolation (eqs. 2–4)."""
    n = lines.shape[-1]
    spectrum = torch.fft.rfft(lines)
    k = torch.arange(spectrum.shape[-1], device=lines.device, dtype=lines.dtype)
    best = _ringing(lines, settings.window)
    out = lines.clone()
    for step in range(1, settings.n_shifts + 1):
        for sign in (1, -1):
            shift = sign * 0.5 * step / settings.n_shifts
            phase = torch.exp(2j * torch.pi * shift / n * k)
            there = torch.fft.irfft(spectrum * phase, n)
            rings = _ringing(there, settings.window)
            # The sample at l is between those that the shift took from l + s and l + s ∓ 1.
            back = (1 - abs(shift)) * there + abs(shift) * there.roll(sign, -1)
            out = torch.where(rings < best, back, out)
            best = torch.minimum(rings, best)
    return out


def _ringing(lines: Float[Tensor, "*m n"], window: tuple[int, int]) -> Float[Tensor, "*m n"]:
    """The smaller one of the sums of differences between neighbours to the left and to the right."""
    nearest, farthest = window
    jumps = (lines - lines.roll(1, -1)).abs()
    left = jumps.roll(nearest, -1)
    for t in range(nearest + 1, farthest + 1):
        left = left + jumps.roll(t, -1)
    return torch.minimum(left, left.roll(-(nearest + farthest + 1), -1))


def _wider(
    lines: Float[Tensor, "b m n"], settings: UnringSettings, finer: int, interval: int
) -> Float[Tensor, "b m n"]:
    """The ringing of the side of k-space that was cut off nearer: that of lines sampled every ``interval`` / ``finer`` voxels."""
    n = lines.shape[-1]
    fine = torch.fft.irfft(torch.fft.rfft(lines), n * finer) * finer if finer > 1 else lines
    if fine.shape[-1] % interval:
        return lines  # lines that do not divide so are left with the ringing of the far side alone
    phases = fine.unflatten(-1, (-1, interval)).mT.contiguous()
    return unring_lines(phases, settings).mT.flatten(-2)[..., ::finer].contiguous()


def zero_filled_axes(signal: Float[Tensor, "n i j k"], slice_axis: int = 2, share: float = 0.02) -> tuple[int, ...]:
    """Stored axes in the plane along which slices were made finer by zero-filling: hardly any power at their highest frequencies.

    They ring over more than two voxels, which shifts within one voxel cannot mend: leave them out of ``axes``.
    """
    images = signal[:1].movedim(slice_axis + 1, 1)[0]
    images = images[len(images) // 4 : max(3 * len(images) // 4, len(images) // 4 + 1)].to(torch.float32)
    power = torch.fft.fft2(images).abs().square().mean(0)
    x, y = (torch.fft.fftfreq(n, device=signal.device).abs() for n in images.shape[1:])
    plane = [axis for axis in range(3) if axis != slice_axis]
    found = []
    for axis, along, across, values in ((plane[0], x, y, power), (plane[1], y, x, power.mT)):
        rows = values[:, across < 0.2].mean(-1)
        if float(rows[along > 0.42].mean()) < share * float(rows[(along > 0.2) & (along < 0.3)].mean()):
            found.append(axis)
    return tuple(found)


def is_zero_filled(signal: Float[Tensor, "n i j k"], slice_axis: int = 2) -> bool:
    """Whether both axes of the slices were made finer by zero-filling, so that there is nothing to be mended."""
    return len(zero_filled_axes(signal, slice_axis)) == 2
