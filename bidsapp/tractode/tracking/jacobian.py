"""How far a small shift of a seed carries its streamline: the growth of ``∂x[t]/∂x[0]`` along the line.

With ``D = ∂d/∂x`` of the direction field (implicit derivative of the peak, see `peaks`; trilinear interpolation
differentiated in its cell), an Euler step multiplies the Jacobian by ``I + h D``, an RK4 step by its four stages. The
growth is its largest singular value, 1 at the seed: the factor by which a small error at the seed, or in one step near
it, has grown at the point. Its logarithm over arc length is the finite-time Lyapunov exponent of the flow (Haller,
*Distinguished material surfaces and coherent structures in three-dimensional fluid flows*, Physica D 2001,
doi:10.1016/S0167-2789(00)00199-8). Departure: lines have steps of one length, so time is arc length, and the field has no
sign: each half is a flow of its own.

Where the line turns to another peak or crosses a cell's face the Jacobian is that of
one side; which peak is taken, and where lines end, is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tractode.ops import sh_polynomial as poly
from tractode.ops.peaks import surface_solve
from tractode.tracking.adjoint import EULER, TILE, Derivative, line_points, rk4_stages
from tractode.tracking.march import Paths
from tractode.tracking.sampling import ComponentTable, to_voxel


@dataclass(frozen=True, eq=False)
class LineDerivative:
    """What an engine that follows peaks knows about its lines' derivative, whichever loop made them.

    ``step`` (mm) is a tensor where its gradient is asked for.
    """

    table: ComponentTable
    step: float | Float[Tensor, ""]
    law: Derivative
    report_growth: bool = False

    def points(self, paths: Paths, seeds: Float[Tensor, "s 3"]) -> Float[Tensor, "p 3"]:
        """``paths.points`` as a function of the table's values, of the batch's seeds and of the step."""
        return line_points(self.table, paths, seeds[paths.seed], self.step, self.law)

    def per_point(self, paths: Paths) -> dict[str, Tensor]:
        """``growth``, where it was asked for."""
        return (
            {"growth": growth(self.table, paths, float(torch.as_tensor(self.step).detach()), self.law)}
            if self.report_growth
            else {}
        )


def growth(table: ComponentTable, paths: Paths, step: float, law: Derivative | None = None) -> Float[Tensor, " p"]:
    """The largest singular value of ``∂x[t]/∂x[0]`` at every point of finished lines; each half starts at the seed.

    No gradient; in the dtype of the points. Infinite where a peak is degenerate to the last digit.
    """
    law = law or Derivative()
    with torch.no_grad():
        out = paths.points.new_ones(len(paths.points))
        at_seed = paths.offsets[:-1] + paths.first_steps
        origin = torch.cat((at_seed, at_seed))
        sign = torch.cat((-torch.ones_like(at_seed), torch.ones_like(at_seed)))
        steps = torch.cat((paths.first_steps, paths.second_steps))
        jacobian = torch.eye(3).to(paths.points)[:, :, None].repeat(1, 1, len(steps))
        for t in range(1, int(steps.max()) + 1 if len(steps) else 0):
            for line in (steps >= t).nonzero().ravel().split(TILE):
                here = origin[line] + t * sign[line]
                before = paths.points[here - sign[line]].mT
                moved = advance(table, before, paths.directions[here].mT, jacobian[:, :, line], step, law)
                jacobian[:, :, line] = moved
                out[here] = spectral_norm(moved)
    return out


def advance(
    table: ComponentTable,
    position: Float[Tensor, "3 m"],
    direction: Float[Tensor, "3 m"],
    jacobian: Float[Tensor, "3 k m"],
    step: float,
    law: Derivative,
) -> Float[Tensor, "3 k m"]:
    """Tangent vectors (columns k) carried through one step of the march from ``position`` along ``direction``."""
    if law.integration == EULER:
        return jacobian + step * _carried(direction_jacobian(table, position, direction), jacobian)
    places, peaks = rk4_stages(table, position, direction, step)
    tangent, tangents = jacobian, []
    for place, peak, fraction in zip(places, peaks, (0.5, 0.5, 1.0, 0.0), strict=True):
        tangents.append(_carried(direction_jacobian(table, place, peak), tangent))
        tangent = jacobian + fraction * step * tangents[-1]
    total = tangents[0] + 2 * (tangents[1] + tangents[2]) + tangents[3]
    length = (peaks[0] + 2 * (peaks[1] + peaks[2]) + peaks[3]).norm(dim=0)
    along = (direction[:, None] * total).sum(0)
    return jacobian + step * (total - direction[:, None] * along) / length


def _carried(matrices: Float[Tensor, "3 3 m"], vectors: Float[Tensor, "3 k m"]) -> Float[Tensor, "3 k m"]:
    """Products column by column, each summed in one order."""
    return matrices[:, 0, None] * vectors[0] + matrices[:, 1, None] * vectors[1] + matrices[:, 2, None] * vectors[2]


def direction_jacobian(
    table: ComponentTable, position: Float[Tensor, "3 m"], direction: Float[Tensor, "3 m"]
) -> Float[Tensor, "3 3 m"]:
    """``∂d/∂x`` in 1/mm of the peak ``direction`` at ``position``: row a is component a, column b is axis b."""
    vox = to_voxel(table.grid, position)
    components, _ = table.sample(vox)
    order = poly.order_of(len(components))
    b = poly.contraction(components, direction)
    value = poly.dot(direction, poly.apply(b, direction))
    along_axes = []
    for slope in slopes(table, vox):
        bd = poly.apply(poly.contraction(slope, direction), direction)
        tangent = bd - poly.dot(bd, direction) * direction
        along_axes.append(-surface_solve(b, direction, value, order, tangent)[0])
    inverse = table.grid.inverse_affine[:3, :3].tolist()
    i, j, k = along_axes
    return torch.stack([i * inverse[0][a] + j * inverse[1][a] + k * inverse[2][a] for a in range(3)], dim=1)


def slopes(table: ComponentTable, vox: Float[Tensor, "3 m"]) -> list[Float[Tensor, "n m"]]:
    """The components' derivatives along the three voxel axes, per voxel; 0 where the value is that of the outermost centre."""
    rows, _, _ = table.corners(vox)
    upper = torch.tensor(table.grid.shape, device=vox.device)[:, None] - 1
    is_clamped = (vox < 0) | (vox >= upper)
    offset = torch.where((vox < 0) | (vox > upper), 0.0, vox - vox.floor())
    weights = [(1 - o, o) for o in offset]
    found = []
    for axis in range(3):
        ends = (-torch.ones_like(vox[0]), torch.ones_like(vox[0]))
        x, y, z = (ends if other == axis else weights[other] for other in range(3))
        cube = torch.stack([a * b * c for a in x for b in y for c in z], dim=1)
        cube = torch.where(is_clamped[axis, :, None], 0.0, cube)
        found.append(functional.embedding_bag(rows, table.values, per_sample_weights=cube, mode="sum").mT.contiguous())
    return found


def spectral_norm(matrices: Float[Tensor, "3 3 m"]) -> Float[Tensor, " m"]:
    """The largest singular value, from the largest root of the characteristic polynomial of ``MᵀM`` (Smith 1961)."""
    scale = matrices.abs().amax((0, 1)).clamp_min(torch.finfo(matrices.dtype).tiny)
    unit = (matrices / scale).double()
    a, b, c = unit.unbind(1)
    rows = [poly.dot(*pair) for pair in ((a, a), (a, b), (a, c), (b, b), (b, c), (c, c))]
    mean = (rows[0] + rows[3] + rows[5]) / 3
    xx, yy, zz = rows[0] - mean, rows[3] - mean, rows[5] - mean
    off = rows[1].square() + rows[2].square() + rows[4].square()
    radius = ((xx.square() + yy.square() + zz.square() + 2 * off) / 6).sqrt()
    determinant = (
        xx * (yy * zz - rows[4].square())
        - rows[1] * (rows[1] * zz - rows[4] * rows[2])
        + rows[2] * (rows[1] * rows[4] - yy * rows[2])
    )
    cosine = (determinant / (2 * radius.pow(3)).clamp_min(1e-300)).clamp(-1, 1)
    largest = mean + 2 * radius * (cosine.acos() / 3).cos()
    return (largest.clamp_min(0).sqrt() * scale).to(matrices.dtype)
