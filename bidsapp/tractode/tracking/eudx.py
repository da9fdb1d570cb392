"""EuDX: deterministic streamlines by a vote of the peaks of the eight voxels around a point, batched and differentiable.

Garyfallidis, *Towards an accurate brain tractography*, PhD thesis, University of Cambridge 2012 (it has no DOI); rules and
defaults of DIPY 1.12's ``eudx_tracking`` (Garyfallidis et al., Front. Neuroinform. 2014, doi:10.3389/fninf.2014.00008): each of the eight voxels gives its peak nearest to the direction of travel, if that is
within ``angle`` and its amplitude above ``cutoff``; the peaks, on the side of travel and weighted trilinearly, add up to
the next direction, unless the voxels that gave one weigh less than ``min_weight`` together. Euler steps of 0.5 mm.

Departures: ``cutoff`` is on the amplitudes as they are (0.1, as for the other trackers of FODs; DIPY's 0.0239 is meant
for quantitative anisotropy); lines longer than ``max_length`` are cut, not dropped; between the outermost voxel centres
and the edge of the image the outermost centres vote; one line a seed, from the peak of the seed's voxel nearest to the
seed's direction (`starts_at_peaks` gives every peak its own, as DIPY does). The second half is compared with the first
half's first step, as in DIPY, but in mm and not in voxels' units, which differ where voxels are not cubes.

The vote is smooth at a fixed choice of peaks: lines have derivatives with respect to the peaks' directions and the seeds.
Which peak a voxel gives, and whether it gives one, is piecewise constant and has none; amplitudes only choose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import ImageGrid, PeakField, ShField
from tractode.ops.peaks import pad_to_lanes
from tractode.tracking.corner_adjoint import CornerDerivative, with_references
from tractode.tracking.march import Engine, March, Paths, Stepper
from tractode.tracking.method import StreamlineTracker, Task
from tractode.tracking.peak_field import peak_field
from tractode.tracking.sampling import ComponentTable, nearest_index, to_voxel
from tractode.tracking.stopping import MaskLookup

STEP_MM = 0.5


@dataclass(frozen=True)
class EuDX(StreamlineTracker):
    """See `StreamlineTracker` for the settings; step 0.5 mm whatever the voxels, angle 60°, cutoff 0.1.

    Attributes
    ----------
    min_weight
        The least trilinear weight of the voxels that must give a peak, a fraction of 1.
    n_peaks, relative_cutoff, separation
        For an `ShField`, whose peaks are found first: see `peak_field` (separation in radians).
    """

    label: ClassVar[str] = "eudx"
    citation: ClassVar[str] = "garyfallidis2014"
    is_differentiable: ClassVar[bool] = True
    accepts: ClassVar[tuple[type, ...]] = (PeakField, ShField)
    STEP_VOXELS: ClassVar[float] = 0.25  # of a 2 mm voxel; `lengths` gives STEP_MM for every voxel size
    ANGLE: ClassVar[float] = math.radians(60)

    min_weight: float = 0.5
    n_peaks: int = 5
    relative_cutoff: float = 0.1
    separation: float = math.radians(25)

    def lengths(self, grid: ImageGrid) -> tuple[float, float, float]:
        step, least, greatest = super().lengths(grid)
        return STEP_MM if self.step_mm is None else step, least, greatest

    def method_facts(self) -> dict[str, Any]:
        return {
            "Algorithm": "EuDX",
            "Integration": "Euler",
            "SeedDirection": "peak of the voxel nearest to a random direction",
            "MinimumTotalWeight": self.min_weight,
        }

    def engine(self, task: Task) -> Engine:
        peaks = task.orientations
        assert isinstance(peaks, PeakField | ShField)
        if isinstance(peaks, ShField):
            peaks = peak_field(peaks, self.n_peaks, self.cutoff, self.relative_cutoff, self.separation)
        table = table_of(peaks)
        mask = MaskLookup.of(task.mask, table.values.device)
        cosine = math.cos(task.largest_turn)
        stepper = VoteStepper(table, mask, task.step, cosine, self.cutoff, self.min_weight)

        def along(corners: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
            return vote(corners, weights, reference, cosine, self.cutoff)[0]

        step = task.step if task.learned_step is None else task.learned_step
        derivative = CornerDerivative(table, step, along, references_of_votes)
        march = VoteMarch(stepper, task.limits, self.one_way, derivative=derivative)
        if not (self.compiled and table.values.device.type == "cpu"):
            return march
        from tractode.tracking.kernels.eudx import loop

        return loop(march)


def table_of(field: PeakField) -> ComponentTable:
    """Rows of k x, k y, k z and k amplitudes; differentiable in the directions."""
    parts = (*field.directions.unbind(1), field.amplitudes)
    return ComponentTable.of_values(field.grid, torch.cat(parts))


def starts_at_peaks(
    field: PeakField, seeds: Float[Tensor, "s 3"], cutoff: float = 0.1
) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m 3"], Int[Tensor, " m"]]:
    """Every peak above ``cutoff`` of each seed's voxel as a start of its own: seeds, directions, index of the seed."""
    index, is_inside = nearest_index(field.grid.shape, to_voxel(field.grid, seeds.mT))
    amplitudes = field.amplitudes.flatten(1)[:, index]
    seed, peak = ((amplitudes > cutoff) & is_inside).mT.nonzero().unbind(1)
    directions = field.directions.flatten(2)[:, :, index].permute(2, 0, 1)[seed, peak]
    return seeds[seed], directions, seed


def nearest_peak(
    corners: Float[Tensor, "m c four_k"], reference: Float[Tensor, "3 m"], cutoff: float
) -> tuple[Float[Tensor, "3 m c"], Float[Tensor, "m c"]]:
    """Of each voxel, the peak above ``cutoff`` nearest to the reference, on its side; and the cosine between them (−1: none)."""
    k = corners.shape[-1] // 4
    peaks, amplitudes = corners[..., : 3 * k], corners[..., 3 * k :]
    along = [reference[a, :, None, None] * peaks[..., a * k : (a + 1) * k] for a in range(3)]
    cosine = along[0] + along[1] + along[2]
    with torch.no_grad():
        nearness, best = torch.where(amplitudes > cutoff, cosine.abs(), -1.0).max(-1, keepdim=True)
        side = torch.where(cosine.gather(-1, best) < 0, -1.0, 1.0).to(corners)
    chosen = torch.stack([(side * peaks[..., a * k : (a + 1) * k].gather(-1, best))[..., 0] for a in range(3)])
    return chosen, nearness[..., 0]


def vote(
    corners: Float[Tensor, "m 8 four_k"],
    weights: Float[Tensor, "m 8"],
    reference: Float[Tensor, "3 m"],
    cosine: float,
    cutoff: float,
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"]]:
    """The direction that the eight voxels agree on, and the weight of those that gave one (0 where it is of no use)."""
    chosen, nearness = nearest_peak(corners, reference, cutoff)
    counted = torch.where(nearness >= cosine, weights, 0.0)
    total = sum((counted[:, c] for c in range(8)), start=torch.zeros_like(counted[:, 0]))
    direction = sum((counted[:, c] * chosen[:, :, c] for c in range(8)), start=torch.zeros_like(chosen[:, :, 0]))
    length = (direction * direction).sum(0).clamp_min(torch.finfo(direction.dtype).tiny).sqrt()
    return direction / length, total


def references_of_votes(paths: Paths) -> Paths:
    """The lines with the direction that each step's votes were compared with; ``directions`` at the seed are the peak's.

    The first half's first step was compared with the peak, the second's with the first's turned round, or where the
    first half has none with the peak's.
    """
    compared = with_references(paths).directions
    at_seed = paths.offsets[:-1] + paths.first_steps
    peak, is_led = paths.directions[at_seed], paths.first_steps > 0
    second = torch.where(is_led[:, None], paths.directions[at_seed - is_led.to(at_seed)], peak)
    has_second = paths.second_steps > 0
    compared[at_seed[is_led] - 1] = peak[is_led]
    compared[at_seed[has_second] + 1] = -second[has_second]
    return replace(paths, directions=compared)


@dataclass(frozen=True, eq=False)
class VoteMarch(March):
    """The torch loop of EuDX, with its derivative. `Paths.directions` at a seed is the peak that it started with."""

    stepper: VoteStepper
    derivative: CornerDerivative = field(kw_only=True)

    def follow(self, seeds: Float[Tensor, "s 3"], directions: Float[Tensor, "s 3"], first: int) -> Paths:
        paths = super().follow(seeds, directions, first)
        if len(paths.seed):
            columns = paths.seed[pad_to_lanes(torch.arange(len(paths.seed), device=seeds.device))]
            state, _ = self.stepper.start(seeds[columns].mT.contiguous(), directions[columns].mT.contiguous(), columns)
            paths.directions[paths.offsets[:-1] + paths.first_steps] = state[3:, : len(paths.seed)].mT
        return paths

    def points(self, paths: Paths, seeds: Float[Tensor, "s 3"]) -> Float[Tensor, "p 3"]:
        return self.derivative.points(paths, seeds)


@dataclass(frozen=True, eq=False)
class VoteStepper(Stepper):
    """One Euler step along the vote."""

    table: ComponentTable
    mask: MaskLookup
    step: float
    cosine: float
    cutoff: float
    min_weight: float

    def start(
        self, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"], number: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "6 m"], Bool[Tensor, " m"]]:
        """Looking along the nearest voxel's peak nearest to the direction."""
        vox = to_voxel(self.table.grid, position)
        index, is_inside = nearest_index(self.table.grid.shape, vox)
        nj, nk = self.table.grid.shape[1:]
        _, pj, pk = self.table.rows.shape
        padded = (index // (nj * nk) * pj + index // nk % nj) * pk + index % nk
        nearest = self.table.values[self.table.rows.view(-1)[padded].long()]
        peak, nearness = nearest_peak(nearest[:, None], direction, self.cutoff)
        peak = peak[..., 0].contiguous()
        _, _, votes = self._vote(position, peak)
        is_good = self.mask.contains(position) & is_inside & (nearness[:, 0] >= 0) & votes
        return torch.cat((position, peak)), is_good

    def reverse(self, state: Float[Tensor, "6 m"]) -> Float[Tensor, "6 m"]:
        """Against the first half's first step; against the peak where that would leave the mask."""
        new, moved, _ = self._vote(state[:3], state[3:])
        return torch.cat((state[:3], -torch.where(self.mask.contains(moved), new, state[3:])))

    def advance(
        self, state: Float[Tensor, "6 m"], number: Int[Tensor, " m"], taken: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "6 m"], Bool[Tensor, " m"], Bool[Tensor, " m"]]:
        new, moved, votes = self._vote(state[:3], state[3:])
        has_moved = votes & self.mask.contains(moved)
        return torch.where(has_moved, torch.cat((moved, new)), state), has_moved, torch.zeros_like(has_moved)

    def _vote(self, position: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next direction and position, and whether enough of the voxels around gave a peak."""
        vox = to_voxel(self.table.grid, position)
        rows, weights, _ = self.table.corners(vox)
        new, total = vote(self.table.values[rows.long()], weights, reference, self.cosine, self.cutoff)
        # Whether the nearest voxel has a peak does not matter here, only how much those that have one weigh.
        is_inside = nearest_index(self.table.grid.shape, vox)[1]
        return new, position + self.step * new, is_inside & (total >= self.min_weight)
