"""The field (Hz) that makes scans of opposite phase encoding agree, and how the head moved between them.

J. L. R. Andersson, S. Skare, J. Ashburner, *How to correct susceptibility distortions in spin-echo echo-planar images*,
NeuroImage 20:870 (2003), doi:10.1016/S1053-8119(03)00336-7; the barrier that keeps lines from folding follows L. Ruthotto et
al., *Diffeomorphic susceptibility artifact correction of diffusion-weighted magnetic resonance images*, PMB 57:5715 (2012),
doi:10.1088/0031-9155/57/18/5715.

A shift of a scan along its encoding and a constant field do the same to the two: the constant is what is found, and the
motions have none. Coregistration, which follows, does not care.

Departures: field and motion are found in turns, coarse to fine, by L-BFGS; scans may have different grids, axes and readout
times, and there may be more than two, but all are resampled onto the first one's grid, along whose nearest axis their
encoding is then taken to be (their axes may differ by a few degrees).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields.image import Image, ImageGrid
from tractode.fields.transform import Affine
from tractode.ops import affine as aff
from tractode.ops import epi, finite_difference, interpolate, smooth
from tractode.registration.field_basis import FieldBasis, least
from tractode.registration.halfway import step

Progress = Callable[[int, int, float], None]
_NO_SHIFT = 0.01  # weight of a squared shift (mm) along the encoding: enough to choose where nothing else does


@dataclass(frozen=True, eq=False)
class EncodedScan:
    """A b=0 image (one channel) and how it was encoded: voxel axis (0, 1, 2), sign (±1), total readout time (s)."""

    image: Image
    axis: int
    sign: int
    readout: float

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2) or self.sign not in (1, -1) or not 0 < self.readout < 1:
            raise InputDataError(
                f"A phase encoding needs an axis of 0, 1 or 2 (got {self.axis}), a sign of ±1 (got {self.sign}) and a total "
                f"readout time in seconds (got {self.readout})",
                id="E-EPI-ENCODING",
                needed="PhaseEncodingDirection and TotalReadoutTime as BIDS has them",
            )

    @property
    def direction(self) -> Float[Tensor, " 3"]:
        """How far a field of 1 Hz moves things, mm in the world."""
        return self.image.grid.affine[:3, self.axis] * (self.sign * self.readout)


@dataclass(frozen=True)
class Level:
    """One resolution: voxels of the images and nodes of the field (mm), iterations at most."""

    voxel: float
    nodes: float
    iterations: int


@dataclass(frozen=True)
class ReverseEncodingSettings:
    """How the field is sought.

    Parameters
    ----------
    smoothness
        Weight of the squared slope of the shift (mm/mm), against squared differences of images of mean 1 in the head.
    barrier, least_jacobian
        Weight of what a ratio of lengths along the encoding lacks to this least one, squared.
    turns
        How often field and motion are sought in turn at each resolution but the last, which leaves the motion alone.
    """

    levels: tuple[Level, ...] = (Level(10.0, 20.0, 20), Level(7.5, 14.0, 20), Level(5.0, 10.0, 30), Level(2.5, 7.0, 20))
    smoothness: float = 0.05
    barrier: float = 10.0
    least_jacobian: float = 0.25
    turns: int = 2


@dataclass(frozen=True, eq=False)
class FieldEstimate:
    """The field and what it explains.

    Parameters
    ----------
    field
        Hz, on the first scan's grid, where things really are.
    motions
        Of every scan: from the space of the field to its own.
    difference_before, difference_after
        Root mean square difference of the scans in the head, as a share of their mean: as they came, and corrected.
    """

    field: Image
    motions: tuple[Affine, ...]
    difference_before: float
    difference_after: float


def estimate_field(
    scans: tuple[EncodedScan, ...],
    settings: ReverseEncodingSettings | None = None,
    *,
    progress: Progress | None = None,
) -> FieldEstimate:
    """The field on the first scan's grid.

    Raises
    ------
    InputDataError
        All scans are encoded alike (``E-EPI-ONEWAY``), which tells nothing of the field.
    """
    settings = settings or ReverseEncodingSettings()
    _check_ways(scans)
    reference = scans[0].image.grid
    poses = torch.zeros(len(scans) - 1, 6, dtype=torch.float64)
    nodes: Float[Tensor, "a b c"] | None = None
    basis: FieldBasis | None = None
    problem = _Problem.of(scans, poses, settings.levels[0], settings)
    before = problem.difference(torch.zeros(problem.scans[0].image.grid.shape))
    for number, level in enumerate(settings.levels):
        is_last = number == len(settings.levels) - 1
        for turn in range(1 if is_last else settings.turns):
            problem = _Problem.of(scans, poses, level, settings)
            finer = FieldBasis.of(problem.grid, level.nodes)
            start = finer.zeros() if nodes is None or basis is None else nodes if turn else finer.fitted(basis, nodes)
            nodes, basis = problem.solve(finer, start, level.iterations, number, progress), finer
            if not is_last:
                poses = problem.poses(scans, poses, basis.field(nodes))
    assert nodes is not None
    assert basis is not None
    motions = tuple(
        Affine(m, reference.space, s.image.grid.space) for m, s in zip(_matrices(poses, reference), scans, strict=True)
    )
    hz = basis.on(reference).field(nodes) / problem.unit
    return FieldEstimate(Image(reference, hz[None]), motions, before, problem.difference(basis.field(nodes)))


def undistort(scan: EncodedScan, field: Image, motion: Affine | None = None, *, modulated: bool = True) -> Image:
    """A scan where things really are, on the field's grid; ``motion`` goes from the field's space to the scan's.

    One interpolation. See `ops.epi` for ``modulated``.
    """
    points = field.grid.centres(device=scan.image.values.device)
    there = scan.image.grid.to_voxel(points if motion is None else motion.map(points))
    there[..., scan.axis] += epi.shift_vox(field.values[0], scan.sign, scan.readout).to(there)
    values = interpolate.sample(scan.image.values, there, outside="nearest").movedim(-1, 0)
    if modulated:
        along = aff.compose(scan.image.grid.affine, field.grid.inverse_affine)[:3, scan.axis]
        slopes = [share * epi.slope(field.values[0], axis) for axis, share in enumerate(along.tolist())]
        values = values * (1 + epi.shift_vox(torch.stack(slopes).sum(0), scan.sign, scan.readout)).to(values)
    return Image(field.grid, values)


# --- one resolution -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Problem:
    """Scans on one grid, of mean 1 in the head, and the cost of a field: mm of the scan in which things move most."""

    scans: tuple[EncodedScan, ...]
    weight: Float[Tensor, "i j k"]
    settings: ReverseEncodingSettings
    unit: float

    @property
    def grid(self) -> ImageGrid:
        return self.scans[0].image.grid

    @classmethod
    def of(
        cls,
        scans: tuple[EncodedScan, ...],
        poses: Float[Tensor, "s 6"],
        level: Level,
        settings: ReverseEncodingSettings,
    ) -> _Problem:
        coarse = tuple(coarsened(scan, level.voxel) for scan in scans)
        grid = coarse[0].image.grid
        moved = tuple(
            _onto(scan, grid, m) for scan, m in zip(coarse, _matrices(poses, scans[0].image.grid), strict=True)
        )
        mean = torch.stack([scan.image.values[0] for scan in moved]).mean(0)
        weight = smooth.dilate(mean > 0.4, (2, 2, 2)).to(torch.float32)
        return cls(moved, weight, settings, max(float(scan.direction.norm()) for scan in scans))

    def solve(
        self, basis: FieldBasis, start: Float[Tensor, "a b c"], iterations: int, number: int, progress: Progress | None
    ) -> Float[Tensor, "a b c"]:
        def cost(nodes: Float[Tensor, "a b c"]) -> Float[Tensor, ""]:
            field = basis.field(nodes)
            steep = finite_difference.gradient(field[None], self.grid.voxel_sizes).square().sum((0, 1)).mean()
            return self._spread(field) + self.settings.smoothness * steep + self.settings.barrier * self._folding(field)

        def told(iteration: int, value: float) -> None:
            if progress is not None:
                progress(number, iteration, value)

        return least(cost, start, 1.0 / start.numel(), iterations, told)

    def poses(
        self, scans: tuple[EncodedScan, ...], poses: Float[Tensor, "s 6"], field: Float[Tensor, "i j k"]
    ) -> Float[Tensor, "s 6"]:
        """Of every scan but the first: how it must lie for it to agree with the first, both corrected."""
        target = self._corrected(field)[0]
        hz, found = Image(self.grid, (field / self.unit)[None]), []
        for scan, pose in zip(scans[1:], poses, strict=True):
            coarse = coarsened(scan, max(self.grid.voxel_sizes))
            along = scan.direction / scan.direction.norm()

            def cost(
                pose: Float[Tensor, " 6"], coarse: EncodedScan = coarse, along: Tensor = along
            ) -> Float[Tensor, ""]:
                matrix = _matrices(pose[None], scans[0].image.grid)[1]
                corrected = undistort(coarse, hz, Affine(matrix, self.grid.space, coarse.image.grid.space)).values[0]
                apart = ((corrected - target).square() * self.weight).sum() / self.weight.sum()
                return apart + _NO_SHIFT * (pose[:3] @ along).square()

            found.append(least(cost, pose, 0.1, 15))
        return torch.stack(found)

    def difference(self, field: Float[Tensor, "i j k"]) -> float:
        return math.sqrt(float(self._spread(field)))

    def _shift(self, scan: EncodedScan, field: Float[Tensor, "i j k"]) -> Float[Tensor, "i j k"]:
        return epi.shift_vox(field / self.unit, scan.sign, scan.readout)

    def _corrected(self, field: Float[Tensor, "i j k"]) -> Float[Tensor, "s i j k"]:
        return torch.cat(
            [epi.undistorted(scan.image.values, self._shift(scan, field), scan.axis) for scan in self.scans]
        )

    def _spread(self, field: Float[Tensor, "i j k"]) -> Float[Tensor, ""]:
        """Variance of the corrected scans about their mean, doubled: for two, their mean squared difference."""
        corrected = self._corrected(field)
        squares = (corrected - corrected.mean(0)).square().sum(0) * (2 / (len(corrected) - 1))
        return (squares * self.weight).sum() / self.weight.sum()

    def _folding(self, field: Float[Tensor, "i j k"]) -> Float[Tensor, ""]:
        lengths = torch.stack([1 + epi.slope(self._shift(scan, field), scan.axis) for scan in self.scans])
        return (self.settings.least_jacobian - lengths).clamp_min(0).square().mean()


def _check_ways(scans: tuple[EncodedScan, ...]) -> None:
    ways = torch.stack([scan.direction for scan in scans])
    if len(scans) < 2 or float((ways - ways[0]).norm(dim=1).max()) < 1e-3 * float(ways.norm(dim=1).max()):
        raise InputDataError(
            "All scans have the same phase encoding, so they are distorted alike and tell nothing of the field",
            id="E-EPI-ONEWAY",
            needed="scans of at least two PhaseEncodingDirections (or readout times)",
            fix="check PhaseEncodingDirection in the JSON files: a reversed pair says j and j-, for instance",
        )


def coarsened(scan: EncodedScan, size: float) -> EncodedScan:
    """At coarser voxels, of mean 1 in the head."""
    grid = scan.image.grid
    values, affine = smooth.reduce(scan.image.values[:1].to(torch.float32), grid.affine, size)
    coarser = ImageGrid((values.shape[1], values.shape[2], values.shape[3]), affine, grid.space)
    bright = values[values > values.mean()]
    # A voxel that is n times as long is crossed in n times the time.
    share = grid.voxel_sizes[scan.axis] / coarser.voxel_sizes[scan.axis]
    return EncodedScan(Image(coarser, values / bright.mean()), scan.axis, scan.sign, scan.readout * share)


def _onto(scan: EncodedScan, grid: ImageGrid, motion: Float[Tensor, "4 4"]) -> EncodedScan:
    """A scan on another grid, after a motion from that grid's space to its own."""
    to_scan = aff.compose(grid.affine, motion, scan.image.grid.inverse_affine)
    index = ImageGrid(grid.shape, torch.eye(4), "voxels").centres()
    values = interpolate.sample(scan.image.values, aff.apply_affine(to_scan, index), outside="nearest").movedim(-1, 0)
    along = torch.linalg.inv(to_scan)[:3, scan.axis]
    axis = int(along.abs().argmax())
    share = float(along[axis])
    return EncodedScan(Image(grid, values), axis, scan.sign if share > 0 else -scan.sign, scan.readout * abs(share))


def _matrices(poses: Float[Tensor, "s 6"], grid: ImageGrid) -> list[Float[Tensor, "4 4"]]:
    """Rigid motions (`halfway.step`) about the middle of a grid; the first scan stays."""
    middle = grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2)
    return [torch.eye(4, dtype=torch.float64), *(step(pose.double(), middle) for pose in poses)]
