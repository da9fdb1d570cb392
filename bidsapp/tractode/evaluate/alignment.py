"""How streamlines lie in a scan they were not tracked in: in white matter or not, and along its fibre orientations or not.

No paper. Every mean is over length, so that methods whose points are near each other and methods whose points are far apart
are compared fairly. The angle is that to the nearest of a voxel's peaks, whatever their amplitudes; since more peaks are
nearer to any line, the same mean for directions at random at the same places stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import SpaceMismatchError
from tractode.fields import Image, PeakField, ShField, Streamlines
from tractode.tracking.amplitude import amplitudes
from tractode.tracking.peak_field import peak_field
from tractode.tracking.sampling import ComponentTable, nearest_index


@dataclass(frozen=True)
class FieldAlignment:
    """Over ``n`` segments; NaN where there are none. Shares are fractions of length.

    Attributes
    ----------
    in_white_matter
        Share in the mask of white matter.
    with_peaks
        Share in voxels that have a peak: the angles are over these.
    angle, angle_by_chance
        Mean angle to the nearest peak, rad, and that of random directions at the same places.
    amplitude, amplitude_by_chance
        Mean amplitude of the distribution along the lines (in its own units), and along random directions.
    """

    n: int
    in_white_matter: float
    with_peaks: float
    angle: float
    angle_by_chance: float
    amplitude: float
    amplitude_by_chance: float

    def record(self) -> dict[str, float | int | None]:
        """Plain data; angles in degrees, ``None`` where there is no number."""
        values = {
            "in_white_matter": self.in_white_matter,
            "with_peaks": self.with_peaks,
            "angle_deg": math.degrees(self.angle),
            "angle_by_chance_deg": math.degrees(self.angle_by_chance),
            "amplitude": self.amplitude,
            "amplitude_by_chance": self.amplitude_by_chance,
        }
        return {"n": self.n, **{k: float(f"{v:.4g}") if math.isfinite(v) else None for k, v in values.items()}}


def field_alignment(lines: Streamlines, field: ShField, peaks: PeakField, white: Image) -> FieldAlignment:
    """Compare lines with an orientation distribution, its peaks and a mask of white matter, all of one space.

    Raises
    ------
    SpaceMismatchError
        The lines are in another space.
    """
    if not lines.space == field.grid.space == peaks.grid.space == white.grid.space:
        raise SpaceMismatchError(
            f"Lines of {lines.space!r} cannot be compared with fields of {field.grid.space!r}; move the lines there first."
        )
    middle, direction, length = segments(lines)
    if not len(length):
        return FieldAlignment(0, *(math.nan,) * 6)
    share = length.double() / length.double().sum()
    random = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0))
    random = random / random.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    inside = white.sample(middle, "nearest")[:, 0] > 0.5
    table = ComponentTable.of(field)
    angles, has_peak = _nearest_angle(peaks, middle, direction)
    by_chance, _ = _nearest_angle(peaks, middle, random)
    over = share * has_peak

    def mean(values: Tensor, weight: Tensor = share) -> float:
        total = float(weight.sum())
        return float((values.double() * weight).sum()) / total if total > 0 else math.nan

    return FieldAlignment(
        n=len(length),
        in_white_matter=mean(inside),
        with_peaks=float(over.sum()),
        angle=mean(angles, over),
        angle_by_chance=mean(by_chance, over),
        amplitude=mean(amplitudes(table, middle, direction)),
        amplitude_by_chance=mean(amplitudes(table, middle, random)),
    )


def peaks_along(field: ShField, tractograms: Sequence[Streamlines]) -> PeakField:
    """The three largest peaks of every voxel that any of the lines runs through, and of no other: searching takes time."""
    is_seen = torch.zeros(field.grid.n_voxels, dtype=torch.bool)
    for lines in tractograms:
        middle, *_ = segments(lines)
        index, is_inside = nearest_index(field.grid.shape, field.grid.to_voxel(middle).mT.contiguous())
        is_seen[index[is_inside]] = True
    return peak_field(ShField(field.grid, field.coeffs * is_seen.reshape(field.grid.shape), field.order))


def segments(lines: Streamlines) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m 3"], Float[Tensor, " m"]]:
    """Middle, unit direction and length (mm) of every segment that has a length; float32 on the CPU."""
    points, owner = lines.points.detach().cpu().float(), lines.streamline_of_point.cpu()
    move = points.diff(dim=0)
    length = move.norm(dim=-1)
    kept = (owner[1:] == owner[:-1]) & (length > 1e-4)
    return (points[:-1] + points[1:])[kept] / 2, move[kept] / length[kept][:, None], length[kept]


def _nearest_angle(
    peaks: PeakField, points: Float[Tensor, "m 3"], directions: Float[Tensor, "m 3"]
) -> tuple[Float[Tensor, " m"], Tensor]:
    """The angle (rad) of each direction to the nearest peak of its voxel, and whether the voxel has one."""
    known = Image(peaks.grid, peaks.directions.flatten(0, 1).float()).sample(points, "nearest")
    axes = known.reshape(len(points), -1, 3)
    cosine = (axes * directions[:, None]).sum(-1).abs().amax(1).clamp(max=1.0)
    return torch.arccos(cosine), (axes != 0).any(-1).any(-1)
