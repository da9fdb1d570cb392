"""The gate of a registration: are the brains in one place, and would moving them make the images agree less?

Departure from practice: besides overlap, the normalised mutual information at the answer must exceed that of the same
transform shifted or turned (C. Studholme et al., doi:10.1016/S0031-3203(98)00091-0). A registration that failed outright
rarely lies at a peak and one at a wrong peak rarely overlaps, so the two checks fail on different mistakes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.evaluate.overlap import dice
from tractode.fields.image import Image
from tractode.fields.transform import Transform
from tractode.ops import affine as aff
from tractode.ops import interpolate, smooth
from tractode.registration.metrics.mutual_information import normalised_mutual_information, parzen, unit_range

MIN_DICE = 0.80
MIN_COVERED = 0.05
_SPACING = 4.0
_BINS = 24


@dataclass(frozen=True)
class QualityVerdict:
    """What the gate found.

    Parameters
    ----------
    dice
        Of the two brain masks where both images see; ``nan`` without a moving mask.
    nmi, nmi_disturbed
        Normalised mutual information in the fixed mask, at the answer and at the best of its disturbed copies.
    covered
        Share of the fixed mask that the moving image sees.
    """

    passed: bool
    dice: float
    nmi: float
    nmi_disturbed: float
    covered: float
    reason: str

    def record(self) -> dict[str, float | bool | str | None]:
        """Plain data for sidecars and the report (JSON has no ``nan``)."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }


def assess(
    fixed: Image, moving: Image, transform: Transform, fixed_mask: Image, moving_mask: Image | None = None
) -> QualityVerdict:
    """Judges ``transform`` (fixed → moving) at voxels of 4 mm of the fixed image."""
    device = fixed.values.device
    grid = fixed.grid.resampled(_SPACING)
    points = grid.centres(device=device)
    inside = fixed_mask.sample(points, outside="nearest")[..., 0] > 0.5
    mapped = transform.map(points)
    seen = interpolate.inside(moving.grid.shape, moving.grid.to_voxel(mapped), margin=0.5)
    covered = float((inside & seen).sum()) / max(int(inside.sum()), 1)
    overlap = float("nan")
    if moving_mask is not None:
        there = moving_mask.sample(mapped)[..., 0] > 0.5
        overlap = dice(inside & seen, there & seen)
    at_answer, disturbed = _peak(fixed, moving, points[inside & seen], transform)
    reason = _reason(overlap, covered, at_answer, disturbed)
    return QualityVerdict(
        not reason,
        overlap,
        at_answer,
        disturbed,
        covered,
        reason or "brains overlap and every disturbance makes the images agree less",
    )


def _reason(overlap: float, covered: float, at_answer: float, disturbed: float) -> str:
    """Why it fails, in words; empty if it passes."""
    if covered < MIN_COVERED:
        return f"the images share {100 * covered:.0f} % of the brain (at least {100 * MIN_COVERED:.0f} % needed)"
    if overlap < MIN_DICE:
        return f"the brain masks overlap by a Dice of {overlap:.2f} (at least {MIN_DICE} needed)"
    if at_answer <= disturbed:
        return f"a shift or turn makes the images agree better (normalised mutual information {disturbed:.4f} against {at_answer:.4f})"
    return ""


def _peak(fixed: Image, moving: Image, points: Float[Tensor, "n 3"], transform: Transform) -> tuple[float, float]:
    """Normalised mutual information at the answer, and the best of twelve disturbed ones (10 mm, 12°)."""
    if len(points) == 0:
        return 0.0, 0.0
    # The same points for all, so that no disturbance gains by looking elsewhere.
    first = parzen(unit_range(_smooth(fixed).sample(points, outside="nearest")[:, 0]), _BINS)
    soft = _smooth(moving)
    centre = points.mean(0)
    scores = []
    for matrix in _disturbances(centre):
        there = transform.map(aff.apply_affine(matrix, points))
        keep: Bool[Tensor, " n"] = interpolate.inside(moving.grid.shape, moving.grid.to_voxel(there), margin=0.5)
        if int(keep.sum()) < 0.5 * len(points):
            continue
        second = parzen(unit_range(soft.sample(there[keep], outside="nearest")[:, 0]), _BINS)
        scores.append(float(normalised_mutual_information(first[keep].mT @ second)))
    return scores[0], max(scores[1:], default=0.0)


def _disturbances(centre: Float[Tensor, " 3"]) -> list[Float[Tensor, "4 4"]]:
    """The identity, shifts of 10 mm and turns of 12° about the centre, both ways along every axis."""
    matrices = [torch.eye(4, dtype=torch.float64)]
    middle = centre.double().cpu()
    for axis in range(3):
        for sign in (1.0, -1.0):
            shift = torch.eye(4, dtype=torch.float64)
            shift[axis, 3] = 10 * sign
            a, b = [n for n in range(3) if n != axis]
            skew = torch.zeros(3, 3, dtype=torch.float64)
            skew[a, b], skew[b, a] = math.radians(12) * sign, -math.radians(12) * sign
            turn = torch.eye(4, dtype=torch.float64)
            turn[:3, :3] = torch.linalg.matrix_exp(skew)
            turn[:3, 3] = middle - turn[:3, :3] @ middle
            matrices += [shift, turn]
    return matrices


def _smooth(image: Image) -> Image:
    """The first channel at the gate's resolution, on its own grid."""
    sigma = [_SPACING / 2.355 / size if size < _SPACING else 0.0 for size in image.grid.voxel_sizes]
    return Image(image.grid, smooth.gaussian(image.values[:1].to(torch.float32), (sigma[0], sigma[1], sigma[2])))
