"""MP-PCA denoising: in a small patch, what is as spread as pure noise would be is noise.

J. Veraart et al., *Denoising of diffusion MRI using random matrix theory*, NeuroImage 142:394 (2016),
doi:10.1016/j.neuroimage.2016.08.016 (``exp1``); the threshold for few voxels of L. Cordero-Grande et al., NeuroImage 200:391 (2019),
doi:10.1016/j.neuroimage.2019.06.039 (``exp2``); overlapping patches joined as J. V. Manjón et al., PLoS ONE 8:e73021 (2013),
doi:10.1371/journal.pone.0073021.

Departures: patches stand on every second voxel of each axis and overlap, and a voxel takes the mean of all that hold it, each weighted
by 1 / (1 + its number of components). With ``stride=1, joined="centre"`` a voxel takes its own patch alone, as in the first paper. At
the border a patch is moved inwards until it lies within the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.errors import InputDataError

Progress = Callable[[int, int], None]
LEAST_VOLUMES = 8
_TILE = 256  # patches; a fixed number, so that a result does not depend on how many there are


@dataclass(frozen=True)
class DenoiseSettings:
    """``extent``: edge of the cubic patch in voxels; None: the smallest odd one that holds as many voxels as there are volumes."""

    extent: int | None = None
    estimator: Literal["exp1", "exp2"] = "exp2"
    stride: int = 2
    joined: Literal["overlap", "centre"] = "overlap"


@dataclass(frozen=True, eq=False)
class Denoised:
    """``noise``: its standard deviation in the signal's units; ``rank``: number of components kept. 0 where nothing was done."""

    signal: Float[Tensor, "n i j k"]
    noise: Float[Tensor, "i j k"]
    rank: Float[Tensor, "i j k"]


def why_not(n_volumes: int) -> str | None:
    """Why a series of so many volumes cannot be denoised, in words for a user; ``None`` if it can."""
    if n_volumes < LEAST_VOLUMES:
        return f"noise is told from signal by what volumes have in common: it needs at least {LEAST_VOLUMES} volumes; this series has {n_volumes}"
    return None


def denoise(
    signal: Float[Tensor, "n i j k"],
    mask: Bool[Tensor, "i j k"] | None = None,
    settings: DenoiseSettings | None = None,
    progress: Progress = lambda done, total: None,
) -> Denoised:
    """The series without its noise, where there is a mask (None: where there is any signal); elsewhere as it was.

    Raises `InputDataError` (E-DENOISE-FEW) if `why_not`.
    """
    settings = settings or DenoiseSettings()
    n, shape = len(signal), (signal.shape[1], signal.shape[2], signal.shape[3])
    if (reason := why_not(n)) is not None:
        raise InputDataError(
            reason, id="E-DENOISE-FEW", needed=f"at least {LEAST_VOLUMES} volumes", fix="leave denoising out"
        )
    wanted = signal.abs().amax(0) > 0 if mask is None else mask
    extent = extents(n, shape, settings.extent)
    anchors = _anchors(wanted, settings.stride)
    starts = _starts(anchors, shape, extent)
    total, weight, sums = _sums(signal, starts, anchors, extent, settings, progress)
    done = (weight > 0) & wanted
    out = torch.where(done, total / weight.clamp_min(1e-12), signal)
    counted = sums[0].clamp_min(1.0)
    return Denoised(out, torch.where(done, sums[1] / counted, 0.0), torch.where(done, sums[2] / counted, 0.0))


def extents(n: int, shape: tuple[int, int, int], edge: int | None) -> tuple[int, int, int]:
    """Edges of the patch; never longer than the image."""
    if edge is None:
        edge = 3
        while edge**3 < n:
            edge += 2
    i, j, k = (min(edge, size) for size in shape)
    return i, j, k


def _anchors(wanted: Bool[Tensor, "i j k"], stride: int) -> Int[Tensor, "a 3"]:
    """Voxels that patches are centred on: one in each block of ``stride`` that has a voxel wanted."""
    if stride == 1:
        return wanted.nonzero()
    blocks = torch.unique(wanted.nonzero() // stride, dim=0)
    last = torch.tensor(wanted.shape, device=wanted.device) - 1
    return (blocks * stride + stride // 2).minimum(last)


def _starts(
    anchors: Int[Tensor, "a 3"], shape: tuple[int, int, int], extent: tuple[int, int, int]
) -> Int[Tensor, "a 3"]:
    """The first voxel of each patch, which lies within the image."""
    size = torch.tensor(extent, device=anchors.device)
    furthest = torch.tensor(shape, device=anchors.device) - size
    return (anchors - size // 2).clamp_min(0).minimum(furthest)


def _sums(
    signal: Float[Tensor, "n i j k"],
    starts: Int[Tensor, "a 3"],
    anchors: Int[Tensor, "a 3"],
    extent: tuple[int, int, int],
    settings: DenoiseSettings,
    progress: Progress,
) -> tuple[Float[Tensor, "n i j k"], Float[Tensor, "i j k"], Float[Tensor, "3 i j k"]]:
    """Weighted sums of the patches' results, their weights, and sums of 1, sigma and rank."""
    n, shape = len(signal), signal.shape[1:]
    rows = signal.reshape(n, -1).mT.contiguous()
    offset = _flat(torch.cartesian_prod(*(torch.arange(e, device=signal.device) for e in extent)), shape)
    total, weight = torch.zeros_like(rows), rows.new_zeros(len(rows))
    sums = rows.new_zeros(3, len(rows))
    first, own = _flat(starts, shape), _flat(anchors, shape)
    for begin in range(0, len(first), _TILE):
        index = first[begin : begin + _TILE, None] + offset
        clean, sigma, rank = patch_pca(rows[index], settings.estimator)
        if settings.joined == "centre":
            at = own[begin : begin + _TILE]
            clean = clean[index == at[:, None]]
            index, each = at, torch.ones_like(sigma)
        else:
            each = (1 / (1 + rank))[:, None].expand(index.shape).reshape(-1)
            clean, index = clean.flatten(0, 1), index.reshape(-1)
            sigma, rank = (value[:, None].expand(-1, len(offset)).reshape(-1) for value in (sigma, rank))
        total.index_add_(0, index, clean * each[:, None])
        weight.index_add_(0, index, each)
        sums.index_add_(1, index, torch.stack((torch.ones_like(sigma), sigma, rank)))
        progress(min(begin + _TILE, len(first)), len(first))
    return total.mT.reshape(signal.shape), weight.reshape(shape), sums.reshape(3, *shape)


def _flat(index: Int[Tensor, "a 3"], shape: torch.Size) -> Int[Tensor, " a"]:
    return (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]


def patch_pca(
    patches: Float[Tensor, "a m n"], estimator: Literal["exp1", "exp2"] = "exp2"
) -> tuple[Float[Tensor, "a m n"], Float[Tensor, " a"], Float[Tensor, " a"]]:
    """Each patch (``m`` voxels by ``n`` volumes) without its noise; the noise's standard deviation; number of components kept."""
    m, n = patches.shape[1:]
    exact = patches.to(torch.float64)
    gram = exact.mT @ exact if m >= n else exact @ exact.mT
    values, vectors = torch.linalg.eigh(gram)
    n_noise, variance = noise_components(values, max(m, n), estimator)
    kept = torch.arange(min(m, n), device=patches.device) >= n_noise[:, None]
    basis = (vectors * kept[:, None]).to(patches)
    clean = (patches @ basis) @ basis.mT if m >= n else basis @ (basis.mT @ patches)
    return clean, variance.sqrt().to(patches), kept.sum(-1).to(patches)


def noise_components(
    values: Float[Tensor, "a r"], longer: int, estimator: Literal["exp1", "exp2"]
) -> tuple[Int[Tensor, " a"], Float[Tensor, " a"]]:
    """How many of the eigenvalues (ascending, of the Gram matrix of the shorter side) are noise, and its variance.

    Of ``p`` components of noise the mean eigenvalue is σ² (eq. 10 of Veraart), and by Marchenko and Pastur their range is 4 σ² √γ, with
    γ = p / M (``exp1``) or p / (M − r + p) (``exp2``), M the longer side: the largest p whose range gives no more than its mean does.
    """
    r = values.shape[-1]
    share = values.clamp_min(0) / longer
    p = torch.arange(1, r + 1, device=values.device, dtype=values.dtype)
    gamma = p / (longer if estimator == "exp1" else longer - r + p)
    by_mean = share.cumsum(-1) / p
    by_range = (share - share[:, :1]) / (4 * gamma.sqrt())
    is_noise = by_range < by_mean
    count = torch.where(is_noise, torch.arange(1, r + 1, device=values.device), 0).amax(-1)
    variance = by_mean.gather(-1, (count - 1).clamp_min(0)[:, None])[:, 0]
    return count, torch.where(count > 0, variance, 0.0)
