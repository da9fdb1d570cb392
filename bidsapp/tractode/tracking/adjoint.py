"""Gradients of streamline points with respect to the field and the seeds, one stored position and direction per step.

``x[t+1] = x[t] + h·d(c(x[t]))`` is differentiated step by step backwards with the implicit derivative of the peak (see
`peaks`): the discrete adjoint of the Euler march. The number of steps, the stopping and the choice of the peak are
piecewise constant and have no gradient. Departure from automatic differentiation through the search (Yoon et al.,
*Fully differentiable dMRI streamline propagation in PyTorch*, 2025, arXiv:2511.14807): nothing of the interpolation or
the search is kept; both are recomputed from the position.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.tracking.march import Paths
from tractode.tracking.peaks import peak_pullback
from tractode.tracking.sampling import ComponentTable, to_voxel


class LinePoints(torch.autograd.Function):
    """The points of finished lines as a function of the component table and the seeds."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, seeds: Tensor, paths: Paths, table: ComponentTable, step: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values)
        ctx.paths, ctx.grid, ctx.rows, ctx.step = paths, table.grid, table.rows, step
        return paths.points.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        (values,) = ctx.saved_tensors
        table = ComponentTable(ctx.grid, values, ctx.rows)
        grad_values, grad_seeds = pull_back(table, ctx.paths, ctx.step, grad)
        return grad_values, grad_seeds, None, None, None


def pull_back(
    table: ComponentTable, paths: Paths, step: float, grad: Float[Tensor, "p 3"]
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "s 3"]]:
    """Gradients of the table and of the seeds, given those of the points."""
    n = len(paths.seed)
    at_seed = paths.offsets[:-1] + paths.first_steps
    origin = torch.cat((at_seed, at_seed))
    sign = torch.cat((-torch.ones_like(at_seed), torch.ones_like(at_seed)))
    steps = torch.cat((paths.first_steps, paths.second_steps))
    grad_values = torch.zeros_like(table.values)
    adjoint = grad.new_zeros(3, 2 * n)
    for t in range(int(steps.max()) if n else 0, 0, -1):
        line = (steps >= t).nonzero().ravel()
        here = origin[line] + t * sign[line]
        before = here - sign[line]
        carried = adjoint[:, line] + grad[here].mT
        earlier = _one_step(table, paths.points[before].mT, paths.directions[here].mT, step * carried, grad_values)
        adjoint[:, line] = carried + earlier
    grad_seeds = grad[at_seed] + adjoint[:, :n].mT + adjoint[:, n:].mT
    return grad_values, grad_seeds


def _one_step(
    table: ComponentTable, position: Tensor, direction: Tensor, grad_direction: Tensor, grad_values: Tensor
) -> Float[Tensor, "3 m"]:
    """Through ``d(c(x))``: adds to the table's gradient in place and returns the position's."""
    vox = to_voxel(table.grid, position)
    components, _ = table.sample(vox)
    pulled = peak_pullback(components, direction, grad_direction)
    rows, weights, grad_vox = table.sample_pullback(vox, pulled)
    spread = weights[:, :, None] * pulled.mT[:, None, :]
    grad_values.index_add_(0, rows.reshape(-1).long(), spread.reshape(-1, spread.shape[-1]))
    inverse = table.grid.inverse_affine[:3, :3].to(grad_vox)
    return inverse.mT @ grad_vox
