"""SD_STREAM: deterministic streamlines along the peaks of an orientation distribution, batched and differentiable.

Tournier, Calamante & Connelly, *MRtrix: diffusion tractography in crossing fiber regions*, Int. J. Imaging Syst.
Technol. 2012, doi:10.1002/ima.22005; rules and defaults as MRtrix3's ``tckgen -algorithm SD_STREAM`` (default Euler
steps, Legendre functions not tabulated). Departures: the peak search ends with Newton's steps (see `peaks`), and random
numbers are drawn for all seeds before tracking, so that the lines do not depend on ``batch_size``.

At each point the coefficients are interpolated, the peak nearest to the previous direction is found, and the point
moves one step along it. A line ends without a new point where there is no data, where the peak is below ``cutoff``,
where the new direction turns by more than ``angle``, or where the next point would leave the mask; it ends with a new
point where it has as many as ``max_length`` allows. Both directions are followed from the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import ShField
from tractode.ops import sh_polynomial as poly
from tractode.tracking.adjoint import Derivative
from tractode.tracking.jacobian import LineDerivative
from tractode.tracking.march import March, Paths, Stepper
from tractode.tracking.method import StreamlineTracker, Task
from tractode.tracking.peaks import ascend, find_peaks
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.stopping import MaskLookup


@dataclass(frozen=True)
class SDStream(StreamlineTracker):
    """See `StreamlineTracker` for the settings; step 0.1 voxel, angle 60°, cutoff 0.1.

    Points have gradients with respect to coefficients, seeds and step; `adjoint` says where there is none.

    Attributes
    ----------
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

    max_growth: float | None = None
    report_growth: bool = False

    def method_facts(self) -> dict[str, Any]:
        return {
            "Algorithm": "SD_STREAM",
            "Integration": "Euler",
            "SeedDirection": "peak uphill from a random direction",
        }

    def engine(self, task: Task) -> SDStreamMarch:
        assert isinstance(task.orientations, ShField)
        table = ComponentTable.of(task.orientations)
        mask = MaskLookup.of(task.mask, table.values.device)
        stepper = PeakStepper(table, mask, task.step, math.cos(task.largest_turn), self.cutoff)
        return SDStreamMarch(stepper, task.limits, self.one_way, derivative=self._derivative(task, table))

    def _derivative(self, task: Task, table: ComponentTable) -> LineDerivative:
        step = task.step if task.learned_step is None else task.learned_step
        return LineDerivative(table, step, Derivative("euler", self.max_growth, self.compiled), self.report_growth)


@dataclass(frozen=True, eq=False)
class SDStreamMarch(March):
    """The torch loop of SD_STREAM, with its derivative."""

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
