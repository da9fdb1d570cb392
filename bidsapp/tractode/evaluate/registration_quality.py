"""The gate of a registration: are the brains in one place, and would moving them make the images agree less?

Departure from practice: besides overlap, neighbourhood descriptors (M. P. Heinrich et al., doi:10.1016/j.media.2012.05.008)
must differ less at the answer than after any shift or turn of it. A registration that failed outright rarely lies in a
hollow and one in a wrong hollow rarely overlaps, so the two checks fail on different mistakes. Mutual information will not
do here: two images shaded alike by their coils share more of it some millimetres off.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.evaluate.overlap import dice
from tractode.fields.image import Image
from tractode.fields.transform import Transform
from tractode.ops import affine as aff
from tractode.ops import interpolate, smooth
from tractode.registration.metrics.mind import MIND

MIN_DICE = 0.80
MIN_COVERED = 0.05
_SPACING = 4.0


@dataclass(frozen=True)
class QualityVerdict:
    """What the gate found.

    Parameters
    ----------
    dice
        Of the two brain masks where both images see; ``nan`` without a moving mask.
    difference, difference_disturbed
        Mean squared difference of descriptors in the fixed mask, at the answer and at the best of its disturbed copies.
    covered
        Share of the fixed mask that the moving image sees.
    reason, id
        Why, in words, and the ID of the error that `demand` raises; the ID is empty if it passed.
    """

    passed: bool
    dice: float
    difference: float
    difference_disturbed: float
    covered: float
    reason: str
    id: str = ""

    def record(self) -> dict[str, float | bool | str | None]:
        """Plain data for sidecars and the report (JSON has neither ``nan`` nor infinity)."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
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
    at_answer, disturbed = _hollow(fixed, moving, points, inside, transform)
    id, reason = _reason(overlap, covered, at_answer, disturbed)
    return QualityVerdict(not id, overlap, at_answer, disturbed, covered, reason, id)


def demand(verdict: QualityVerdict) -> None:
    """Raises `InputDataError` with the verdict's ID unless it passed, for callers that cannot go on with a bad pose."""
    if verdict.id == "E-REG-COVERED":
        raise InputDataError(
            f"After registration {verdict.reason}",
            id="E-REG-COVERED",
            fix="give images of the same part of the head, or better masks",
        )
    if verdict.id == "E-REG-BRAINS":
        raise InputDataError(
            f"After registration {verdict.reason}",
            id="E-REG-BRAINS",
            fix="look at both brain masks, and whether both images are of one person",
        )
    if verdict.id == "E-REG-HOLLOW":
        raise InputDataError(
            f"After registration {verdict.reason}",
            id="E-REG-HOLLOW",
            fix="look whether both images show anatomy (no masks, noise or maps of another kind)",
        )


def _reason(overlap: float, covered: float, at_answer: float, disturbed: float) -> tuple[str, str]:
    """The ID of what fails (empty if nothing does), and the verdict in words."""
    if covered < MIN_COVERED:
        share = f"{100 * covered:.0f} % of the brain (at least {100 * MIN_COVERED:.0f} % needed)"
        return "E-REG-COVERED", f"the images share {share}"
    if overlap < MIN_DICE:
        return "E-REG-BRAINS", f"the brain masks overlap by a Dice of {overlap:.2f} (at least {MIN_DICE} needed)"
    if at_answer >= disturbed:
        than = f"difference of descriptors {disturbed:.4f} against {at_answer:.4f}"
        return "E-REG-HOLLOW", f"a shift or turn makes the images agree better ({than})"
    return "", "brains overlap and every disturbance makes the images agree less"


def _hollow(
    fixed: Image, moving: Image, points: Float[Tensor, "i j k 3"], inside: Bool[Tensor, "i j k"], transform: Transform
) -> tuple[float, float]:
    """Difference of descriptors at the answer, and at the best of twelve disturbed ones (10 mm, 12°)."""
    if not bool(inside.any()):
        return float("inf"), 0.0
    mind = MIND()
    # Each pose is resampled and described anew on the same points, so that none gains by being smoother.
    reference = mind.describe(_on(_smooth(fixed), points))
    soft = _smooth(moving)
    centre = points[inside].mean(0)
    scores: list[float] = []
    for matrix in _disturbances(centre):
        there = transform.map(aff.apply_affine(matrix, points))
        keep = inside & interpolate.inside(moving.grid.shape, moving.grid.to_voxel(there), margin=0.5)
        if int(keep.sum()) < 0.5 * int(inside.sum()) and scores:
            continue
        difference = (mind.describe(_on(soft, there)) - reference).square().mean(0)
        scores.append(float(difference[keep].mean()) if bool(keep.any()) else float("inf"))
    return scores[0], min(scores[1:], default=float("inf"))


def _on(image: Image, points: Float[Tensor, "i j k 3"]) -> Float[Tensor, "1 i j k"]:
    return image.sample(points, outside="nearest").permute(3, 0, 1, 2)


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
