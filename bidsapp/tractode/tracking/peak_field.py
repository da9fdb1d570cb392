"""Peaks of every voxel of an orientation distribution: a coarse look at the sphere, then the exact maxima.

The amplitudes at spread directions give local maxima to start from; each is then carried to the peak by the search of
`peaks` (MRtrix3's ``sh2peaks`` starts Newton's method from fixed directions instead; Jeurissen, Leemans, Tournier, Jones &
Sijbers, Hum. Brain Mapp. 2013, doi:10.1002/hbm.22099). Peaks closer to a larger one than the separation angle and those
below a threshold are left out, as DIPY's ``peak_directions`` does.

Differentiable in the coefficients by the implicit derivative of the peak (`peaks.Peak`); how many peaks a voxel has and
their order are piecewise constant.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import PeakField, ShField
from tractode.ops import sh_polynomial, sphere, spherical_harmonics
from tractode.ops.peaks import MAX_ITERATIONS, Peak, ascend, find_peaks, pad_to_lanes
from tractode.ops.sh_polynomial import dot

N_DIRECTIONS = 240  # on the hemisphere: 8.6° apart, where peaks of order 8 that can be told apart are some 40° apart
NEIGHBOURS = 8
TILE = 2048
SPARE = 3  # candidates beyond the peaks asked for: two of them may climb to the same peak


def peak_field(
    field: ShField,
    n_peaks: int = 3,
    threshold: float = 0.0,
    relative_threshold: float = 0.1,
    separation: float = math.radians(25),
) -> PeakField:
    """The largest ``n_peaks`` maxima of every voxel, largest first; absent ones are zero.

    Left out: amplitudes not above ``threshold``, or below ``relative_threshold`` × the voxel's largest, and axes less than
    ``separation`` (rad) from a larger one that is kept. Voxels of zero coefficients have no peaks. Each peak points to
    the upper half of the world (z ≥ 0).
    """
    coeffs = field.coeffs.flatten(1)
    voxels = (coeffs.detach() != 0).any(0).nonzero().ravel()
    directions = coeffs.new_zeros(n_peaks, 3, coeffs.shape[1])
    amplitudes = coeffs.new_zeros(n_peaks, coeffs.shape[1])
    for part in voxels.split(TILE):
        columns = pad_to_lanes(part)
        with torch.no_grad():
            found, values = _peaks_of(
                coeffs[:, columns], field.order, n_peaks, threshold, relative_threshold, separation
            )
        directions[:, :, part], amplitudes[:, part] = found[:, :, : len(part)], values[:, : len(part)]
    if field.coeffs.requires_grad and torch.is_grad_enabled():
        directions, amplitudes = _with_gradient(field, directions, amplitudes)
    shape = field.grid.shape
    return PeakField(field.grid, directions.reshape(n_peaks, 3, *shape), amplitudes.reshape(n_peaks, *shape))


def _with_gradient(
    field: ShField, directions: Float[Tensor, "k 3 v"], amplitudes: Float[Tensor, "k v"]
) -> tuple[Float[Tensor, "k 3 v"], Float[Tensor, "k v"]]:
    """The same peaks as a function of the coefficients: one more search from each, with its derivative."""
    rank, voxel = (amplitudes > 0).nonzero().unbind(1)
    matrix = sh_polynomial.from_harmonics(field.order).to(field.coeffs)
    components = matrix @ field.coeffs.flatten(1)[:, voxel]
    found, values = Peak.apply(components, directions[rank, :, voxel].mT.contiguous())
    place = rank, voxel
    return (
        directions.permute(0, 2, 1).index_put(place, found.mT).permute(0, 2, 1),
        amplitudes.index_put(place, values),
    )


@cache
def _coarse(order: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Directions (d 3), their harmonics (l d), and the axes nearest to each (d n)."""
    directions = sphere.directions(N_DIRECTIONS)
    nearness = (directions @ directions.mT).abs().fill_diagonal_(0)
    neighbours = nearness.topk(NEIGHBOURS, dim=1).indices
    return directions.to(dtype), spherical_harmonics.basis(directions, order).mT.to(dtype), neighbours


def _peaks_of(
    coeffs: Float[Tensor, "l m"], order: int, n_peaks: int, threshold: float, relative: float, separation: float
) -> tuple[Float[Tensor, "k 3 m"], Float[Tensor, "k m"]]:
    starts, is_start = _starts(coeffs, order, n_peaks + SPARE)
    m, c = is_start.shape[1], is_start.shape[0]
    components = coeffs.new_zeros(len(coeffs), m)
    for row, column in zip(sh_polynomial.from_harmonics(order).mT.to(coeffs), coeffs, strict=True):
        components.addcmul_(row[:, None], column)
    rank, voxel = is_start.nonzero().unbind(1)
    columns = pad_to_lanes(torch.arange(len(rank), device=coeffs.device))
    values = coeffs.new_zeros(c, m)
    peaks = coeffs.new_zeros(c, 3, m)
    if len(rank):
        at = voxel[columns]
        found, amplitude = _search(components.index_select(1, at), starts[rank[columns], at].mT.contiguous())
        peaks[rank, :, voxel], values[rank, voxel] = found[:, : len(rank)].mT, amplitude[: len(rank)]
    order_of_size = values.argsort(dim=0, descending=True, stable=True)
    values = values.gather(0, order_of_size)
    peaks = peaks.gather(0, order_of_size[:, None].expand(-1, 3, -1))
    keeps = (values > threshold) & (values >= relative * values[0]) & (values > 0)
    keeps = _separate(peaks, keeps, math.cos(separation))
    # Kept ones first, in their order: a stable sort of two values.
    front = (~keeps).to(torch.int8).argsort(dim=0, stable=True)[:n_peaks]
    values = (values * keeps).gather(0, front)
    peaks = (peaks * keeps[:, None]).gather(0, front[:, None].expand(-1, 3, -1))
    return torch.where(peaks[:, 2:] < 0, -peaks, peaks), values


def _search(
    components: Float[Tensor, "n m"], start: Float[Tensor, "3 m"]
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"]]:
    """`find_peaks`, which gives up on ridges; here, where nothing ends because of it, its last direction is good enough."""
    found, amplitude = find_peaks(components, start)
    failed = pad_to_lanes(amplitude.isnan().nonzero().ravel())
    if len(failed):
        components, current = components[:, failed], start[:, failed]
        for _ in range(MAX_ITERATIONS):
            current, value, _ = ascend(components, current)
        found[:, failed], amplitude[failed] = current, value.nan_to_num(0.0)
    return found, amplitude


def _separate(peaks: Float[Tensor, "c 3 m"], keeps: Bool[Tensor, "c m"], cosine: float) -> Bool[Tensor, "c m"]:
    """Without those nearer than the separation to a larger one that stays."""
    kept: list[Tensor] = []
    for rank in range(len(peaks)):
        stays = keeps[rank]
        for larger, is_there in enumerate(kept):
            stays = stays & ~(is_there & (dot(peaks[rank], peaks[larger]).abs() > cosine))
        kept.append(stays)
    return torch.stack(kept)


def _starts(coeffs: Float[Tensor, "l m"], order: int, n: int) -> tuple[Float[Tensor, "c m 3"], Bool[Tensor, "c m"]]:
    """The largest local maxima among the coarse directions, and which of them there are."""
    directions, harmonics, neighbours = (part.to(coeffs.device) for part in _coarse(order, coeffs.dtype))
    amplitudes = coeffs.new_zeros(len(directions), coeffs.shape[1])
    for row, column in zip(harmonics, coeffs, strict=True):  # no matrix product: the same for any number of threads
        amplitudes.addcmul_(row[:, None], column)
    is_peak = amplitudes > 0
    for column in neighbours.unbind(1):
        is_peak &= amplitudes >= amplitudes.index_select(0, column)
    ranked = torch.where(is_peak, amplitudes, 0.0).topk(n, dim=0)
    index: Int[Tensor, "c m"] = ranked.indices
    return directions[index], ranked.values > 0
