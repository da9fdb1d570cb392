"""Gradients of streamline points with respect to the field, the seeds and the step: the discrete adjoint of the march.

``x' = x + h·d(x)`` is differentiated step by step backwards. For Euler's steps d is the peak at x, for RK4's the unit
mean of four peaks; a peak is differentiated implicitly (see `peaks`), so what is stored of a step is its position and
direction, and interpolation and peaks are recomputed. Departure from automatic differentiation through the search (Yoon
et al., *Fully differentiable dMRI streamline propagation in PyTorch*, 2025, arXiv:2511.14807): nothing of the
interpolation or of the search is kept.

Where there is no derivative: how many steps a line has, where it stops, whether it is kept, and which of several peaks
it follows are piecewise constant in field, seeds and step, and jump where a line ends sooner, is refused, or turns to
another peak. Between jumps the gradient is exact; across one it says nothing. In space it is that of the cell of eight
voxel centres around each point: trilinear interpolation has a kink at the cell's faces. The direction given to a seed
only chooses a peak and has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import sh_polynomial as poly
from tractode.ops.peaks import find_peaks, pad_to_lanes, peak_pullback
from tractode.tracking.march import Paths
from tractode.tracking.sampling import ComponentTable, to_voxel

TILE = 8192  # columns at once: eight corners of 45 components each, some 24 MB in float64
EULER, RK4 = "euler", "rk4"


@dataclass(frozen=True)
class Derivative:
    """How the steps were made, and what to do with a gradient that grows.

    Attributes
    ----------
    integration
        ``"euler"`` or ``"rk4"``.
    max_growth
        ``None``: the exact gradient. Else a bound of at least 1 on how much a gradient may grow on its way back along
        half a line: at every point its norm is held to ``max_growth`` times the sum of the norms that entered behind
        it. Deterministic lines are unstable near crossings, where the exact gradient is right and of no use; a
        bounded one is *not* the derivative of the points.
    compiled
        Use the compiled loop for fields on a CPU.
    """

    integration: str = EULER
    max_growth: float | None = None
    compiled: bool = True

    def __post_init__(self) -> None:
        if self.integration not in (EULER, RK4):
            raise ValueError(f"Steps are {EULER!r} or {RK4!r}; got {self.integration!r}.")
        if self.max_growth is not None and not self.max_growth >= 1:
            raise ValueError(f"A gradient's growth can be held to 1 or more; got max_growth={self.max_growth}.")


@dataclass(frozen=True, eq=False)
class Pulled:
    """Gradients of the table's rows, of the seeds, and of the step (one number)."""

    values: Float[Tensor, "r n"]
    seeds: Float[Tensor, "s 3"]
    step: Float[Tensor, ""]


def line_points(
    table: ComponentTable,
    paths: Paths,
    seeds: Float[Tensor, "s 3"],
    step: float | Float[Tensor, ""],
    law: Derivative | None = None,
) -> Float[Tensor, "p 3"]:
    """``paths.points`` as a function of the table's values, of the lines' seeds and of the step (mm).

    ``seeds`` are those of the lines (``all_seeds[paths.seed]``). The storage of ``paths.points`` is that of the result.
    """
    h = torch.as_tensor(step, dtype=paths.points.dtype, device=paths.points.device)
    return LinePoints.apply(table.values, seeds, h, paths, table, law or Derivative())


class LinePoints(torch.autograd.Function):
    """See `line_points`. Kept for the backward pass: 6 numbers a point."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, values: Tensor, seeds: Tensor, step: Tensor, paths: Paths, table: ComponentTable, law: Derivative
    ) -> Tensor:
        points = paths.points.detach()
        ctx.save_for_backward(values, step, points, paths.directions)
        ctx.ends = (paths.offsets, paths.first_steps, paths.second_steps, paths.seed)
        ctx.grid, ctx.rows, ctx.law = table.grid, table.rows, law
        return points

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, step, points, directions = ctx.saved_tensors
        table = ComponentTable(ctx.grid, values, ctx.rows)
        pulled = pull_back(table, Paths(points, directions, *ctx.ends), float(step), grad, ctx.law)
        return pulled.values, pulled.seeds, pulled.step, None, None, None


def pull_back(
    table: ComponentTable, paths: Paths, step: float, grad: Float[Tensor, "p 3"], law: Derivative | None = None
) -> Pulled:
    """Gradients of the table, the seeds and the step, given those of the points.

    On a CPU sums are taken in one order whatever the number of threads; a GPU adds to the table in no fixed order.
    """
    law = law or Derivative()
    if law.compiled and grad.device.type == "cpu":
        # numba takes part of a second to import, so it is, only where it is used.
        from tractode.tracking.kernels import adjoint as compiled

        return Pulled(*compiled.pull_back(table, paths, step, grad, law.integration == RK4, law.max_growth))
    grad_values = torch.zeros_like(table.values)
    pull = _pull_euler if law.integration == EULER else _pull_rk4

    def through_step(position: Tensor, direction: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        return pull(table, position, direction, carried, step, grad_values)

    seeds, grad_step = pull_back_march(paths, grad, through_step, law.max_growth)
    return Pulled(grad_values, seeds, grad_step)


StepPullback = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def pull_back_march(
    paths: Paths, grad: Float[Tensor, "p 3"], through_step: StepPullback, max_growth: float | None = None
) -> tuple[Float[Tensor, "s 3"], Float[Tensor, ""]]:
    """The seeds' gradient and the step's, for any method whose state is a position.

    ``through_step(position, direction, carried)`` (columns) is given the places steps started from, their directions
    and the gradients at the places they led to; it returns what this adds to the gradient of the position and of
    the step.
    """
    n = len(paths.seed)
    at_seed = paths.offsets[:-1] + paths.first_steps
    origin = torch.cat((at_seed, at_seed))
    sign = torch.cat((-torch.ones_like(at_seed), torch.ones_like(at_seed)))
    steps = torch.cat((paths.first_steps, paths.second_steps))
    adjoint, entered = grad.new_zeros(3, 2 * n), grad.new_zeros(2 * n)
    grad_step = torch.zeros(2 * n, dtype=torch.float64, device=grad.device)
    for t in range(int(steps.max()) if n else 0, 0, -1):
        for line in (steps >= t).nonzero().ravel().split(TILE):
            here = origin[line] + t * sign[line]
            incoming = grad[here].mT
            entered[line] += incoming.norm(dim=0)
            carried = adjoint[:, line] + incoming
            earlier, of_step = through_step(paths.points[here - sign[line]].mT, paths.directions[here].mT, carried)
            adjoint[:, line] = _held(carried + earlier, entered[line], max_growth)
            grad_step[line] += of_step
    seeds = grad[at_seed] + adjoint[:, :n].mT + adjoint[:, n:].mT
    # A cumulative sum has one order; a plain sum's depends on the number of threads.
    total = grad_step.cumsum(0)[-1] if n else grad_step.sum()
    return seeds, total.to(grad)


def _held(adjoint: Float[Tensor, "3 m"], entered: Float[Tensor, " m"], max_growth: float | None) -> Tensor:
    if max_growth is None:
        return adjoint
    size = adjoint.norm(dim=0).clamp_min(torch.finfo(adjoint.dtype).tiny)
    return adjoint * (max_growth * entered / size).clamp_max(1.0)


def _pull_euler(
    table: ComponentTable, position: Tensor, direction: Tensor, carried: Tensor, step: float, grad_values: Tensor
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"]]:
    earlier = _pull_peak(table, position, direction, step * carried, grad_values)
    return earlier, poly.dot(carried, direction)


def _pull_rk4(
    table: ComponentTable, position: Tensor, direction: Tensor, carried: Tensor, step: float, grad_values: Tensor
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"]]:
    """``d = (k₁ + 2k₂ + 2k₃ + k₄) / |…|`` with ``k₂ = d(x + h k₁/2)``, ``k₃ = d(x + h k₂/2)``, ``k₄ = d(x + h k₃)``."""
    places, peaks = rk4_stages(table, position, direction, step)
    k1, k2, k3, k4 = peaks
    length = (k1 + 2 * (k2 + k3) + k4).norm(dim=0)
    grad_mean = step * (carried - poly.dot(carried, direction) * direction) / length
    of_step = poly.dot(carried, direction)
    fourth = _pull_peak(table, places[3], k4, grad_mean, grad_values)
    third = _pull_peak(table, places[2], k3, 2 * grad_mean + step * fourth, grad_values)
    second = _pull_peak(table, places[1], k2, 2 * grad_mean + 0.5 * step * third, grad_values)
    first = _pull_peak(table, places[0], k1, grad_mean + 0.5 * step * second, grad_values)
    of_step = of_step + poly.dot(fourth, k3) + 0.5 * (poly.dot(third, k2) + poly.dot(second, k1))
    return first + second + third + fourth, of_step


def rk4_stages(
    table: ComponentTable, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"], step: float
) -> tuple[list[Tensor], list[Tensor]]:
    """The four places of a step and their peaks, searched for from the step's own direction."""
    m = position.shape[1]
    columns = pad_to_lanes(torch.arange(m, device=position.device))
    x, d = position[:, columns], direction[:, columns]
    places, peaks = [], []
    reached = x
    for fraction in (0.5, 0.5, 1.0, 0.0):
        components, _ = table.sample(to_voxel(table.grid, reached))
        peak, _ = find_peaks(components, d)
        places.append(reached[:, :m])
        peaks.append(peak[:, :m])
        reached = x + fraction * step * peak
    return places, peaks


def _pull_peak(
    table: ComponentTable, position: Tensor, direction: Tensor, grad_direction: Tensor, grad_values: Tensor
) -> Float[Tensor, "3 m"]:
    """Through the peak ``d(c(x))``: adds to the table's gradient in place and returns the position's."""
    vox = to_voxel(table.grid, position)
    components, _ = table.sample(vox)
    pulled = peak_pullback(components, direction, grad_direction)
    rows, weights, grad_vox = table.sample_pullback(vox, pulled)
    spread = weights[:, :, None] * pulled.mT[:, None, :]
    grad_values.index_add_(0, rows.reshape(-1).long(), spread.reshape(-1, spread.shape[-1]))
    inverse = table.grid.inverse_affine[:3, :3].tolist()
    x, y, z = grad_vox
    return torch.stack([inverse[0][a] * x + inverse[1][a] * y + inverse[2][a] * z for a in range(3)])
