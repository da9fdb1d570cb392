"""The shading that receive coils leave: a smooth factor that makes the histogram of the brain as sharp as it can be.

N. J. Tustison et al., *N4ITK: improved N3 bias correction*, IEEE TMI 29:1310 (2010), doi:10.1109/TMI.2010.2046908, after J. G. Sled, A. P.
Zijdenbos, A. C. Evans, IEEE TMI 17:87 (1998), doi:10.1109/42.668698.

Splines: S. Lee, G. Wolberg, S. Y. Shin, *Scattered data interpolation with multilevel B-splines*, IEEE TVCG 3:228 (1997),
doi:10.1109/2945.620490. Each coefficient is a mean of what the voxels near it ask for, and a least-squares fit is nothing in its place: it
follows in one step what belongs to the tissues.

Departures: one mesh after the other, from coarse to fine, each with a fit of its own to what the coarser ones left; a part of the voxels is
looked at; the field has a geometric mean of 1 in the mask, and goes on smoothly beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields.image import Image, check_same_grid
from tractode.ops.spline import cubic_basis


@dataclass(frozen=True)
class BiasSettings:
    """``mesh``: distances of the splines' nodes (mm), one round of ``iterations`` each; ``sharpness``: width (full, at half maximum, of
    log-intensity) of the blurring that is undone; ``noise``: of Wiener's filter; ``points``: most voxels looked at."""

    mesh: tuple[float, ...] = (150.0, 80.0, 45.0)
    iterations: int = 50
    sharpness: float = 0.15
    noise: float = 0.01
    bins: int = 200
    points: int = 40_000
    tolerance: float = 5e-4


def bias_field(image: Image, mask: Image, settings: BiasSettings | None = None) -> Image:
    """The factor that each voxel of ``image`` (one channel, a mean b=0 image) is too bright by. Divide by it.

    Raises `InputDataError` (E-BIAS-EMPTY) where fewer than 1,000 voxels of the mask are above 0.
    """
    settings = settings or BiasSettings()
    check_same_grid(image.grid, mask.grid, "An image and its mask")
    values = image.values[0].to(torch.float32)
    inside = mask.mask & (values > 0) & torch.isfinite(values)
    if int(inside.sum()) < 1000:
        raise InputDataError(
            f"only {int(inside.sum())} voxels of the mask are above 0, and shading is told from 1,000 or more",
            id="E-BIAS-EMPTY",
            needed="a brain of 1,000 voxels",
        )
    index = inside.nonzero()
    index = index[:: max(1, len(index) // settings.points)]
    logs = values[index.unbind(-1)].log()
    field = torch.zeros(image.grid.shape)
    for spacing in settings.mesh:
        smoother = _Smoother(index, image.grid.shape, image.grid.voxel_sizes, spacing)
        field = _round(logs, field, index, smoother, settings)
    field = field - field[inside].mean()
    return Image(image.grid, field.exp()[None])


def _round(
    logs: Float[Tensor, " p"], field: Float[Tensor, "i j k"], index: Tensor, smoother: _Smoother, settings: BiasSettings
) -> Float[Tensor, "i j k"]:
    """N3's iteration on one mesh: sharpen, take what is left as the field's, smooth it."""
    at_points = field[index.unbind(-1)]
    added = torch.zeros(smoother.n)
    for _ in range(settings.iterations):
        clean = logs - at_points - smoother.at_points(added)
        step = smoother.fit(clean - sharpened(clean, settings))
        added = added + step
        if float(smoother.at_points(step).std()) < settings.tolerance:
            break
    return field + smoother.everywhere(added)


def sharpened(logs: Float[Tensor, " p"], settings: BiasSettings) -> Float[Tensor, " p"]:
    """What each log-intensity would most likely be without the blurring of the histogram (eqs. 10–13 of Sled)."""
    low, high = float(logs.min()), float(logs.max())
    width = max((high - low) / (settings.bins - 1), 1e-6)
    place = (logs - low) / width
    lower = place.floor().long().clamp(0, settings.bins - 1)
    share = place - lower
    counts = torch.zeros(settings.bins + 1)
    counts.index_add_(0, lower, 1 - share)
    counts.index_add_(0, lower + 1, share)
    counts = counts[: settings.bins]
    n = 1 << (2 * settings.bins - 1).bit_length()
    offset = (n - settings.bins) // 2
    padded = torch.zeros(n)
    padded[offset : offset + settings.bins] = counts
    sigma = settings.sharpness / 2.3548 / width
    place_of = torch.fft.fftfreq(n) * n
    blur = torch.exp(-0.5 * (place_of / sigma).square())
    spectrum = torch.fft.fft(blur / blur.sum())
    wiener = spectrum.conj() / (spectrum.abs().square() + settings.noise)
    sharp = torch.fft.ifft(torch.fft.fft(padded) * wiener).real.clamp_min(0)
    centres = low + (torch.arange(n) - offset) * width
    above = torch.fft.ifft(torch.fft.fft(sharp * centres) * spectrum).real
    below = torch.fft.ifft(torch.fft.fft(sharp) * spectrum).real
    means = torch.where(below > 1e-6 * float(below.max()), above / below.clamp_min(1e-12), centres)
    means = means[offset : offset + settings.bins]
    return torch.lerp(means[lower], means[(lower + 1).clamp(max=settings.bins - 1)], share)


class _Smoother:
    """Lee's approximation of scattered voxels by a mesh of cubic B-splines."""

    def __init__(
        self, index: Tensor, shape: tuple[int, int, int], sizes: tuple[float, float, float], spacing: float
    ) -> None:
        self.axes = [
            cubic_basis(torch.arange(n) * size, max((n - 1) * size, 1e-3), _even(max((n - 1) * size, 1e-3), spacing))
            for n, size in zip(shape, sizes, strict=True)
        ]
        self.counts = tuple(axis.shape[1] for axis in self.axes)
        self.n = self.counts[0] * self.counts[1] * self.counts[2]
        rows = [axis[index[:, which]] for which, axis in enumerate(self.axes)]
        self.design = torch.einsum("pa,pb,pc->pabc", *rows).reshape(len(index), self.n)
        self.total = self.design.square().sum(0).clamp_min(1e-9)
        # A voxel alone would be met by coefficients in the share of their weights (eq. 3); they are averaged by those weights' squares
        # (eq. 5).
        self.asked = self.design.pow(3).div_(self.design.square().sum(-1, keepdim=True))

    def fit(self, values: Float[Tensor, " p"]) -> Float[Tensor, " c"]:
        return (self.asked.mT @ values) / self.total

    def at_points(self, coefficients: Float[Tensor, " c"]) -> Float[Tensor, " p"]:
        return self.design @ coefficients

    def everywhere(self, coefficients: Float[Tensor, " c"]) -> Float[Tensor, "i j k"]:
        return torch.einsum("abc,ia,jb,kc->ijk", coefficients.reshape(self.counts), *self.axes)


def _even(span: float, spacing: float) -> float:
    """The spacing, at least ``spacing``, that divides a length into equal parts."""
    return span / max(1, int(span / spacing))


def unshaded(
    values: Float[Tensor, "n i j k"], field: Image, mask: Bool[Tensor, "i j k"] | None = None
) -> Float[Tensor, "n i j k"]:
    """A series divided by its bias field (in the mask where there is one)."""
    factor = field.values[0].to(values)
    return values / (factor if mask is None else torch.where(mask, factor, 1.0))
