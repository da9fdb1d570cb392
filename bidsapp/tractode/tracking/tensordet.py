"""TensorDet: deterministic streamlines along the principal axis of the diffusion tensor, batched and differentiable.

Basser, Pajevic, Pierpaoli, Duda & Aldroubi, *In vivo fiber tractography using DT-MRI data*, MRM 2000,
doi:10.1002/1522-2594(200010)44:4<625::AID-MRM17>3.0.CO;2-O; rules and defaults of MRtrix3's ``tckgen -algorithm
Tensor_Det`` (Euler steps of 0.1 voxel, 60° a step, FA at least 0.1). Departures: the six components of fitted tensors are
interpolated trilinearly (the paper: approximated by B-splines; MRtrix3: the signal is interpolated and a tensor fitted
to it at each step, which weighs voxels by their signal); the seed's direction only chooses which half comes first.

At each point the line takes the tensor's first eigenvector on the side of its last direction. It ends without a new
point where there is no tensor, where the FA is below ``cutoff``, where the direction turns by more than ``angle``, or
where the next point would leave the mask.

The lines have derivatives with respect to the tensors and the seeds wherever the first eigenvalue is simple along them
(`tractode.ops.principal_axis`); where two eigenvalues meet the direction itself is not continuous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import TensorField
from tractode.ops.principal_axis import principal_axis
from tractode.ops.sh_polynomial import dot
from tractode.tracking.corner_adjoint import CornerDerivative
from tractode.tracking.march import March, Paths, Stepper
from tractode.tracking.method import StreamlineTracker, Task
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.stopping import MaskLookup


@dataclass(frozen=True)
class TensorDet(StreamlineTracker):
    """See `StreamlineTracker` for the settings; step 0.1 voxel, angle 60°, cutoff FA 0.1."""

    label: ClassVar[str] = "tensordet"
    citation: ClassVar[str] = "basser2000"
    is_differentiable: ClassVar[bool] = True
    accepts: ClassVar[tuple[type, ...]] = (TensorField,)
    STEP_VOXELS: ClassVar[float] = 0.1
    ANGLE: ClassVar[float] = math.radians(60)

    def method_facts(self) -> dict[str, Any]:
        return {"Algorithm": "Tensor_Det", "Integration": "Euler", "SeedDirection": "principal axis of the tensor"}

    def engine(self, task: Task) -> TensorMarch:
        assert isinstance(task.orientations, TensorField)
        table = ComponentTable.of_values(task.orientations.grid, task.orientations.components)
        mask = MaskLookup.of(task.mask, table.values.device)
        stepper = TensorStepper(table, mask, task.step, math.cos(task.largest_turn), self.cutoff)
        step = task.step if task.learned_step is None else task.learned_step
        derivative = CornerDerivative(table, step, axis_at)
        return TensorMarch(stepper, task.limits, self.one_way, derivative=derivative)


@dataclass(frozen=True, eq=False)
class TensorMarch(March):
    """The torch loop of tensor tracking, with its derivative."""

    derivative: CornerDerivative = field(kw_only=True)

    def points(self, paths: Paths, seeds: Float[Tensor, "s 3"]) -> Float[Tensor, "p 3"]:
        return self.derivative.points(paths, seeds)


def axis_at(
    corners: Float[Tensor, "m 8 6"], weights: Float[Tensor, "m 8"], reference: Float[Tensor, "3 m"]
) -> Float[Tensor, "3 m"]:
    """The principal axis of the interpolated tensor, differentiable in values and weights."""
    return principal_axis((corners * weights[..., None]).sum(1).mT, reference)[0]


@dataclass(frozen=True, eq=False)
class TensorStepper(Stepper):
    """One Euler step along the principal axis."""

    table: ComponentTable
    mask: MaskLookup
    step: float
    cosine: float
    cutoff: float

    def start(
        self, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"], number: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "6 m"], Bool[Tensor, " m"]]:
        """Along the principal axis; seeds outside mask or data, or of a lower FA than the cutoff, do not start."""
        components, has_data = self.table.sample(to_voxel(self.table.grid, position))
        axis, anisotropy = principal_axis(components, direction)
        is_good = self.mask.contains(position) & has_data & (anisotropy >= self.cutoff)
        return torch.cat((position, axis)), is_good

    def reverse(self, state: Float[Tensor, "6 m"]) -> Float[Tensor, "6 m"]:
        return torch.cat((state[:3], -state[3:]))

    def advance(
        self, state: Float[Tensor, "6 m"], number: Int[Tensor, " m"], taken: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "6 m"], Bool[Tensor, " m"], Bool[Tensor, " m"]]:
        position, previous = state[:3], state[3:6]
        components, has_data = self.table.sample(to_voxel(self.table.grid, position))
        new, anisotropy = principal_axis(components, previous)
        moved = position + self.step * new
        stands = (anisotropy >= self.cutoff) & (dot(previous, new) >= self.cosine) & self.mask.contains(moved)
        has_moved = has_data & stands
        return torch.where(has_moved, torch.cat((moved, new)), state), has_moved, torch.zeros_like(has_moved)
