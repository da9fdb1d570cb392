"""A diffusion series and its gradient table → `DWI`, with every check that needs both; all that is wrong told at once.

Only clear cases are mended, and each is noted: a trace volume is dropped, a b = 0 with a b-value is renamed, single
values that are not finite are masked out, few negative values set to 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import DWI, ImageGrid
from tractode.fields.scheme import clusters
from tractode.io.gradient_checks import check_scheme, provenance_notes
from tractode.io.gradients import GradientPolicy, StoredGradients, no_direction, parse_gradients, to_table
from tractode.io.nifti import StoredImage, read_stored
from tractode.io.notes import Note, warning
from tractode.io.problems import Problems

_MOST_NONFINITE, _MOST_NEGATIVE = 0.001, 0.05  # shares of the brain
_RECONVERT = "convert the series again from its source"


@dataclass(frozen=True)
class IngestPolicy(GradientPolicy):
    """What the user explicitly allows, beside what `GradientPolicy` names.

    ``assume_orientation``: take an image without an orientation as LAS. ``will_track``: refuse what streamlines cannot be
    followed through (a single slice).
    """

    assume_orientation: bool = False
    will_track: bool = False


def read_dwi(
    nii: Path,
    bval: Path,
    bvec: Path,
    space: str,
    policy: IngestPolicy | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> tuple[DWI, list[Note]]:
    """The series with its table in the scanner frame; the mask is true wherever every value is finite.

    Parameters
    ----------
    nii, bval, bvec
        The three files.
    space
        The name of the space, for the grid.
    policy
        The user's permissions.
    metadata
        The sidecar, for the provenance of the vectors; without it nothing is said about that.

    Raises
    ------
    MissingInputError, InputDataError
        All that was found wrong, in one message.
    """
    policy = policy or IngestPolicy()
    problems = Problems()
    stored = problems.attempt(_read_series, nii, space, policy)
    n_volumes = None if stored is None else stored.image.values.shape[0]
    parsed = problems.attempt(parse_gradients, bval, bvec, n_volumes, policy=policy)
    problems.raise_any()
    assert stored is not None
    assert parsed is not None
    (gradients, notes), grid = parsed, stored.image.grid
    notes = [*stored.notes, *notes]
    if metadata is not None:
        notes += provenance_notes(metadata, grid, bvec)
    cleaned = problems.attempt(_clean, stored.image.values, gradients.is_b0, nii)
    if cleaned is None:
        problems.attempt(check_scheme, to_table(_directed(gradients)[0], grid.affine), policy, bval, bvec)
        problems.raise_any()
    assert cleaned is not None
    signal, mask, more = cleaned
    gradients, kept, settled = _settle_directions(signal, gradients, bvec)
    gtab = to_table(gradients, grid.affine)
    notes += [*more, *settled, *check_scheme(gtab, policy, bval, bvec)]
    return DWI(grid, signal[torch.tensor(kept)] if len(kept) < len(signal) else signal, gtab, mask), notes


def check_extent(grid: ImageGrid, path: Path) -> None:
    """Raise where the image is a single slice, row or voxel: nothing can be tracked through it."""
    if min(grid.shape) < 2:
        raise InputDataError(
            f"the image has {grid.shape[0]} × {grid.shape[1]} × {grid.shape[2]} voxels",
            id="E-IMG-SLICE",
            path=path,
            needed="at least 2 voxels along each axis for tracking",
            fix="pass --no-tracking to fit the models alone",
        )


def check_brain(dwi: DWI, path: Path) -> tuple[DWI, list[Note]]:
    """The series without the voxels of its mask that hold no signal; to be called once ``mask`` is the brain.

    Voxels with NaN or infinity were emptied by `read_dwi`; those outside a tilted field of view are empty as well.
    """
    alive = (dwi.signal[dwi.gtab.is_b0] if bool(dwi.gtab.is_b0.any()) else dwi.signal).amax(dim=0) > 0
    mask = dwi.mask & alive
    lost = int((dwi.mask & ~alive).sum())
    if not bool(mask.any()):
        raise InputDataError(
            "no voxel of the brain mask holds a signal",
            id="E-DWI-NOBRAIN",
            path=path,
            needed="an image of a head",
            fix="look at the image: is this a head, and is its signal there?",
        )
    if not lost:
        return dwi, []
    share = 100 * lost / int(dwi.mask.sum())
    return replace(dwi, mask=mask), [
        warning(
            "W-DWI-HOLES",
            f"{path.name}: {lost} voxels of the brain mask ({share:.2g} %) hold no signal and were left out",
        )
    ]


def head_mask(mean: Float[Tensor, "i j k"]) -> Bool[Tensor, "i j k"]:
    """A rough mask of the head by Otsu's threshold, holes filled: enough to say which share of it is damaged.

    Otsu 1979, https://doi.org/10.1109/TSMC.1979.4310076. The brain mask proper is made later, by ``preprocess/mask``.
    """
    values = np.nan_to_num(mean.numpy(), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    # A few bright voxels (eyes, fat, blood) would pull the threshold above the brain.
    values = values.clip(max=np.percentile(values, 98)) if values.max() > 0 else values
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = counts.cumsum(), counts[::-1].cumsum()[::-1]
    means_below = (counts * centres).cumsum() / below.clip(min=1)
    means_above = (counts * centres)[::-1].cumsum()[::-1] / above.clip(min=1)
    between = below[:-1].astype(float) * above[1:] * (means_below[:-1] - means_above[1:]) ** 2
    return torch.tensor(ndimage.binary_fill_holes(values > edges[1 + int(between.argmax())]))


def _read_series(nii: Path, space: str, policy: IngestPolicy) -> StoredImage:
    stored = read_stored(nii, space, assume_orientation=policy.assume_orientation)
    if stored.n_dimensions != 4:
        raise InputDataError(
            "the series has one volume", id="E-DWI-3D", path=nii, needed="four dimensions, volumes last", fix=_RECONVERT
        )
    if policy.will_track:
        check_extent(stored.image.grid, nii)
    return stored


def _clean(signal: Float[Tensor, "n i j k"], is_b0: np.ndarray, nii: Path) -> tuple[Tensor, Tensor, list[Note]]:
    """Signal without NaN, infinity or negative values, where its values can be used, and what was done."""
    reference = signal[torch.tensor(is_b0)] if is_b0.any() and len(is_b0) == len(signal) else signal
    # The extremes of a volume are finite where all of it is: no mask as large as the series for what hardly ever happens.
    low, high = _extremes(signal)
    mask = torch.ones(signal.shape[1:], dtype=torch.bool)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        # In place, volume by volume: the values are ours, and another copy of a large series would not fit.
        for volume in signal:
            mask &= torch.isfinite(volume)
            volume.nan_to_num_(0.0, 0.0, 0.0)
        low, high = _extremes(signal)
    _check_constant(low, high, signal[0].numel(), nii)
    head = head_mask(_mean_of_finite(reference))
    if not bool(head.any()):
        head = torch.ones_like(head)
    notes = _nonfinite(mask, head, nii)
    if notes:
        # One bad volume spoils every fit of the voxel: it is emptied whole, so that it stays recognisable.
        signal.mul_(mask)
    if float(low.min()) < 0:
        negative = signal < 0
        share = float(negative[:, head].float().mean())
        if share > _MOST_NEGATIVE:
            raise InputDataError(
                f"{100 * share:.1f} % of the values in the head are negative",
                id="E-DWI-NEGATIVE",
                path=nii,
                needed=f"at most {100 * _MOST_NEGATIVE:g} %",
                fix="check the step that subtracted a background or wrote signed numbers as unsigned",
            )
        notes.append(
            warning(
                "W-DWI-NEGATIVE",
                f"{nii.name}: {int(negative.sum())} values ({100 * float(negative.float().mean()):.3g} % of all, {100 * share:.3g} % in the head) are negative and were set to 0",
            )
        )
        signal.clamp_(min=0)
    return signal, mask, notes


def _extremes(signal: Float[Tensor, "n i j k"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Least and largest value of each volume; NaN where it holds one."""
    low, high = signal.flatten(1).aminmax(dim=1)
    return low, high


def _mean_of_finite(volumes: Float[Tensor, "n i j k"]) -> Float[Tensor, "i j k"]:
    finite = torch.isfinite(volumes)
    if bool(finite.all()):
        return volumes.mean(dim=0)
    return torch.nanmean(torch.where(finite, volumes, float("nan")), dim=0)


def _check_constant(low: Float[Tensor, " n"], high: Float[Tensor, " n"], n_voxels: int, nii: Path) -> None:
    if float(low.min()) == float(high.max()):
        raise InputDataError(
            f"every voxel of every volume is {float(low.min()):g}",
            id="E-DWI-CONSTANT",
            path=nii,
            needed="an image",
            fix=_RECONVERT,
        )
    # One voxel is one value in each volume: constant, and not empty.
    empty = (low == high).nonzero().ravel().tolist() if n_voxels > 1 else []
    if empty:
        raise InputDataError(
            f"volumes {', '.join(map(str, empty[:8]))} ({len(empty)} in all) hold one value only",
            id="E-DWI-EMPTY",
            path=nii,
            needed="an image in each volume",
            fix="remove the volumes from image, bval and bvec, or convert the series again",
        )


def _nonfinite(mask: Bool[Tensor, "i j k"], head: Bool[Tensor, "i j k"], nii: Path) -> list[Note]:
    count = int((~mask).sum())
    if not count:
        return []
    # Voxels that are never finite leave holes in the head's mask, which were filled.
    inside = int((~mask & head).sum())
    share = inside / max(int(head.sum()), 1)
    if share > _MOST_NONFINITE:
        raise InputDataError(
            f"{inside} voxels of the head ({100 * share:.2f} %) hold NaN or infinity",
            id="E-DWI-NONFINITE",
            path=nii,
            needed=f"at most {100 * _MOST_NONFINITE:g} %",
            fix="find the step that divided by zero, and run it again",
        )
    return [
        warning(
            "W-DWI-NONFINITE",
            f"{nii.name}: {count} voxels hold NaN or infinity ({inside} of them in the head) and are masked out",
        )
    ]


def _directed(gradients: StoredGradients) -> tuple[StoredGradients, np.ndarray]:
    """Without the volumes that lack a direction, and the indices of the rest."""
    return _selected(gradients, ~gradients.lacks_direction)


def _selected(gradients: StoredGradients, which: np.ndarray) -> tuple[StoredGradients, np.ndarray]:
    parts = (gradients.bvals, gradients.bvecs, gradients.is_b0, gradients.lacks_direction)
    return StoredGradients(*(part[which] for part in parts)), np.flatnonzero(which)


def _settle_directions(
    signal: Float[Tensor, "n i j k"], gradients: StoredGradients, bvec: Path
) -> tuple[StoredGradients, np.ndarray, list[Note]]:
    """Weighted volumes without a direction: by their signal a trace volume (dropped), a b = 0 (kept as one), or an error."""
    if not gradients.lacks_direction.any():
        return gradients, np.arange(len(gradients.bvals)), []
    directed = ~gradients.is_b0 & ~gradients.lacks_direction
    if not gradients.is_b0.any() or not directed.any():
        raise no_direction(gradients, bvec, "and there is no b=0 and no directed volume to compare them with")
    unweighted = signal[torch.tensor(gradients.is_b0)].mean(dim=0)
    head = head_mask(unweighted)
    traces, renamed = np.zeros_like(directed), np.zeros_like(directed)
    for volume in np.flatnonzero(gradients.lacks_direction).tolist():
        kind = _kind(
            signal[volume][head],
            unweighted[head],
            signal[torch.tensor(_same_shell(gradients, directed, volume))].mean(dim=0)[head],
        )
        traces[volume], renamed[volume] = kind == "trace", kind == "b0"
    unclear = gradients.lacks_direction & ~traces & ~renamed
    if unclear.any():
        raise no_direction(
            replace(gradients, lacks_direction=unclear),
            bvec,
            "and their signal resembles neither the b=0 nor the mean of the weighted volumes",
        )
    notes = []
    if traces.any():
        notes.append(
            warning(
                "W-GRAD-TRACE",
                f"{bvec.name}: volumes {', '.join(map(str, np.flatnonzero(traces)))} have b > 0, no direction, and the mean weighted signal: trace images, dropped ({len(directed)} volumes in, {int((~traces).sum())} out)",
            )
        )
    if renamed.any():
        notes.append(
            warning(
                "W-GRAD-B0SIGNAL",
                f"{bvec.name}: volumes {', '.join(map(str, np.flatnonzero(renamed)))} have b > 0, no direction, and the unweighted signal: taken as b=0",
            )
        )
    settled = replace(gradients, is_b0=gradients.is_b0 | renamed, lacks_direction=gradients.lacks_direction & traces)
    return *_selected(settled, ~traces), notes


def _same_shell(gradients: StoredGradients, directed: np.ndarray, volume: int) -> np.ndarray:
    """Indices of the directed volumes whose b-value belongs with this one's; all directed ones if there are none."""
    index = np.flatnonzero(directed)
    group = next(g for g in clusters(np.append(gradients.bvals[index], gradients.bvals[volume])) if len(index) in g)
    members = group[group < len(index)]
    return index[members] if len(members) else index


def _kind(volume: Float[Tensor, " v"], unweighted: Float[Tensor, " v"], weighted: Float[Tensor, " v"]) -> str:
    """Where the volume's mean lies between weighted (0) and unweighted (1), if it looks like either at all."""
    span = float(unweighted.mean() - weighted.mean())
    if span < 0.1 * float(unweighted.mean()):
        return "unclear"
    position = float(volume.mean() - weighted.mean()) / span
    for kind, target, image in (("trace", 0.0, weighted), ("b0", 1.0, unweighted)):
        alike = float(torch.corrcoef(torch.stack([volume, image]))[0, 1])
        if abs(position - target) < 0.3 and alike > 0.5:
            return kind
    return "unclear"
