"""Where every voxel of a corrected series was in each volume as it was scanned: head motion, eddy currents and susceptibility at once.

J. L. R. Andersson, S. N. Sotiropoulos, NeuroImage 125:1063 (2016), doi:10.1016/j.neuroimage.2015.10.019. A point x of the reference is at
y = R (x − c) + c + t in a volume; there eddy currents (a polynomial in y, fixed to the scanner) and the field of the head (given at x,
it moves with the head) shift it along the phase encoding: the volume is read at y + s, and its brightness multiplied by 1 + ∂s
(P. Jezzard, R. S. Balaban, MRM 34:65, 1995, doi:10.1002/mrm.1910340111).

Departures: an echo-planar image holds no constant of the eddy field apart from a shift, so that there is none here; what part of the
shifts it was is told afterwards from the gradients (`constant_part`), for the tables of movement only; the slope of the head's
field is taken along the encoding axis of the reference, a few degrees from that of the volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields.gradients import GradientTable
from tractode.fields.image import ImageGrid
from tractode.ops import affine as aff
from tractode.ops import epi, interpolate
from tractode.ops import volume_pose as pose

_TELLING = 12  # weighted volumes that tell three slopes from a drift
_BRIGHTEST = 4.0  # where a field stretches more, there is hardly signal to make brighter


@dataclass(frozen=True)
class PhaseEncoding:
    """Stored axis (0, 1, 2); sign (±1) and total readout time (s) are needed where a field in Hz is given, not otherwise."""

    axis: int
    sign: int = 1
    readout: float = 0.0


@dataclass(frozen=True, eq=False)
class Geometry:
    """A series' grid, the point (mm) its head turns about, its encoding, and what the field shifts (voxels) on that grid."""

    grid: ImageGrid
    centre: Float[Tensor, " 3"]
    encoding: PhaseEncoding | None = None
    field_shift: Float[Tensor, "1 i j k"] | None = None
    field_slope: Float[Tensor, "1 i j k"] | None = None

    @property
    def mm_per_voxel(self) -> float:
        """Along the phase encoding."""
        return 1.0 if self.encoding is None else self.grid.voxel_sizes[self.encoding.axis]

    def read_at(
        self, points: Float[Tensor, "p 3"], motion: Float[Tensor, "n 6"], eddy: Float[Tensor, "n 9"]
    ) -> tuple[Float[Tensor, "n p 3"], Float[Tensor, "n p"]]:
        """Voxel indices at which each volume holds points of the reference (mm), and how much brighter it must be made there."""
        there = torch.stack([aff.apply_affine(matrix, points) for matrix in self._to_index(motion)])
        if self.encoding is None:
            return there, torch.ones_like(there[..., 0])
        axis = self.encoding.axis
        shift, slope = self.eddy_shift(there, eddy)
        if self.field_shift is not None and self.field_slope is not None:
            at = aff.apply_affine(self.grid.inverse_affine, points)
            shift = shift + _near(self.field_shift, at)
            slope = slope + _near(self.field_slope, at)
        there[..., axis] += shift
        return there, (1 + slope).clamp(0, _BRIGHTEST)

    def _to_index(self, motion: Float[Tensor, "n 6"]) -> Float[Tensor, "n 4 4"]:
        """From points of the reference (mm) to voxel indices of each volume, where nothing is shifted."""
        return self.grid.inverse_affine @ pose.matrices(motion.double(), self.centre.double())

    def eddy_shift(
        self, index: Float[Tensor, "n p 3"], eddy: Float[Tensor, "n 9"]
    ) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n p"]]:
        """Voxels along the encoding that eddy currents shift what is at these indices, and the slope of it."""
        assert self.encoding is not None
        if not bool(eddy.any()):
            return torch.zeros_like(index[..., 0]), torch.zeros_like(index[..., 0])
        values, rate = pose.polynomial(
            index, eddy.to(index), self.grid.shape, self.grid.voxel_sizes, self.encoding.axis
        )
        # A slope is voxels a voxel, which is mm a mm.
        return values / self.mm_per_voxel, rate

    def origin_of(
        self, index: Float[Tensor, "p 3"], motion: Float[Tensor, "6"], eddy: Float[Tensor, "9"]
    ) -> Float[Tensor, "p 3"]:
        """Points of the reference (mm) that one volume holds at voxel indices; the inverse of `read_at`, by three steps."""
        motion, eddy = motion[None], eddy[None]
        true = index
        for _ in range(3):
            points = pose.still(self.grid.to_world(true), motion, self.centre)[0]
            true = true - (self.read_at(points, motion, eddy)[0][0] - index)
        return pose.still(self.grid.to_world(true), motion, self.centre)[0]


def geometry(
    grid: ImageGrid,
    centre: Float[Tensor, " 3"],
    encoding: PhaseEncoding | None,
    field_hz: Float[Tensor, "i j k"] | None = None,
) -> Geometry:
    """The geometry of a series; ``field_hz`` on its grid, where things are in the reference."""
    if encoding is None or field_hz is None:
        return Geometry(grid, centre, encoding)
    shift = epi.shift_vox(field_hz, encoding.sign, encoding.readout)
    return Geometry(grid, centre, encoding, shift[None], epi.slope(shift, encoding.axis)[None])


def constant_part(gtab: GradientTable, along: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """What of the shifts along the encoding (mm, one a volume) is linear in the gradient: the constant of the eddy field, not the head.

    Least squares beside a slow drift (a parabola in time); the gradient is as strong as √b. 0 for b=0, and everywhere where fewer than
    12 weighted volumes tell them apart.
    """
    along, weighted = along.double(), ~gtab.is_b0.cpu()
    strength = gtab.bvals.double().sqrt()
    gradient = gtab.bvecs.double() * (strength / strength.max().clamp_min(1e-12))[:, None]
    if int(weighted.sum()) < _TELLING:
        return torch.zeros_like(along)
    time = torch.linspace(-1, 1, len(along), dtype=torch.float64)
    design = torch.cat([gradient, torch.stack([time**power for power in range(3)], -1)], -1)
    found = torch.linalg.lstsq(design[weighted], along[weighted, None], driver="gelsd").solution[:3, 0]
    return torch.where(weighted, gradient @ found, 0.0)


def _near(values: Float[Tensor, "1 i j k"], index: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
    return interpolate.sample(values.to(index), index, outside="nearest")[..., 0]
