"""SD_STREAM: deterministic streamlines along the peaks of an orientation distribution, batched and differentiable.

Tournier, Calamante & Connelly, *MRtrix: diffusion tractography in crossing fiber regions*, Int. J. Imaging Syst.
Technol. 2012, doi:10.1002/ima.22005; rules and defaults as MRtrix3's ``tckgen -algorithm SD_STREAM`` (Legendre functions
not tabulated). Departures: those of `peaks`; and random numbers are drawn for all seeds before tracking, so that the
lines do not depend on ``batch_size``.

At each point the coefficients are interpolated, the peak nearest to the previous direction is found, and the point
moves one step along it. A line ends without a new point where there is no data, where the peak is below ``cutoff``,
where the new direction turns by more than ``angle``, or where the next point would leave the mask; it ends with a new
point where it has as many as ``max_length`` allows. Both directions are followed from the seed.

Runge and Kutta's four-stage step (``-rk4``) takes the mean of four peaks, each of the first three telling where the
next is sought. A fifth peak, at the new point, must be there and within ``angle`` of the first; no other turn is limited.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import ShField
from tractode.ops import sh_polynomial as poly
from tractode.ops.peaks import MAX_ITERATIONS, ascend, find_peaks
from tractode.tracking.adjoint import Derivative
from tractode.tracking.jacobian import LineDerivative
from tractode.tracking.march import Engine, March, Paths, Stepper
from tractode.tracking.method import StreamlineTracker, Task
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.stopping import MaskLookup

INTEGRATIONS = {"euler": "Euler", "rk4": "Runge-Kutta 4"}


@dataclass(frozen=True)
class SDStream(StreamlineTracker):
    """See `StreamlineTracker` for the settings; step 0.1 voxel (0.25 for RK4), angle 60°, cutoff 0.1.

    Points have gradients with respect to coefficients, seeds and step; `adjoint` says where there is none.

    Attributes
    ----------
    integration
        ``"euler"``, or ``"rk4"`` for Runge and Kutta's four-stage step.
    max_growth
        A bound on how much a gradient may grow along a line; see `adjoint.Derivative`.
    report_growth
        Give ``per_point["growth"]``: how much a shift of the seed has grown at each point; see `jacobian`.
    """

    label: ClassVar[str] = "sdstream"
    citation: ClassVar[str] = "tournier2012"
    is_differentiable: ClassVar[bool] = True
    accepts: ClassVar[tuple[type, ...]] = (ShField,)
    STEP_VOXELS: ClassVar[float] = 0.1
    ANGLE: ClassVar[float] = math.radians(60)

    integration: Literal["euler", "rk4"] = "euler"
    max_growth: float | None = None
    report_growth: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.integration not in INTEGRATIONS:
            raise ValueError(f"Steps are one of {', '.join(INTEGRATIONS)}; got {self.integration!r}.")

    @property
    def step_voxels(self) -> float:
        return 0.25 if self.integration == "rk4" else self.STEP_VOXELS

    def method_facts(self) -> dict[str, Any]:
        return {
            "Algorithm": "SD_STREAM",
            "Integration": INTEGRATIONS[self.integration],
            "SeedDirection": "peak uphill from a random direction",
        }

    def engine(self, task: Task) -> Engine:
        assert isinstance(task.orientations, ShField)
        table = ComponentTable.of(task.orientations)
        mask = MaskLookup.of(task.mask, table.values.device)
        derivative = self._derivative(task, table)
        kind = RungeKuttaStepper if self.integration == "rk4" else PeakStepper
        stepper = kind(table, mask, task.step, math.cos(task.largest_turn), self.cutoff)
        # The Euler stepper makes two steps of the search at a time.
        march = SDStreamMarch(stepper, task.limits, self.one_way, MAX_ITERATIONS // 2, derivative=derivative)
        if not (self.compiled and table.values.device.type == "cpu"):
            return march
        # numba takes part of a second to import, so it is, only where it is used.
        from tractode.tracking.kernels.sdstream import loop

        return loop(march, self.integration == "rk4")

    def _derivative(self, task: Task, table: ComponentTable) -> LineDerivative:
        step = task.step if task.learned_step is None else task.learned_step
        return LineDerivative(
            table, step, Derivative(self.integration, self.max_growth, self.compiled), self.report_growth
        )


@dataclass(frozen=True, eq=False)
class SDStreamMarch(March):
    """The torch loop of SD_STREAM, with its derivative."""

    stepper: PeakStepper
    derivative: LineDerivative = field(kw_only=True)

    def points(self, paths: Paths, seeds: Float[Tensor, "s 3"]) -> Float[Tensor, "p 3"]:
        return self.derivative.points(paths, seeds)

    def per_point(self, paths: Paths) -> dict[str, Tensor]:
        return self.derivative.per_point(paths)


@dataclass(frozen=True, eq=False)
class PeakStepper(Stepper):
    """One Euler step along the peak nearest to the direction of travel. States carry the search's present direction."""

    table: ComponentTable
    mask: MaskLookup
    step: float
    cosine: float
    cutoff: float

    def start(
        self, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"], number: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "9 m"], Bool[Tensor, " m"]]:
        """At the peak uphill from the direction; seeds outside mask or data, or below the cutoff, do not start."""
        components, has_data = self.table.sample(to_voxel(self.table.grid, position))
        peaks, amplitudes = find_peaks(components, direction)
        is_good = self.mask.contains(position) & has_data & (amplitudes >= self.cutoff)
        return torch.cat((position, peaks, peaks)), is_good

    def reverse(self, state: Float[Tensor, "9 m"]) -> Float[Tensor, "9 m"]:
        return torch.cat((state[:3], -state[3:]))

    def advance(
        self, state: Float[Tensor, "9 m"], number: Int[Tensor, " m"], taken: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "9 m"], Bool[Tensor, " m"], Bool[Tensor, " m"]]:
        """Two steps of the peak search and, where it is over, a step of the line."""
        position, previous = state[:3], state[3:6]
        components, has_data = self.table.sample(to_voxel(self.table.grid, position))
        first, first_amplitude, is_early = ascend(components, state[6:])
        second, second_amplitude, is_late = ascend(components, first)
        new = torch.where(is_early, first, second)
        amplitude = torch.where(is_early, first_amplitude, second_amplitude)
        is_over = is_early | is_late
        moved = position + self.step * new
        stands = (amplitude >= self.cutoff) & (poly.dot(previous, new) >= self.cosine) & self.mask.contains(moved)
        has_moved = has_data & is_over & stands
        position = torch.where(has_moved, moved, position)
        previous = torch.where(has_moved, new, previous)
        return torch.cat((position, previous, new)), has_moved, has_data & ~is_over


@dataclass(frozen=True, eq=False)
class RungeKuttaStepper(PeakStepper):
    """One four-stage step of Runge and Kutta. The rows of a state are position, direction, and the direction again."""

    def advance(
        self, state: Float[Tensor, "9 m"], number: Int[Tensor, " m"], taken: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "9 m"], Bool[Tensor, " m"], Bool[Tensor, " m"]]:
        """Five peaks; a line moves or ends."""
        position, previous = state[:3], state[3:6]
        half = 0.5 * self.step
        first, has_first = self._peak(position, previous)
        second, has_second = self._peak(position + half * first, previous)
        third, has_third = self._peak(position + half * second, previous)
        fourth, has_fourth = self._peak(position + self.step * third, unit(second + third))
        new = unit(first + 2 * (second + third) + fourth)
        moved = position + self.step * new
        beyond, has_beyond = self._peak(moved, new)
        has_peaks = has_first & has_second & has_third & has_fourth & has_beyond
        has_moved = has_peaks & (poly.dot(first, beyond) >= self.cosine) & self.mask.contains(moved)
        position = torch.where(has_moved, moved, position)
        direction = torch.where(has_moved, new, previous)
        return torch.cat((position, direction, direction)), has_moved, torch.zeros_like(has_moved)

    def _peak(
        self, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"]
    ) -> tuple[Float[Tensor, "3 m"], Bool[Tensor, " m"]]:
        components, has_data = self.table.sample(to_voxel(self.table.grid, position))
        peak, amplitude = find_peaks(components, direction)
        return peak, has_data & (amplitude >= self.cutoff)


def unit(vectors: Float[Tensor, "3 m"]) -> Float[Tensor, "3 m"]:
    """Directions made of length 1."""
    return vectors / poly.dot(vectors, vectors).sqrt()
