"""Grey matter, white matter and fluid of a T1w or T2w image: a mixture of Gaussians with a template's priors, under a coil field.

J. Ashburner, K. J. Friston, *Unified segmentation*, NeuroImage 26:839 (2005), doi:10.1016/j.neuroimage.2005.02.018; voxels of
two tissues as D. H. Laidlaw et al., IEEE TMI 17:74 (1998), doi:10.1109/42.668696; neighbours as K. Van Leemput et al., IEEE
TMI 18:897 (1999), doi:10.1109/42.811270.

Departures: the priors come deformed from our registration and are not moved again; mixed voxels are Gaussians at three shares,
whose means hang on those of the pure tissues, so that the result is fractions and not probabilities; what is not brain is
four Gaussians under one prior (there are no maps of bone and skin); the field is a few cosines over the brain's box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid, Transform
from tractode.fields.image import check_same_grid
from tractode.fields.transform import resample
from tractode.ops import smooth
from tractode.preprocess import gaussian_mixture, morphology
from tractode.preprocess.gaussian_mixture import GREY, OTHER, WHITE

_TILE = 1 << 18


@dataclass(frozen=True)
class SegmentationSettings:
    """How the mixture is found.

    Parameters
    ----------
    spacing_mm
        About the distance of the voxels that means, spreads and field are found from.
    iterations, tolerance
        Of EM: the most, and the gain of log likelihood per voxel at which it ends.
    order
        Highest total order of the cosines of the field; 0 leaves it at 1.
    field_weight
        Stiffness of the field, for a voxel and a cosine of order 1.
    neighbours, sweeps
        What a neighbour of one tissue adds to that tissue's log probability, and how often neighbours are asked.
    prior_sd_mm
        The priors are smoothed by this: about the error of a registration.
    least_prior
        Of every tissue, everywhere.
    margin_mm
        How far around the priors' brain the image is looked at.
    """

    spacing_mm: float = 3.0
    iterations: int = 25
    tolerance: float = 1e-4
    order: int = 5
    field_weight: float = 0.02
    neighbours: float = 0.15
    sweeps: int = 3
    prior_sd_mm: float = 1.5
    least_prior: float = 2e-3
    margin_mm: float = 10.0
    n_other: int = 4


SLOPPY = SegmentationSettings(spacing_mm=4.0, iterations=12, order=3, sweeps=2)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found, on the image's grid.

    Parameters
    ----------
    tissues
        Fractions of grey matter, white matter and CSF; they sum to 1 in ``mask`` and to 0 outside.
    field
        What the image is to be divided by to undo the coils' shading; its geometric mean in the mask is 1.
    means, deviations
        Of the three tissues' intensities, in the image's units after division.
    iterations
        Steps of EM that were taken.
    """

    grid: ImageGrid
    tissues: Float[Tensor, "3 i j k"]
    mask: Bool[Tensor, "i j k"]
    field: Float[Tensor, "i j k"]
    means: tuple[float, float, float]
    deviations: tuple[float, float, float]
    iterations: int

    @property
    def labels(self) -> Tensor:
        """0 outside, 1 grey matter, 2 white matter, 3 CSF: the largest fraction, as BIDS counts tissues."""
        return (self.tissues.argmax(0) + 1).to(torch.int16) * self.mask

    @property
    def contrast(self) -> float:
        """Distance of grey and white matter's means in their common standard deviation."""
        spread = (self.deviations[GREY] ** 2 + self.deviations[WHITE] ** 2) / 2
        return abs(self.means[GREY] - self.means[WHITE]) / max(spread, 1e-12) ** 0.5


def template_priors(grey: Image, white: Image, mask: Image, csf: Image | None = None) -> Image:
    """Grey, white, CSF (3 channels) of a template, scaled down where they sum to more than 1; without ``csf`` that is the rest of the mask."""
    inside = mask.mask.to(grey.values.dtype)
    parts = [grey.values[0], white.values[0]] + ([] if csf is None else [csf.values[0]])
    known = torch.stack(parts).clamp(0, 1) * inside
    known = known / known.sum(0, keepdim=True).clamp_min(1)
    rest = known[2] if csf is not None else (inside - known.sum(0)).clamp_min(0)
    return Image(grey.grid, torch.stack((known[0], known[1], rest)))


def carried(priors: Image, grid: ImageGrid, transform: Transform) -> Image:
    """The template's priors on an image's grid; ``transform`` maps the image's points to the template's.

    The deformation is followed every 2 mm, and priors are interpolated between: they are smoothed more than that.
    """
    coarse = grid.resampled(2.0) if min(grid.voxel_sizes) < 1.5 else grid
    moved = resample(priors, coarse, transform)
    return moved if coarse is grid else Image(grid, moved.sample(grid.centres(), outside="nearest").permute(3, 0, 1, 2))


def segment(image: Image, priors: Image, settings: SegmentationSettings | None = None) -> Segmentation:
    """Fractions of grey matter, white matter and CSF in every voxel.

    Parameters
    ----------
    image
        One channel of any contrast in which the tissues differ; a whole head or a brain alone.
    priors
        Grey, white, CSF on the same grid (`carried`).

    Raises
    ------
    InputDataError (E-SEG-PRIORS, E-SEG-CONTRAST)
        The priors miss the image, or grey and white matter look alike in it.
    """
    settings = settings or SegmentationSettings()
    check_same_grid(priors.grid, image.grid, "Priors of a segmentation")
    window = _window(priors, settings.margin_mm)
    values = torch.nan_to_num(image.values[0][window].double(), nan=0.0, posinf=0.0, neginf=0.0)
    prior = _smoothed(priors.values[(slice(None), *window)].double(), image.grid, settings)
    level = _level(values, prior)
    basis = gaussian_mixture.Cosines(values.shape, settings.order)
    mixture, weights, steps = _learned(values / level, prior, basis, image.grid, settings)
    logarithm = basis.field(weights)
    fractions = _fractions(values / level * logarithm.exp(), prior, mixture, image.grid, settings)
    return _finished(image.grid, window, fractions, logarithm, mixture, level, steps)


# --- where to look ---------------------------------------------------------------------------------------------------


def _window(priors: Image, margin: float) -> tuple[slice, slice, slice]:
    """The box of the priors' brain, widened."""
    inside = priors.values.sum(0) > 0.05
    if int(inside.sum()) * float(np.prod(priors.grid.voxel_sizes)) < 20_000:
        raise InputDataError(
            "The template's tissues do not lie in the image",
            id="E-SEG-PRIORS",
            needed="a registration that brings 20 ml of brain or more into the image",
            fix="look at the registration to the template in the report",
        )
    found = inside.nonzero()
    low, high = found.amin(0).tolist(), found.amax(0).tolist()
    wide = [int(np.ceil(margin / size)) for size in priors.grid.voxel_sizes]
    a, b, c = (slice(max(0, first - w), last + w + 1) for first, last, w in zip(low, high, wide, strict=True))
    return a, b, c


def _smoothed(
    priors: Float[Tensor, "3 i j k"], grid: ImageGrid, settings: SegmentationSettings
) -> Float[Tensor, "4 i j k"]:
    """Priors of all four, smoothed, none below the least."""
    sigma = [settings.prior_sd_mm / size for size in grid.voxel_sizes]
    soft = smooth.gaussian(priors.clamp(0, 1), (sigma[0], sigma[1], sigma[2]))
    whole = torch.cat((soft, (1 - soft.sum(0, keepdim=True)).clamp_min(0)))
    return whole.clamp_min(settings.least_prior) / whole.clamp_min(settings.least_prior).sum(0, keepdim=True)


def _level(values: Float[Tensor, "i j k"], prior: Float[Tensor, "4 i j k"]) -> float:
    """The median of what is surely brain, so that every image is about 1 there."""
    sure = values[prior[OTHER] < 0.2]
    level = float(sure.median()) if sure.numel() else 0.0
    if not level > 0:
        raise InputDataError(
            "The image is not above 0 where the template's brain lies",
            id="E-SEG-PRIORS",
            needed="a registration that brings the template's brain onto the image's",
            fix="look at the registration to the template in the report",
        )
    return level


# --- the mixture -------------------------------------------------------------------------------------------------------


def _learned(
    values: Float[Tensor, "i j k"],
    prior: Float[Tensor, "4 i j k"],
    basis: gaussian_mixture.Cosines,
    grid: ImageGrid,
    settings: SegmentationSettings,
) -> tuple[gaussian_mixture.Mixture, Float[Tensor, " a"], int]:
    """Means, spreads, weights and field by EM on voxels some millimetres apart."""
    strides = [max(1, round(settings.spacing_mm / size)) for size in grid.voxel_sizes]
    lattice = torch.meshgrid(
        *(torch.arange((n - 1) % s // 2, n, s) for n, s in zip(values.shape, strides, strict=True)), indexing="ij"
    )
    index = torch.stack(lattice, dim=-1).reshape(-1, 3)
    raw, near = values[tuple(index.T)], prior[(slice(None), *index.T)].T
    functions = basis.at(index)
    mixture = gaussian_mixture.start(raw, near, settings.n_other)
    weights = torch.zeros(functions.shape[1], dtype=raw.dtype)
    log_prior, before, step = near.log(), -float("inf"), 0
    for step in range(1, settings.iterations + 1):
        logarithm = functions @ weights
        lit = raw * logarithm.exp()
        shares, likelihood = gaussian_mixture.memberships(lit, log_prior, mixture)
        now = float((likelihood + logarithm).mean())
        if now - before < settings.tolerance and step > 10:
            break
        before = now
        mixture = gaussian_mixture.updated(mixture, lit, shares, log_prior)
        if step > 2 and settings.order:
            weights = gaussian_mixture.field_step(
                weights, functions, lit, shares, mixture, basis.orders, settings.field_weight
            )
    return mixture, weights, step


# --- every voxel ---------------------------------------------------------------------------------------------------------


def _fractions(
    values: Float[Tensor, "i j k"],
    prior: Float[Tensor, "4 i j k"],
    mixture: gaussian_mixture.Mixture,
    grid: ImageGrid,
    settings: SegmentationSettings,
) -> Float[Tensor, "4 i j k"]:
    """Expected fractions, asked of the neighbours' in turn (mean field)."""
    # Where the priors know of no brain at all nothing is asked.
    places = (prior[OTHER] < 1 - 4 * settings.least_prior).reshape(-1).nonzero()[:, 0]
    flat, log_prior = values.reshape(-1)[places].float(), prior.reshape(4, -1)[:, places].float().log()
    loads = mixture.tissues.float()
    whole = torch.zeros(4, values.numel())
    whole[OTHER] = 1
    for sweep in range(settings.sweeps + 1):
        near = settings.neighbours * _around(whole.reshape(4, *values.shape), grid).reshape(4, -1)[:, places]
        found = torch.empty_like(log_prior)
        for start in range(0, len(places), _TILE):
            tile = slice(start, start + _TILE)
            known = log_prior[:, tile] + near[:, tile] if sweep else log_prior[:, tile]
            shares, _ = gaussian_mixture.memberships(flat[tile], known.T, mixture)
            found[:, tile] = (shares @ loads).T
        whole[:, places] = found
    return whole.reshape(4, *values.shape)


def _around(found: Float[Tensor, "4 i j k"], grid: ImageGrid) -> Float[Tensor, "4 i j k"]:
    """Sum over the six neighbours, nearer ones counting more; an edge has none beyond it."""
    sizes = grid.voxel_sizes
    mean = float(np.prod(sizes)) ** (1 / 3)
    total = torch.zeros_like(found)
    for axis, size in enumerate(sizes):
        n = found.shape[axis + 1]
        if n > 1:
            total.narrow(axis + 1, 1, n - 1).add_(found.narrow(axis + 1, 0, n - 1), alpha=mean / size)
            total.narrow(axis + 1, 0, n - 1).add_(found.narrow(axis + 1, 1, n - 1), alpha=mean / size)
    return total


def _finished(
    grid: ImageGrid,
    window: tuple[slice, slice, slice],
    fractions: Float[Tensor, "4 i j k"],
    logarithm: Float[Tensor, "i j k"],
    mixture: gaussian_mixture.Mixture,
    level: float,
    steps: int,
) -> Segmentation:
    """Put back on the image's grid, cleaned of what hangs on the brain by a thread, and in the image's units."""
    inside = morphology.detached(torch.as_tensor(fractions[:3].sum(0) > 0.5).numpy(), 2.0, 3.0, grid.voxel_sizes)
    kept = torch.from_numpy(morphology.filled(inside))
    total = fractions[:3].sum(0).clamp_min(1e-6)
    tissues = torch.zeros(3, *grid.shape)
    tissues[(slice(None), *window)] = torch.where(kept, fractions[:3] / total, 0.0).float()
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[window] = kept
    middle = float(logarithm[kept].mean()) if bool(kept.any()) else 0.0
    field = torch.ones(grid.shape)
    field[window] = (middle - logarithm).exp().float()
    scale = level * float(np.exp(-middle))
    means = [float(m) * scale for m in mixture.mean[:3]]
    deviations = [float(v) ** 0.5 * scale for v in mixture.variance[:3]]
    made = Segmentation(
        grid, tissues, mask, field, (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2]), steps
    )
    if not bool(kept.any()) or made.contrast < _LEAST_CONTRAST:
        raise InputDataError(
            f"Grey and white matter cannot be told apart in the image (their means lie {made.contrast:.2f} standard deviations apart)",
            id="E-SEG-CONTRAST",
            needed=f"an image in which they lie {_LEAST_CONTRAST} standard deviations apart or more",
            fix="give a T1w or T2w image of better contrast, or the tissues themselves with --derivatives",
        )
    return made


_LEAST_CONTRAST = 0.75
