"""A brain mask from the mean b=0 image, by threshold and morphology in mm.

Otsu, *A threshold selection method from gray-level histograms*, IEEE Trans SMC 1979, doi:10.1109/TSMC.1979.4310076.
Departures: bright fluid is clipped first, so that the threshold falls between air and tissue; the brain is separated
from eyes and neck by an erosion in mm (not voxels) that treats the edge of the field of view as brain, for slabs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from tractode.errors import InputDataError
from tractode.fields import DWI, Image
from tractode.preprocess import morphology

_SMALLEST_ML = 20.0  # less than any brain that this app is for; a mask below it is a failure


@dataclass(frozen=True)
class MaskSettings:
    """Lengths in mm; ``level`` is the threshold as a share of the way from background to tissue."""

    level: float = 0.42
    separation_mm: float = 9.0
    regrowth_mm: float = 10.0
    closing_mm: float = 9.0
    shading_mm: float = 15.0


def dwi_reference(dwi: DWI) -> Image:
    """The mean b=0 image, negatives and non-finite values set to 0: what masks, registrations and reports look at."""
    mean = dwi.mean_b0()
    return Image(mean.grid, torch.nan_to_num(mean.values, nan=0.0, posinf=0.0, neginf=0.0).clamp_min(0))


def brain_mask(mean_b0: Image, settings: MaskSettings | None = None) -> Image:
    """The brain as one boolean channel on the image's grid; any orientation, whole heads and slabs.

    Raises `InputDataError` (E-MASK-EMPTY) where no brain-sized object stands out from the background.
    """
    settings = settings or MaskSettings()
    spacing = mean_b0.grid.voxel_sizes
    volume = np.nan_to_num(mean_b0.values[0].detach().cpu().to(torch.float64).numpy(), posinf=0.0, neginf=0.0)
    tissue = _tissue(np.maximum(volume, 0), spacing, settings)
    core = morphology.largest(morphology.eroded(tissue, settings.separation_mm, spacing))
    grown = morphology.within(core, settings.regrowth_mm, spacing) & tissue
    wide = morphology.within(grown, settings.closing_mm, spacing)
    closed = morphology.eroded(wide, settings.closing_mm, spacing) | grown
    filled = morphology.filled(morphology.largest(closed))
    millilitres = morphology.millilitres(filled, spacing)
    if millilitres < _SMALLEST_ML:
        raise InputDataError(
            f"The brightest object of the mean b=0 image measures {millilitres:.1f} ml",
            id="E-MASK-EMPTY",
            needed=f"a brain of at least {_SMALLEST_ML:.0f} ml that stands out from the background",
            fix="look at the b=0 volumes and at which volumes the gradient table calls b=0",
        )
    return Image(mean_b0.grid, torch.from_numpy(filled)[None])


def _tissue(
    volume: Float[np.ndarray, "i j k"], spacing: tuple[float, float, float], settings: MaskSettings
) -> Bool[np.ndarray, "i j k"]:
    """Voxels brighter than a share of the tissue's level; speckle removed by a 3×3×3 median."""
    smooth = ndimage.median_filter(volume, size=3, mode="nearest")
    first = otsu(smooth.ravel())
    bright = smooth[smooth > first]
    if not bright.size:
        return np.zeros(volume.shape, dtype=bool)
    clipped = np.minimum(smooth, np.median(bright))
    inside = smooth > otsu(clipped.ravel())
    tissue, background = np.median(smooth[inside]), np.median(smooth[~inside]) if not inside.all() else 0.0
    # Coils and dropout shade the image (the brainstem is darker than the cortex): the tissue's level is a local one.
    sigma = [settings.shading_mm / size for size in spacing]
    weight = ndimage.gaussian_filter(inside.astype(float), sigma, mode="nearest")
    total = ndimage.gaussian_filter(np.where(inside, np.minimum(smooth, 1.5 * tissue), 0), sigma, mode="nearest")
    local = np.clip((total + 0.05 * tissue) / (weight + 0.05), 0.5 * tissue, 1.2 * tissue)
    return smooth > background + settings.level * (local - background)


def otsu(values: Float[np.ndarray, " n"], bins: int = 256) -> float:
    """The threshold that maximises the variance between the two classes."""
    counts, edges = np.histogram(values, bins=bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    weighted = (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (weighted / below - (weighted[-1] - weighted) / above) ** 2
    return float(edges[1 + int(np.nan_to_num(between).argmax())])
