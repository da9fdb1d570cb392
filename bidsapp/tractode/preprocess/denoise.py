"""MP-PCA denoising: in a small patch, what is as spread as pure noise would be is noise.

J. Veraart et al., *Denoising of diffusion MRI using random matrix theory*, NeuroImage 142:394 (2016),
doi:10.1016/j.neuroimage.2016.08.016 (``exp1``); the threshold for few voxels of L. Cordero-Grande et al., NeuroImage 200:391 (2019),
doi:10.1016/j.neuroimage.2019.06.039 (``exp2``); overlapping patches joined as J. V. Manjón et al., PLoS ONE 8:e73021 (2013),
doi:10.1371/journal.pone.0073021.

Departures: patches stand on every second voxel of each axis and overlap, and a voxel takes the mean of all that hold it, each weighted
by 1 / (1 + its number of components). With ``stride=1, joined="centre"`` a voxel takes its own patch alone, as in the first paper. At
the border a patch is moved inwards until it lies within the image. Patches are taken along the first axis, a slab at a time: what is
held beside the series is two slabs of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.errors import InputDataError, InternalError

Progress = Callable[[int, int], None]
LEAST_VOLUMES = 8
_TILE = 256  # patches; a fixed number, so that a result does not depend on how many there are
_SLAB = 1 << 28  # bytes of the series, about; a slab is one plane at least


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
    *,
    out: Float[Tensor, "n i j k"] | None = None,
) -> Denoised:
    """The series without its noise, where there is a mask (None: where there is any signal); elsewhere as it was.

    It is written to ``out`` if given, which may be the series itself. Raises `InputDataError` (E-DENOISE-FEW) if `why_not`.
    """
    settings = settings or DenoiseSettings()
    n, shape = len(signal), (signal.shape[1], signal.shape[2], signal.shape[3])
    if (reason := why_not(n)) is not None:
        raise InputDataError(
            reason, id="E-DENOISE-FEW", needed=f"at least {LEAST_VOLUMES} volumes", fix="leave denoising out"
        )
    wanted = (signal != 0).any(0) if mask is None else mask
    extent = extents(n, shape, settings.extent)
    anchors = _anchors(wanted, settings.stride)
    starts = _starts(anchors, shape, extent)
    found = Denoised(torch.empty_like(signal) if out is None else out, signal.new_zeros(shape), signal.new_zeros(shape))
    thickness = max(1, _SLAB // (signal[:, :1].numel() * signal.element_size()))
    slab, done = None, 0
    for begin in range(0, shape[0], thickness):
        # No patch that begins farther on holds these planes: they are finished then, and not read again.
        end = min(begin + thickness, shape[0])
        own = ((starts[:, 0] >= begin) & (starts[:, 0] < end)).nonzero()[:, 0]
        slab = _Slab.of(signal, begin, min(end + extent[0] - 1, shape[0]), slab)
        for part in own.split(_TILE):
            slab.add(starts[part], anchors[part], extent, settings)
            done += len(part)
            progress(done, len(starts))
        slab.write(found, wanted[begin:end])
    return found


@dataclass(frozen=True, eq=False)
class _Slab:
    """Planes of the series: their signals, weighted sums of the patches' results, their weights, and sums of 1, sigma and rank.

    Voxels are rows here.
    """

    first: int
    shape: tuple[int, int, int]
    rows: Float[Tensor, "v n"]
    total: Float[Tensor, "v n"]
    weight: Float[Tensor, " v"]
    sums: Float[Tensor, "3 v"]

    @classmethod
    def of(cls, signal: Float[Tensor, "n i j k"], begin: int, end: int, before: _Slab | None) -> _Slab:
        """The planes from ``begin`` to ``end``, with the sums of those that the slab before reached into."""
        planes = signal[:, begin:end]
        rows = planes.reshape(len(signal), -1).mT.contiguous()
        slab = cls(
            begin, (planes.shape[1], planes.shape[2], planes.shape[3]), rows, torch.zeros_like(rows),
            rows.new_zeros(len(rows)), rows.new_zeros(3, len(rows)),
        )  # fmt: skip
        if before is not None:
            skipped = (begin - before.first) * planes.shape[2] * planes.shape[3]
            held = len(before.rows) - skipped
            slab.total[:held] = before.total[skipped:]
            slab.weight[:held] = before.weight[skipped:]
            slab.sums[:, :held] = before.sums[:, skipped:]
        return slab

    def add(
        self,
        starts: Int[Tensor, "a 3"],
        anchors: Int[Tensor, "a 3"],
        extent: tuple[int, int, int],
        settings: DenoiseSettings,
    ) -> None:
        """What some patches give."""
        offset = self._flat(torch.cartesian_prod(*(torch.arange(e, device=starts.device) for e in extent)))
        index = self._flat(starts - self._origin(starts))[:, None] + offset
        clean, sigma, rank = patch_pca(self.rows[index], settings.estimator)
        if settings.joined == "centre":
            own = self._flat(anchors - self._origin(anchors))
            clean, index, each = clean[index == own[:, None]], own, torch.ones_like(sigma)
        else:
            each = (1 / (1 + rank))[:, None].expand(index.shape).reshape(-1)
            clean, index = clean.flatten(0, 1), index.reshape(-1)
            sigma, rank = (value[:, None].expand(-1, len(offset)).reshape(-1) for value in (sigma, rank))
        self.total.index_add_(0, index, clean * each[:, None])
        self.weight.index_add_(0, index, each)
        self.sums.index_add_(1, index, torch.stack((torch.ones_like(sigma), sigma, rank)))

    def write(self, found: Denoised, wanted: Bool[Tensor, "i j k"]) -> None:
        """The first planes, which are finished: as many as ``wanted`` has."""
        part, count = slice(self.first, self.first + len(wanted)), wanted.numel()
        done = (self.weight[:count] > 0) & wanted.reshape(-1)
        mean = self.total[:count] / self.weight[:count, None].clamp_min(1e-12)
        values = torch.where(done[:, None], mean, self.rows[:count])
        found.signal[:, part] = values.mT.reshape(-1, *wanted.shape)
        _, sigma, rank = torch.where(done, self.sums[:, :count] / self.sums[0, :count].clamp_min(1), 0.0)
        found.noise[part], found.rank[part] = sigma.reshape(wanted.shape), rank.reshape(wanted.shape)

    def _origin(self, index: Tensor) -> Int[Tensor, " 3"]:
        return torch.tensor([self.first, 0, 0]).to(index)

    def _flat(self, index: Int[Tensor, "a 3"]) -> Int[Tensor, " a"]:
        return (index[:, 0] * self.shape[1] + index[:, 1]) * self.shape[2] + index[:, 2]


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


def patch_pca(
    patches: Float[Tensor, "a m n"], estimator: Literal["exp1", "exp2"] = "exp2"
) -> tuple[Float[Tensor, "a m n"], Float[Tensor, " a"], Float[Tensor, " a"]]:
    """Each patch (``m`` voxels by ``n`` volumes) without its noise; the noise's standard deviation; number of components kept."""
    m, n = patches.shape[1:]
    exact = patches.to(torch.float64)
    gram = exact.mT @ exact if m >= n else exact @ exact.mT
    try:
        values, vectors = torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError as error:  # not of finite numbers; half of the series may be overwritten by now
        raise InternalError(f"Denoising: {error}", id="E-DENOISE-EIGEN") from error
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
