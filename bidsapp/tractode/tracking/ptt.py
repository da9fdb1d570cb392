"""PTT: probabilistic streamlines by parallel transport, each step a short arc whose whole probe the data support.

Aydogan & Shi, *Parallel transport tractography*, IEEE TMI 2021, doi:10.1109/TMI.2020.3034038; parameters and rejection
sampling as DIPY 1.12's ``ptt_tracking`` (10 draws to estimate the greatest support, at most 100 to be accepted).

A line carries a frame (tangent, two normals) and two curvatures k₁, k₂, which make a curve of constant curvature. It moves one
step along its curve, frame and all; then new curvatures are drawn uniformly from a disc of radius 1 / `min_radius` and
accepted with a chance proportional to the data support of the probe, the next `probe_length` of such a curve: the mean
amplitude along it, where amplitudes below ``cutoff`` count as 0.

Departures: the amplitude along a tangent is exact (DIPY: that of the nearest of 362 or 724 directions); lengths and
curvatures are in mm (DIPY divides the step by the voxel size when it turns the angle into a curvature, so that its 10° at
0.5 mm steps and 2 mm voxels mean the 20° a step that are the default here); the initial normals are tied to the axes of
the grid, so that the lines turn with the image (the disc of curvatures is round, so no random turn is needed); the
probe's first point has its own amplitude (DIPY: that of the end of the last probe); the greatest support is raised to the
exponent once; the half against the seed's direction draws its own curve and does not continue the first one's.

Not differentiable: with given random numbers the curve is a function of the curvatures drawn, and field and seed only
decide which of them are accepted, which is piecewise constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import ImageGrid, ShField
from tractode.ops import sh_polynomial as poly
from tractode.ops.counter_random import draw, stream
from tractode.ops.peaks import find_peaks, pad_to_lanes
from tractode.ops.sh_polynomial import dot
from tractode.tracking.march import Engine, March, Stepper
from tractode.tracking.method import StreamlineTracker, Task
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.stopping import MaskLookup, mean_voxel_size

N_ESTIMATES = 10
N_TRIES = 100
TRIES_AT_ONCE = 8
DRAWS = 512  # random numbers set aside for each step: 2 an estimate, 3 a try


@dataclass(frozen=True)
class PTT(StreamlineTracker):
    """See `StreamlineTracker` for the settings; step 0.25 voxel, angle 20° a step, cutoff 0.1.

    The angle and the step make the least radius of curvature, step / 2 sin(angle / 2): 0.72 voxel by default.

    Attributes
    ----------
    probe_mm
        Length of the probe; default 0.75 voxel.
    probe_quality
        Points along the probe, the line's own among them.
    probe_count, probe_radius
        Points around the probe, and how far from it (mm); one point is the probe itself.
    exponent
        The power of the data support that a try is accepted with; larger means straighter to the peaks.
    """

    label: ClassVar[str] = "ptt"
    citation: ClassVar[str] = "aydogan2021"
    is_differentiable: ClassVar[bool] = False
    accepts: ClassVar[tuple[type, ...]] = (ShField,)
    STEP_VOXELS: ClassVar[float] = 0.25
    ANGLE: ClassVar[float] = math.radians(20)

    probe_mm: float | None = None
    probe_quality: int = 7
    probe_count: int = 1
    probe_radius: float = 0.0
    exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe_quality < 2 or self.probe_count < 1 or self.probe_radius < 0 or not self.exponent > 0:
            raise ValueError(
                "A probe needs at least 2 points along it, 1 around it, a radius of at least 0 and a positive exponent; got "
                f"{self.probe_quality}, {self.probe_count}, {self.probe_radius} and {self.exponent}."
            )

    def method_facts(self) -> dict[str, Any]:
        return {
            "Algorithm": "PTT",
            "Integration": "arcs of constant curvature",
            "SeedDirection": "peak uphill from a random direction",
            "ProbeQuality": self.probe_quality,
            "ProbeCount": self.probe_count,
            "DataSupportExponent": self.exponent,
        }

    def engine(self, task: Task) -> Engine:
        assert isinstance(task.orientations, ShField)
        table = ComponentTable.of(task.orientations)
        mask = MaskLookup.of(task.mask, table.values.device)
        probe = self._probe(task.orientations.grid)
        curvature = 2 * math.sin(task.largest_turn / 2) / task.step
        stepper = ArcStepper(table, mask, task.step, curvature, self.cutoff, probe, self.exponent, task.key)
        march = March(stepper, task.limits, self.one_way)
        if not (self.compiled and table.values.device.type == "cpu"):
            return march
        from tractode.tracking.kernels.ptt import loop

        return loop(march, stepper)

    def _probe(self, grid: ImageGrid) -> Probe:
        length = 0.75 * mean_voxel_size(grid) if self.probe_mm is None else self.probe_mm
        return Probe(length / (self.probe_quality - 1), self.probe_quality, self.probe_count, self.probe_radius)


@dataclass(frozen=True)
class Probe:
    """Spacing of its points (mm), points along it, points around it and their distance from it (mm)."""

    spacing: float
    quality: int
    count: int
    radius: float


@dataclass(frozen=True, eq=False)
class Frame:
    """A place and an orthonormal frame there: the tangent and the two normals in which the curve bends by k₁ and k₂."""

    position: Float[Tensor, "3 m"]
    tangent: Float[Tensor, "3 m"]
    normal: Float[Tensor, "3 m"]
    binormal: Float[Tensor, "3 m"]

    @classmethod
    def of(cls, state: Float[Tensor, "12 m"]) -> Frame:
        return cls(state[:3], state[3:6], state[6:9], state[9:12])

    def rows(self) -> Float[Tensor, "12 m"]:
        return torch.cat((self.position, self.tangent, self.normal, self.binormal))


def transport(frame: Frame, k1: Float[Tensor, " m"], k2: Float[Tensor, " m"], length: float) -> Frame:
    """The frame ``length`` mm further along the curve of constant k₁, k₂,, to second order in the length.

    The frame's equations are T′ = k₁ N + k₂ B, N′ = −k₁ T, B′ = −k₂ T: it turns as little as the tangent allows. What
    the series leaves of non-orthogonality is taken out again.
    """
    half = 0.5 * length * length
    position = frame.position + length * frame.tangent + half * (k1 * frame.normal + k2 * frame.binormal)
    tangent = (1 - half * (k1 * k1 + k2 * k2)) * frame.tangent + length * (k1 * frame.normal + k2 * frame.binormal)
    binormal = (1 - half * k2 * k2) * frame.binormal - length * k2 * frame.tangent - half * k1 * k2 * frame.normal
    tangent = _unit(tangent)
    normal = _unit(_cross(binormal, tangent))
    return Frame(position, tangent, normal, _cross(tangent, normal))


def unit_axes(grid: ImageGrid) -> Float[Tensor, "3 3"]:
    """The directions of the grid's axes as rows (float64)."""
    axes = grid.affine[:3, :3]
    return (axes / axes.norm(dim=0)).mT


def _unit(vectors: Float[Tensor, "3 m"]) -> Float[Tensor, "3 m"]:
    return vectors / dot(vectors, vectors).clamp_min(torch.finfo(vectors.dtype).tiny).sqrt()


def _cross(a: Float[Tensor, "3 m"], b: Float[Tensor, "3 m"]) -> Float[Tensor, "3 m"]:
    return torch.stack((a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]))


@dataclass(frozen=True, eq=False)
class ArcStepper(Stepper):
    """One arc a step. The rows of a state are the four of its `Frame`; the tangent is the direction that led there."""

    table: ComponentTable
    mask: MaskLookup
    step: float
    curvature: float
    cutoff: float
    probe: Probe
    exponent: float
    key: int

    def start(
        self, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"], number: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "12 m"], Bool[Tensor, " m"]]:
        """At the peak uphill from the direction; seeds outside mask or data, or below the cutoff, do not start."""
        components, has_data = self.table.sample(to_voxel(self.table.grid, position))
        tangent, amplitude = find_peaks(components, direction)
        is_good = self.mask.contains(position) & has_data & (amplitude >= self.cutoff)
        return self._framed(position, tangent), is_good

    def reverse(self, state: Float[Tensor, "12 m"]) -> Float[Tensor, "12 m"]:
        return self._framed(state[:3], -state[3:6])

    def _framed(self, position: Float[Tensor, "3 m"], tangent: Float[Tensor, "3 m"]) -> Float[Tensor, "12 m"]:
        """The first normal is the grid's axis most across the tangent, made perpendicular."""
        axes = unit_axes(self.table.grid).to(tangent)
        along = torch.stack([dot(axis[:, None].expand_as(tangent), tangent) for axis in axes])
        axis = axes[along.abs().argmin(0)].mT
        normal = _unit(axis - dot(axis, tangent) * tangent)
        return torch.cat((position, tangent, normal, _cross(tangent, normal)))

    def advance(
        self, state: Float[Tensor, "12 m"], number: Int[Tensor, " m"], taken: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "12 m"], Bool[Tensor, " m"], Bool[Tensor, " m"]]:
        """Draw a curve that the data support and move along it."""
        k1, k2, is_drawn = self._drawn(state, stream(self.key, number), taken * DRAWS)
        moved = transport(Frame.of(state), k1, k2, self.step)
        has_moved = is_drawn & self.mask.contains(moved.position)
        return torch.where(has_moved, moved.rows(), state), has_moved, torch.zeros_like(has_moved)

    def _drawn(
        self, state: Float[Tensor, "12 m"], random: Int[Tensor, " m"], counter: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Bool[Tensor, " m"]]:
        """Curvatures by rejection sampling, and where there were any: tries go on for the columns still without."""
        here = self._amplitude(Frame.of(state))
        estimates = self._tries(state, here, random, counter, 2, N_ESTIMATES)[2]
        bound = (2 * estimates.amax(0)) ** self.exponent  # few draws find less than the greatest
        k1, k2, is_drawn = torch.zeros_like(here), torch.zeros_like(here), torch.zeros_like(here, dtype=torch.bool)
        columns = (bound > 0).nonzero().ravel()
        for first in range(0, N_TRIES, TRIES_AT_ONCE):
            columns = pad_to_lanes(columns[~is_drawn[columns]])
            if len(columns) == 0:
                break
            at, start = counter[columns] + 2 * N_ESTIMATES + 3 * first, random[columns]
            n = min(TRIES_AT_ONCE, N_TRIES - first)
            *bends, support = self._tries(state.index_select(1, columns), here[columns], start, at, 3, n)
            chance = torch.stack([draw(start, at + 3 * i + 2) for i in range(n)]).to(support)
            is_accepted = chance * bound[columns] < support**self.exponent
            chosen = is_accepted.int().argmax(0, keepdim=True)  # the first of them
            is_drawn[columns] = is_accepted.any(0)
            k1[columns], k2[columns] = (bend.gather(0, chosen)[0] for bend in bends)
        return k1, k2, is_drawn

    def _tries(
        self,
        state: Float[Tensor, "12 m"],
        here: Float[Tensor, " m"],
        random: Int[Tensor, " m"],
        counter: Int[Tensor, " m"],
        stride: int,
        n: int,
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"], Float[Tensor, "n m"]]:
        """``n`` pairs of curvatures for every column and the data support of each."""
        bends = [self._curvatures(random, counter + stride * i) for i in range(n)]
        k1, k2 = torch.cat([bend[0] for bend in bends]), torch.cat([bend[1] for bend in bends])
        support = self._support(Frame.of(state.repeat(1, n)), here.repeat(n), k1, k2)
        return k1.view(n, -1), k2.view(n, -1), support.view(n, -1)

    def _curvatures(
        self, random: Int[Tensor, " m"], counter: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """k₁ and k₂ uniform in a disc (1/mm); takes two draws."""
        radius = self.curvature * draw(random, counter).sqrt()
        angle = 2 * math.pi * draw(random, counter + 1)
        dtype = self.table.values.dtype
        return (radius * angle.cos()).to(dtype), (radius * angle.sin()).to(dtype)

    def _support(
        self, frame: Frame, here: Float[Tensor, " m"], k1: Float[Tensor, " m"], k2: Float[Tensor, " m"]
    ) -> Float[Tensor, " m"]:
        """The mean amplitude along the probe, its first point's (``here``) included."""
        total = here
        for _ in range(self.probe.quality - 1):
            frame = transport(frame, k1, k2, self.probe.spacing)
            total = total + self._amplitude(frame)
        return total / self.probe.quality

    def _amplitude(self, frame: Frame) -> Float[Tensor, " m"]:
        """The amplitude along the tangent, below the cutoff and outside the data 0; the mean of the points around."""
        total = torch.zeros_like(frame.position[0])
        for point in range(self.probe.count):
            position = frame.position
            if self.probe.radius > 0:
                turn = 2 * math.pi * point / self.probe.count
                across = math.cos(turn) * frame.normal + math.sin(turn) * frame.binormal
                position = position + self.probe.radius * across
            components, has_data = self.table.sample(to_voxel(self.table.grid, position))
            amplitude = dot(frame.tangent, poly.apply(poly.contraction(components, frame.tangent), frame.tangent))
            total = total + torch.where(has_data & (amplitude > self.cutoff), amplitude, 0.0)
        return total / self.probe.count
