"""Gradients of streamline points for methods whose direction is a function of the eight voxels around a point.

``x[t+1] = x[t] + h·d(values at the corners, weights(x[t]), reference)`` is differentiated step by step backwards: from the
stored positions and directions each step is computed once more and differentiated by autograd, which then forgets it.
What is kept is one position and one direction a point, whatever the method computes in between. The number of steps,
the stopping and whatever the method chooses by comparing (a peak, a sign) are piecewise constant and have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.tracking.adjoint import pull_back_march
from tractode.tracking.march import Paths
from tractode.tracking.sampling import ComponentTable, to_voxel

# (values at the corners "m 8 n", weights "m 8", reference "3 m") → unit directions "3 m"
CornerDirection = Callable[[Tensor, Tensor, Tensor], Tensor]
References = Callable[[Paths], Paths]


@dataclass(frozen=True, eq=False)
class CornerDerivative:
    """How an engine's steps were made: the table, the step (mm; a tensor where its gradient is asked for), the direction.

    ``references`` gives the lines with, at every point, what the step to it was compared with instead of its direction.
    """

    table: ComponentTable
    step: float | Float[Tensor, ""]
    direction: CornerDirection
    references: References | None = None

    def points(self, paths: Paths, seeds: Float[Tensor, "s 3"]) -> Float[Tensor, "p 3"]:
        """``paths.points`` as a function of the table's values, the batch's seeds and the step."""
        h = torch.as_tensor(self.step, dtype=paths.points.dtype, device=paths.points.device)
        compared = (self.references or with_references)(paths)
        return _CornerPoints.apply(self.table.values, seeds[paths.seed], h, compared, self.table, self.direction)


class _CornerPoints(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        values: Tensor,
        seeds: Tensor,
        step: Tensor,
        paths: Paths,
        table: ComponentTable,
        direction: CornerDirection,
    ) -> Tensor:
        points = paths.points.detach()
        ctx.save_for_backward(values, step, points, paths.directions)
        ctx.ends = (paths.offsets, paths.first_steps, paths.second_steps, paths.seed)
        ctx.grid, ctx.rows, ctx.direction = table.grid, table.rows, direction
        return points

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, step, points, directions = ctx.saved_tensors
        table = ComponentTable(ctx.grid, values.detach(), ctx.rows)
        grad_values = torch.zeros_like(table.values)

        def through_step(position: Tensor, reference: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
            return _through(table, ctx.direction, position, reference, carried, float(step), grad_values)

        paths = Paths(points, directions, *ctx.ends)
        grad_seeds, grad_step = pull_back_march(paths, grad, through_step)
        return grad_values, grad_seeds, grad_step, None, None, None


def with_references(paths: Paths) -> Paths:
    """The same lines with, at every point, the direction of the step before: what the step to it was compared with.

    The first step of each half keeps its own direction: the seed stores none, and that is what it led to.
    """
    n_points = len(paths.points)
    counts = paths.offsets.diff()
    at_seed = torch.repeat_interleave(paths.offsets[:-1] + paths.first_steps, counts)
    index = torch.arange(n_points, device=at_seed.device)
    before = torch.where(index < at_seed - 1, index + 1, torch.where(index > at_seed + 1, index - 1, index))
    return replace(paths, directions=paths.directions[before])


def _through(
    table: ComponentTable,
    direction: CornerDirection,
    position: Float[Tensor, "3 m"],
    reference: Float[Tensor, "3 m"],
    carried: Float[Tensor, "3 m"],
    step: float,
    grad_values: Float[Tensor, "r n"],
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"]]:
    """Through one step: adds to the values' gradient in place, and returns the position's and the step's."""
    with torch.enable_grad():
        position = position.detach().requires_grad_()
        rows, weights, _ = table.corners(to_voxel(table.grid, position))
        corners = table.values[rows.long()].requires_grad_()
        found = direction(corners, weights, reference)
        pulled, earlier = torch.autograd.grad(found, (corners, position), step * carried)
    grad_values.index_add_(0, rows.reshape(-1).long(), pulled.reshape(-1, pulled.shape[-1]))
    return earlier, (carried * found.detach()).sum(0)
