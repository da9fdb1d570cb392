"""Susceptibility distortion of a scan put right with a known field, and the judgement whether that helped.

P. Jezzard, R. S. Balaban, MRM 34:65 (1995), doi:10.1002/mrm.1910340111: what a field moved along the encoding axis is fetched
back, and its brightness with it (`ops.epi`). Along the axis the scan is interpolated by R. G. Keys, *Cubic convolution
interpolation for digital image processing*, IEEE TASSP 29:1153 (1981), doi:10.1109/TASSP.1981.1163711, across it not at all.

Departures: a field is applied only if the image agrees better afterwards, with its partner of opposite encoding or (by
neighbourhood descriptors, M. P. Heinrich et al., doi:10.1016/j.media.2012.05.008) with an image that is not distorted. A field
whose opposite agrees better still has the wrong sign, and is not applied either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields.image import Image, ImageGrid
from tractode.fields.transform import Affine, Transform, resample
from tractode.ops import epi, smooth
from tractode.registration.metrics.mind import MIND
from tractode.registration.refine import RefineSettings, refine
from tractode.registration.reverse_encoding import EncodedScan, FieldEstimate, undistort

MOST_LEFT = 0.97  # share of the difference that a correction of a pair may leave and still count as one
_POSE = RefineSettings(rounds=(5.0, 4.0, 4.0))
_FARTHEST = 15.0  # mm; a field map of the same session that seems to lie farther off was not found
_BRIGHTEST = 4.0  # where a field stretches more, there is hardly signal to make brighter
_TILE = 16  # volumes


@dataclass(frozen=True)
class Judgement:
    """Whether a correction helped.

    Parameters
    ----------
    measure
        What was compared, for a reader.
    before, after, turned
        The difference as acquired, corrected, and corrected the wrong way round (where that was tried).
    sign
        Of the encoding that was used.
    """

    applied: bool
    measure: str
    before: float
    after: float
    turned: float | None
    sign: int
    reason: str

    def record(self) -> dict[str, float | bool | str | int | None]:
        return asdict(self)


def field_on(field: Image, grid: ImageGrid, to_field: Transform | None = None) -> Float[Tensor, "i j k"]:
    """A field (Hz) at the voxels of a scan; ``to_field`` takes points of the scan to the field's space."""
    points = grid.centres(device=field.values.device)
    return field.sample(points if to_field is None else to_field.map(points), outside="nearest")[..., 0]


def put_right(
    signal: Float[Tensor, "n i j k"], hz: Float[Tensor, "i j k"], axis: int, sign: int, readout: float
) -> Float[Tensor, "n i j k"]:
    """Every volume where things really are, on the scan's own grid; never negative."""
    shift = epi.shift_vox(hz, sign, readout)
    brightness = (1 + epi.slope(shift, axis)).clamp(0, _BRIGHTEST)
    parts = [_fetched(part, shift, axis) * brightness for part in signal.split(_TILE)]
    return torch.cat(parts).clamp_min(0)


def reach(
    hz: Float[Tensor, "i j k"], axis: int, sign: int, readout: float
) -> tuple[Bool[Tensor, "i j k"], Float[Tensor, "i j k"]]:
    """Which voxels `put_right` finds in the image (half a voxel beyond it counts), and what it makes of the variance of white noise."""
    shift = epi.shift_vox(hz, sign, readout).movedim(axis, -1)
    brightness = (1 + epi.slope(shift, -1)).clamp(0, _BRIGHTEST)
    n = shift.shape[-1]
    place = torch.arange(n, dtype=shift.dtype, device=shift.device) + shift
    weights = torch.stack(_keys(place - place.floor()))
    seen = (place >= -0.5) & (place <= n - 0.5)
    return seen.movedim(-1, axis), (weights.square().sum(0) * brightness.square()).movedim(-1, axis)


def _keys(t: Float[Tensor, "*v"]) -> tuple[Float[Tensor, "*v"], ...]:
    """Weights of four neighbours at a fraction of a voxel: Keys's kernel with a = −1/2, exact for parabolas."""
    return (
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )


def _fetched(values: Float[Tensor, "n i j k"], shift: Float[Tensor, "i j k"], axis: int) -> Float[Tensor, "n i j k"]:
    """Cubic convolution along one axis at every voxel's place and ``shift``; the edges go on."""
    lines, moved = values.movedim(axis + 1, -1), shift.movedim(axis, -1)
    n = lines.shape[-1]
    place = (torch.arange(n, dtype=moved.dtype, device=moved.device) + moved).clamp(0, n - 1)
    lower = place.floor()
    weights = _keys(place - lower)
    total = torch.zeros_like(lines)
    for offset, weight in enumerate(weights):
        at = (lower.long() + offset - 1).clamp(0, n - 1)
        total += lines.gather(-1, at.expand(lines.shape)) * weight.to(lines)
    return total.movedim(-1, axis + 1)


def corrected(scan: EncodedScan, hz: Float[Tensor, "i j k"], turn: int = 1) -> Image:
    """A scan put right; ``turn`` of −1 takes its encoding to be the other way round."""
    return Image(scan.image.grid, put_right(scan.image.values, hz, scan.axis, scan.sign * turn, scan.readout))


# --- judging ----------------------------------------------------------------------------------------------------------


def judge_pair(scans: Sequence[EncodedScan], estimate: FieldEstimate, mask: Image, sign: int) -> Judgement:
    """Of a reversed pair: are its scans more alike in the first one's brain than as acquired?"""
    still = Image(estimate.field.grid, torch.zeros_like(estimate.field.values))
    before = _apart([undistort(scan, still) for scan in scans], mask)
    pairs = zip(scans, estimate.motions, strict=True)
    after = _apart([undistort(scan, estimate.field, motion) for scan, motion in pairs], mask)
    helped = after < MOST_LEFT * before
    reason = (
        "corrected, the opposite encodings agree better"
        if helped
        else "corrected, the opposite encodings agree no better: the encoding that the sidecars state may be wrong"
    )
    measure = "root mean square difference of opposite encodings, as a share of their mean"
    return Judgement(helped, measure, before, after, None, sign, reason)


def _apart(images: Sequence[Image], mask: Image) -> float:
    """Root mean square difference of images of one grid, each of mean 1 in the mask; for more than two, of any two of them."""
    each = [image.values[0][mask.mask] for image in images]
    unit = torch.stack([values / values.mean() for values in each])
    return float((2 * unit.var(0)).mean().sqrt())


@dataclass(frozen=True)
class MappedCorrection:
    """What a field map does to one scan: the way from the scan to the map, and whether it helped."""

    to_map: Affine
    judgement: Judgement


def judge_map(
    scan: EncodedScan, mask: Image, field: Image, magnitude: Image, *, sign_is_known: bool = True
) -> MappedCorrection:
    """Finds how a field map lies to a scan, corrects it, and compares it with the map's magnitude image.

    Corrected as stated, the other way round and not at all, each at the pose that suits it. Where the sign of the encoding is
    not known, the better one is taken.
    """
    start = Affine(torch.eye(4, dtype=torch.float64), scan.image.grid.space, magnitude.grid.space)
    tried = {}
    for turn in (1, -1, 0):
        image = scan.image if not turn else corrected(scan, field_on(field, scan.image.grid, start), turn)
        pose = _near(refine(image, magnitude, [start], fixed_mask=mask, settings=_POSE), start, image.grid)
        if turn:
            image = corrected(scan, field_on(field, scan.image.grid, pose), turn)
        tried[turn] = (pose, unlikeness(image, magnitude, pose, mask))
    best = 1 if sign_is_known or tried[1][1] <= tried[-1][1] else -1
    (pose, after), before, turned = tried[best], tried[0][1], tried[-best][1]
    helped, reason = map_helped(before, after, turned)
    measure = "difference of neighbourhood descriptors from the field map's magnitude image"
    judgement = Judgement(helped, measure, before, after, turned, scan.sign * best, reason)
    return MappedCorrection(pose, judgement)


def map_helped(before: float, after: float, turned: float) -> tuple[bool, str]:
    """Whether a field map makes a scan agree better with an undistorted image, and the verdict in words."""
    if after < before and after < turned:
        return True, "corrected, the scan agrees better with the field map's magnitude image"
    if turned < before:
        return False, (
            "the field map helps only with the opposite phase encoding: the sign that the sidecar states, or that of the map, is wrong"
        )
    return False, "corrected, the scan agrees no better with the field map's magnitude image"


def judge_anatomy(
    scan: EncodedScan, estimate: FieldEstimate, anatomy: Image, to_anatomy: Affine, mask: Image
) -> Judgement:
    """Of a field found on the anatomical image: does the scan agree better with it, each at its own pose?

    ``to_anatomy`` is the pose of the scan as acquired; that of the corrected one comes with the estimate.
    """
    right = corrected(scan, field_on(estimate.field, scan.image.grid))
    before = unlikeness(scan.image, anatomy, to_anatomy, mask)
    after = unlikeness(right, anatomy, estimate.motions[1], mask)
    helped = after < before
    reason = f"corrected, the scan agrees {'' if helped else 'no '}better with the anatomical image"
    measure = "difference of neighbourhood descriptors from the anatomical image"
    return Judgement(helped, measure, before, after, None, scan.sign, reason)


def unlikeness(image: Image, other: Image, to_other: Transform, mask: Image, spacing: float = 3.0) -> float:
    """Mean squared difference of descriptors (voxels of ``spacing`` mm) in a mask of the first image; no unit."""
    grid = image.grid.resampled(max(spacing, min(image.grid.voxel_sizes)))
    still = Affine(torch.eye(4, dtype=torch.float64), image.grid.space, image.grid.space)
    described = [
        MIND().describe(resample(_soft(one, spacing), grid, way).values)
        for one, way in ((image, still), (other, to_other))
    ]
    inside = resample(Image(mask.grid, mask.values.float()), grid, still).values[0] > 0.5
    return float((described[0] - described[1]).square().mean(0)[inside].mean())


def _soft(image: Image, spacing: float) -> Image:
    sigma = [spacing / 2.355 / size if size < spacing else 0.0 for size in image.grid.voxel_sizes]
    return Image(image.grid, smooth.gaussian(image.values[:1].to(torch.float32), (sigma[0], sigma[1], sigma[2])))


def _near(pose: Affine, start: Affine, grid: ImageGrid) -> Affine:
    """A pose, unless it moves the corners of a grid farther than two images of one session can lie apart."""
    points = grid.centres(torch.float64)[
        :: grid.shape[0] - 1 or 1, :: grid.shape[1] - 1 or 1, :: grid.shape[2] - 1 or 1
    ]
    return pose if float((pose.map(points) - start.map(points)).norm(dim=-1).max()) < _FARTHEST else start
