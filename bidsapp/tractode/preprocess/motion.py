"""Head motion and eddy currents: each volume registered to its prediction from all the others.

M. Cieslak et al., *Diffusion MRI head motion correction methods are highly accurate but impacted by denoising and sampling scheme*, HBM
45:e26570 (2024), doi:10.1002/hbm.26570 (SHORELine: leave one out, predict, register, repeat); J. L. R. Andersson, S. N. Sotiropoulos,
NeuroImage 125:1063 (2016), doi:10.1016/j.neuroimage.2015.10.019 (the prediction, the eddy terms).

Rounds, coarse to fine: the series as it is aligned so far, smoothed, gives every volume's prediction from the others (`prediction`); each
volume's pose (6) and eddy terms (linear, with many directions quadratic) then take Gauss–Newton steps towards it (`alignment`); b=0
volumes go to the mean of the other b=0 volumes. Slices that lost their signal (`outliers`) are replaced by the prediction before the next
round. The reference is where the head lay in the mean of the b=0 volumes, so that a field found on the mean raw b=0 image stays where it is.

Departures: the eddy terms of all volumes are held near a linear function of their gradients, as the physics has it; a volume's
brightness is free; which pose the weighted volumes have to the b=0 volumes is found once more at the end (`alignment.between`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields.dwi import DWI
from tractode.fields.gradients import GradientTable
from tractode.fields.image import ImageGrid
from tractode.fields.transform import Affine
from tractode.ops import volume_pose as pose
from tractode.preprocess.eddy import PhaseEncoding
from tractode.preprocess.outliers import OutlierSettings, lost_volumes

Progress = Callable[[int, int], None]
_LOST_SCORE = -100.0  # standard deviations that are told of a slice of a volume that shows nothing
RADIUS = 50.0  # mm; a turn counts as the arc that it makes at this distance (Power 2012, doi:10.1016/j.neuroimage.2011.10.018)


@dataclass(frozen=True)
class MotionSettings:
    """How to correct.

    Parameters
    ----------
    smoothing
        Full width at half maximum (mm) of each round's Gaussian.
    steps
        Gauss–Newton steps of each volume in a round.
    points
        At most so many points of the brain are compared.
    eddy
        Whether eddy terms are sought at all (where the encoding's axis is known).
    quadratic_from
        Number of weighted volumes from which quadratic eddy terms are sought.
    eddy_mm
        Standard deviation (mm at 100 mm) of what is expected of an eddy term.
    outliers
        ``None``: slices are not judged.
    slice_axis
        Stored axis across the slices.
    """

    smoothing: tuple[float, ...] = (10.0, 6.0, 4.0, 4.0)
    steps: int = 4
    points: int = 40_000
    eddy: bool = True
    quadratic_from: int = 12
    eddy_mm: float = 2.0
    outliers: OutlierSettings | None = field(default_factory=OutlierSettings)
    slice_axis: int = 2

    def sloppy(self) -> MotionSettings:
        """Fewer rounds, for demonstrations."""
        return replace(self, smoothing=(8.0, 5.0), steps=3, points=8_000)


@dataclass(frozen=True, eq=False)
class MotionEstimate:
    """How the head lay in each volume, and what else happened to it.

    Parameters
    ----------
    rigid
        Shift (mm) and turn (rotation vector, rad; RAS+) about ``centre`` that take the reference's points to where they are in a volume.
    eddy
        Shift along the phase encoding: mm at 100 mm from the image's middle of u, v, w, u², v², w², uv, uw, vw (stored axes).
    outliers, scores
        Slices that lost signal, and how many standard deviations every slice lies from its prediction.
    correlation
        Of each volume, aligned, with its prediction.
    notes
        What was not estimated, and why.
    eddy_constant
        mm along the encoding that ``rigid`` holds of the eddy field's constant (`eddy.constant_part`).
    """

    grid: ImageGrid
    centre: Float[Tensor, " 3"]
    encoding: PhaseEncoding | None
    rigid: Float[Tensor, "n 6"]
    eddy: Float[Tensor, "n 9"]
    outliers: Bool[Tensor, "n s"]
    scores: Float[Tensor, "n s"]
    correlation: Float[Tensor, " n"]
    slice_axis: int = 2
    notes: tuple[str, ...] = ()
    eddy_constant: Float[Tensor, " n"] | None = None

    def head(self) -> Float[Tensor, "n 6"]:
        """``rigid`` without the constant of the eddy field: how the head itself moved."""
        if self.encoding is None or self.eddy_constant is None:
            return self.rigid
        axis = self.grid.affine[:3, self.encoding.axis]
        moved = self.rigid.clone()
        moved[:, :3] -= self.eddy_constant[:, None].to(moved) * (axis / axis.norm()).to(moved)
        return moved

    def transforms(self) -> list[Affine]:
        """From the reference to each volume, points in mm; the eddy terms are not in them."""
        space = self.grid.space
        return [Affine(matrix, space, space) for matrix in pose.matrices(self.rigid.double(), self.centre.double())]

    def rotated(self, gtab: GradientTable) -> GradientTable:
        """The table as the gradients lay to the head in the reference."""
        turn = pose.rotations(self.rigid[:, 3:].double())
        return replace(gtab, bvecs=(turn.mT @ gtab.bvecs.double()[..., None])[..., 0].to(gtab.bvecs))

    def framewise_displacement(self) -> Float[Tensor, " n"]:
        """mm from each volume to the next: sum of the shifts and of the turns' arcs; the first is 0."""
        return framewise_displacement(self.head())


def framewise_displacement(rigid: Float[Tensor, "n 6"], radius_mm: float = RADIUS) -> Float[Tensor, " n"]:
    """mm from each volume to the next: sum of the shifts and of the turns' arcs at ``radius_mm``; the first is 0."""
    steps = rigid.diff(dim=0).abs()
    arcs = steps[:, :3].sum(-1) + radius_mm * steps[:, 3:].sum(-1)
    return torch.cat((arcs.new_zeros(1), arcs))


def why_not(gtab: GradientTable) -> str | None:
    """Why a series cannot be corrected for motion, in words for a user; ``None`` if it can."""
    n_b0, n_weighted = int(gtab.is_b0.sum()), int((~gtab.is_b0).sum())
    if n_weighted < 6 and n_b0 < 2:
        return (
            f"motion is found from what a volume has in common with others: it needs 6 weighted volumes or 2 b=0 volumes; "
            f"this table has {n_weighted} and {n_b0}"
        )
    return None


def correct_motion(
    scan: DWI,
    encoding: PhaseEncoding | None = None,
    settings: MotionSettings | None = None,
    progress: Progress | None = None,
    *,
    hz: Float[Tensor, "i j k"] | None = None,
) -> MotionEstimate:
    """Poses, eddy terms and lost slices of a series.

    ``encoding`` None: no eddy terms. ``hz``: the field of the head on the scan's grid, as it lies in the reference, where it is known; poses are then those of the undistorted head. Raises `InputDataError` (E-MOTION-TABLE) if `why_not`.
    """
    from tractode.preprocess.alignment import Rounds

    settings, told = settings or MotionSettings(), progress or (lambda done, total: None)
    kept = ~lost_volumes(scan.signal.cpu(), scan.mask.cpu(), scan.gtab)
    if bool(kept.all()) or why_not(scan.gtab[kept]) is not None:
        return Rounds(scan, encoding, settings, hz).estimate(told)
    # A volume that shows nothing has no pose of its own, and must not foretell others.
    rest = DWI(scan.grid, scan.signal[kept.to(scan.signal.device)], scan.gtab[kept], scan.mask)
    return _with_lost(Rounds(rest, encoding, settings, hz).estimate(told), kept, settings.outliers is not None)


def _with_lost(estimate: MotionEstimate, kept: Bool[Tensor, " n"], judged: bool) -> MotionEstimate:
    """The estimate of all volumes: those that are lost lie where the ones before and after them lie."""
    there = kept.nonzero()[:, 0]
    place = torch.arange(len(kept)).clamp(int(there[0]), int(there[-1]))
    upper = torch.searchsorted(there, place).clamp(1, len(there) - 1)
    share = (place - there[upper - 1]).double() / (there[upper] - there[upper - 1])

    def between(values: Float[Tensor, "m *c"]) -> Float[Tensor, "n *c"]:
        weight = share.reshape(-1, *[1] * (values.ndim - 1)).to(values)
        return torch.lerp(values[upper - 1], values[upper], weight)

    def spread(values: Tensor, fill: float) -> Tensor:
        out = torch.full((len(kept), *values.shape[1:]), fill).to(values)
        out[kept] = values
        return out

    lost = ", ".join(str(number) for number in (~kept).nonzero()[:, 0].tolist())
    note = f"volumes that show nothing of the brain (counted from 0): {lost}; their poses are their neighbours'"
    constant = estimate.eddy_constant
    return replace(
        estimate, rigid=between(estimate.rigid), eddy=between(estimate.eddy), outliers=spread(estimate.outliers, float(judged)),
        scores=spread(estimate.scores, _LOST_SCORE if judged else 0.0), correlation=spread(estimate.correlation, 0.0),
        notes=(*estimate.notes, note), eddy_constant=None if constant is None else between(constant),
    )  # fmt: skip
