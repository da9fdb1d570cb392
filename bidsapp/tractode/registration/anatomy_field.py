"""The field (Hz) that distorts a b=0 image, from an undistorted image of the same head in another contrast (T1w, T2w).

J. Kybic, P. Thévenaz, A. Nirkko, M. Unser, *Unwarping of unidirectionally distorted EPI images*, IEEE TMI 19:80 (2000),
doi:10.1109/42.836368: cubic splines, displacement along the phase encoding only, coarse to fine.

Where no scan of another encoding and no field map exists, the anatomy says where things really are. Its contrast is another, so
the corrected scan (with its intensity modulated) is not compared with it but explained by it, window by window
(`local_regression`): a line on the intensity of the anatomy's brain, cut out, and its square. Departures: that measure; the field
pays for not being harmonic in the brain, since what disturbs it (air, bone) is outside, and so is the shim, and Laplace's
equation leaves few fields to choose from; the barrier against folding is that of `reverse_encoding`; field and pose in turns.

What cannot be told apart: a shift of the scan along its encoding and a constant field; the field has no mean in the brain,
the pose takes it. A scale along the encoding and a field linear in that direction; the pose is rigid, the field takes it. A small turn and a
field linear across the encoding differ only in what the turn does across the encoding; both are found, less surely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import InputDataError, SpaceMismatchError
from tractode.fields.image import Image, ImageGrid, check_same_grid
from tractode.fields.transform import Affine
from tractode.ops import affine as aff
from tractode.ops import epi, finite_difference, smooth
from tractode.registration.field_basis import FieldBasis, least
from tractode.registration.halfway import step
from tractode.registration.local_regression import LocalRegression
from tractode.registration.reverse_encoding import EncodedScan, FieldEstimate, Level, Progress, coarsened


@dataclass(frozen=True)
class AnatomyFieldSettings:
    """How the field is sought.

    Parameters
    ----------
    width
        Of the windows in which the anatomy explains the scan, mm; three voxels at least.
    harmonic
        Weight of the squared Laplacian of the shift in the brain (mm times `_LENGTH`²), against a share of variance.
    smoothness
        Weight of the squared slope of the shift (mm/mm) everywhere.
    barrier, least_jacobian
        Weight of what a ratio of lengths along the encoding lacks to this least one, squared.
    margin
        The brain mask is widened by this much, mm: its rim is seen in both.
    turns
        How often field and pose are sought in turn at each resolution.
    """

    levels: tuple[Level, ...] = (Level(7.5, 20.0, 20), Level(5.0, 14.0, 25))
    width: float = 9.0
    harmonic: float = 30.0
    smoothness: float = 0.02
    barrier: float = 10.0
    least_jacobian: float = 0.25
    margin: float = 4.0
    turns: int = 2
    pose_iterations: int = 10


_LENGTH = 10.0  # mm: a shift of curvature 1/mm per this length squared counts 1


def estimate_field_from_anatomy(
    scan: EncodedScan,
    anatomy: Image,
    *,
    pose: Affine,
    scan_mask: Image | None = None,
    anatomy_mask: Image | None = None,
    settings: AnatomyFieldSettings | None = None,
    progress: Progress | None = None,
) -> FieldEstimate:
    """The field on the scan's grid, without mean in the brain, and the pose that goes with it.

    Parameters
    ----------
    pose
        Anatomy → scan (where things really are), rigid, to start from.
    scan_mask, anatomy_mask
        The brain. The anatomy's is what counts; the scan's (which is distorted) stands in for it where there is none.

    Returns
    -------
    FieldEstimate
        ``motions`` are the identity for the scan and, as the second, the refined pose inverted: from the space of the field to
        the anatomy's. The differences are roots of the share of the scan's variance that the anatomy does not explain in windows.

    Raises
    ------
    SpaceMismatchError
        ``pose`` joins other spaces.
    InputDataError
        No mask, or an empty one (``E-EPI-BRAIN``).
    """
    settings = settings or AnatomyFieldSettings()
    there = scan.image.grid.space
    if (pose.source, pose.target) != (anatomy.grid.space, there):
        raise SpaceMismatchError(
            f"The pose goes {pose.source!r} → {pose.target!r}; it must go {anatomy.grid.space!r} → {there!r}."
        )
    stack = _stack(scan, anatomy, pose, scan_mask, anatomy_mask, settings.margin)
    matrix = pose.matrix.to("cpu", torch.float64)
    before = _Problem.of(scan, stack, matrix, settings.levels[-1], settings).difference(None)
    basis: FieldBasis | None = None
    nodes: Float[Tensor, "a b c"] | None = None
    for number, level in enumerate(settings.levels):
        for turn in range(settings.turns):
            problem = _Problem.of(scan, stack, matrix, level, settings)
            finer = FieldBasis.of(problem.grid, level.nodes)
            start = finer.zeros() if nodes is None or basis is None else nodes if turn else finer.fitted(basis, nodes)
            nodes, basis = problem.solve(finer, start, level.iterations, number, progress), finer
            matrix = problem.pose(matrix, basis.field(nodes), settings.pose_iterations)
    assert nodes is not None
    assert basis is not None
    last = _Problem.of(scan, stack, matrix, settings.levels[-1], settings)
    field = basis.field(nodes)
    hz = (basis.on(scan.image.grid).field(nodes) - last.mean(field)) / last.unit
    still = Affine(torch.eye(4, dtype=torch.float64), there, there)
    motions = (still, Affine(matrix, anatomy.grid.space, there).inverse())
    return FieldEstimate(Image(scan.image.grid, hz[None]), motions, before, last.difference(field))


def _stack(
    scan: EncodedScan, anatomy: Image, pose: Affine, scan_mask: Image | None, anatomy_mask: Image | None, margin: float
) -> Image:
    """On the anatomy's grid: its brain, of mean 1 and cut out; the mask; and the mask widened."""
    if anatomy_mask is None and scan_mask is not None:
        values = Image(scan_mask.grid, scan_mask.mask[None].float()).sample(pose.map(anatomy.grid.centres()))
        anatomy_mask = Image(anatomy.grid, values.movedim(-1, 0) > 0.5)
    if anatomy_mask is None or not bool(anatomy_mask.mask.any()):
        raise InputDataError(
            "There is no brain mask, or an empty one, to find a field in",
            id="E-EPI-BRAIN",
            needed="the brain mask of the anatomy, or that of the scan",
            fix="look at the mask; the brain may not have been found",
        )
    check_same_grid(anatomy_mask.grid, anatomy.grid, "The mask of an anatomy")
    inside = anatomy_mask.mask
    values = anatomy.values[0].to(torch.float32)
    unit = (values / values[inside].mean().clamp_min(1e-12)).clamp(0, 3) * inside
    i, j, k = (round(margin / size) for size in anatomy.grid.voxel_sizes)
    return Image(anatomy.grid, torch.stack([unit, inside.float(), smooth.dilate(inside, (i, j, k)).float()]))


@dataclass(frozen=True, eq=False)
class _Problem:
    """A scan and the anatomy that explains it at one resolution and pose; fields are in mm of shift."""

    scan: EncodedScan
    anatomy: Image
    brain: Float[Tensor, "i j k"]
    weight: Float[Tensor, "i j k"]
    measure: LocalRegression
    settings: AnatomyFieldSettings

    @property
    def grid(self) -> ImageGrid:
        return self.scan.image.grid

    @property
    def unit(self) -> float:
        """mm that a field of 1 Hz moves things."""
        return float(self.scan.direction.norm())

    @classmethod
    def of(
        cls, scan: EncodedScan, stack: Image, matrix: Tensor, level: Level, settings: AnatomyFieldSettings
    ) -> _Problem:
        coarse = coarsened(scan, level.voxel)
        # As soft as the scan has become: its voxels, as a Gaussian of that full width.
        edge = min(coarse.image.grid.voxel_sizes)
        widths = [edge / 2.355 / size if size < edge else 0.0 for size in stack.grid.voxel_sizes]
        soft = torch.cat([smooth.gaussian(stack.values[:2], (widths[0], widths[1], widths[2])), stack.values[2:]])
        anatomy = Image(stack.grid, soft)
        seen = _seen(anatomy, coarse.image.grid, torch.linalg.inv(matrix))
        return cls(coarse, anatomy, seen[1], seen[2], _explained_by(seen, coarse.image.grid, settings.width), settings)

    def mean(self, field: Float[Tensor, "i j k"]) -> Float[Tensor, ""]:
        return (field * self.brain).sum() / self.brain.sum().clamp_min(1e-6)

    def corrected(self, field: Float[Tensor, "i j k"]) -> Float[Tensor, "i j k"]:
        return epi.undistorted(self.scan.image.values, self._shift(field), self.scan.axis)[0]

    def difference(self, field: Float[Tensor, "i j k"] | None) -> float:
        field = torch.zeros(self.grid.shape) if field is None else field - self.mean(field)
        return math.sqrt(max(float(self.measure.unexplained(self.corrected(field))), 0.0))

    def solve(
        self, basis: FieldBasis, start: Float[Tensor, "a b c"], iterations: int, number: int, progress: Progress | None
    ) -> Float[Tensor, "a b c"]:
        settings, sizes = self.settings, self.grid.voxel_sizes

        def cost(nodes: Float[Tensor, "a b c"]) -> Float[Tensor, ""]:
            field = basis.field(nodes)
            field = field - self.mean(field)
            steep = finite_difference.gradient(field[None], sizes).square().sum((0, 1)).mean()
            bent = (self._laplacian(field).square() * self.brain).mean() * _LENGTH**2
            folding = (settings.least_jacobian - 1 - epi.slope(self._shift(field), self.scan.axis)).clamp_min(0)
            prior = settings.smoothness * steep + settings.harmonic * bent + settings.barrier * folding.square().mean()
            return self.measure.unexplained(self.corrected(field)) + prior

        def told(iteration: int, value: float) -> None:
            if progress is not None:
                progress(number, iteration, value)

        return least(cost, start, 1.0 / start.numel(), iterations, told)

    def pose(self, matrix: Float[Tensor, "4 4"], field: Float[Tensor, "i j k"], iterations: int) -> Tensor:
        """Anatomy → scan, by which the anatomy explains most of the corrected scan."""
        with torch.no_grad():
            corrected = self.corrected(field - self.mean(field))
        middle = self.grid.to_world((torch.tensor(self.grid.shape, dtype=torch.float64) - 1) / 2)
        back = torch.linalg.inv(matrix)

        def cost(pose: Float[Tensor, " 6"]) -> Float[Tensor, ""]:
            seen = _seen(self.anatomy, self.grid, back @ step(pose.double(), middle))
            return _explained_by(seen, self.grid, self.settings.width).unexplained(corrected)

        found = least(cost, torch.zeros(6), 0.02, iterations)
        return torch.linalg.inv(back @ step(found.double(), middle))

    def _shift(self, field: Float[Tensor, "i j k"]) -> Float[Tensor, "i j k"]:
        return epi.shift_vox(field / self.unit, self.scan.sign, self.scan.readout)

    def _laplacian(self, field: Float[Tensor, "i j k"]) -> Float[Tensor, "i j k"]:
        """By differences of neighbours; 0 at the ends of the grid."""
        total = torch.zeros_like(field)
        for axis, size in enumerate(self.grid.voxel_sizes):
            n = field.shape[axis]
            if n > 2:
                bent = field.diff(n=2, dim=axis) / size**2
                pad = [0] * 6
                pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = 1
                total = total + torch.nn.functional.pad(bent, pad)
        return total


def _seen(anatomy: Image, grid: ImageGrid, to_anatomy: Float[Tensor, "4 4"]) -> Float[Tensor, "3 i j k"]:
    """The anatomy, its mask and the widened mask on the scan's grid."""
    points = aff.apply_affine(to_anatomy.float(), grid.centres())
    return anatomy.sample(points, outside="nearest").movedim(-1, 0)


def _explained_by(seen: Float[Tensor, "3 i j k"], grid: ImageGrid, width: float) -> LocalRegression:
    intensity, _, weight = seen
    cell = max(1, round(width / 3 / min(grid.voxel_sizes)))
    return LocalRegression.of(torch.stack([intensity, intensity.square()]), weight, cell)
