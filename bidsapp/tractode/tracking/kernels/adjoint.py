"""The discrete adjoint of SD_STREAM's march, one line after another: `tracking.adjoint` for one point.

Lines are shared out to a fixed number of groups, each with a table of gradients of its own; the tables are added in the
groups' order, so the sums do not depend on the number of threads.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops.compile import inner, kernel
from tractode.tracking.kernels.polynomial import contract, spread, workspace
from tractode.tracking.kernels.sdstream import ascend
from tractode.tracking.kernels.table import field_arrays, interpolate, lower_corner, to_voxel
from tractode.tracking.march import Paths
from tractode.tracking.sampling import ComponentTable

GROUPS = 8
LINES_OF_A_GROUP = 32  # at least: a group costs a table
WEIGHTS, FRACTIONS = (1.0, 2.0, 2.0, 1.0), (0.5, 0.5, 1.0, 0.0)  # of RK4's peaks; how far each leads to the next place


def pull_back(
    table: ComponentTable, paths: Paths, step: float, grad: Float[Tensor, "p 3"], is_rk4: bool, max_growth: float | None
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "s 3"], Float[Tensor, ""]]:
    """Gradients of the table, the seeds and the step, given those of the points."""
    field = field_arrays(table)
    n = len(paths.seed)
    lines = (paths.points, paths.directions, grad, paths.offsets, paths.first_steps, paths.second_steps)
    arrays = tuple(part.detach().contiguous().numpy() for part in lines)
    grad_seeds, grad_step = np.zeros((n, 3), arrays[0].dtype), np.zeros(n)
    bound = math.inf if max_growth is None else float(max_growth)
    total = np.zeros_like(field.values)

    def group(part: range) -> tuple[np.ndarray, np.ndarray]:
        # Zeros that nobody touches cost no memory: the table's rows are those the lines pass by.
        sums, is_touched = np.zeros_like(field.values), np.zeros(len(field.values), np.bool_)
        pull_lines(field, *arrays, part.start, part.stop, step, is_rk4, bound, sums, is_touched, grad_seeds, grad_step)
        return sums, is_touched

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for sums, is_touched in pool.map(group, _groups(n)):
            add_rows(total, sums, is_touched)
    values = torch.from_numpy(total)[:, _places(field.starts)]
    # One order of the sum, whatever the number of threads.
    step_total = torch.tensor(float(grad_step.cumsum()[-1]) if n else 0.0, dtype=grad.dtype)
    return values, torch.from_numpy(grad_seeds), step_total


def _groups(n: int) -> list[range]:
    """Lines in at most `GROUPS` runs, whose bounds depend on the number of lines only."""
    size = max(LINES_OF_A_GROUP, -(-n // GROUPS))
    return [range(start, min(n, start + size)) for start in range(0, n, size)]


def _places(starts: tuple[int, ...]) -> list[int]:
    """The column of each component, in the components' order."""
    return [starts[s - c] + c for s in range(len(starts)) for c in range(s + 1)]


@kernel
def add_rows(total, sums, is_touched):
    for row in range(len(is_touched)):
        if is_touched[row]:
            for n in range(total.shape[1]):
                total[row, n] += sums[row, n]


@kernel
def pull_lines(
    field,
    points,
    directions,
    grad,
    offsets,
    first_steps,
    second_steps,
    begin,
    end,
    step,
    is_rk4,
    bound,
    sums,
    is_touched,
    grad_seeds,
    grad_step,
):
    """Both halves of the lines ``begin`` … ``end − 1``, each from its end to the seed; adds to the last four arrays."""
    kind = field.values.dtype
    # Powers of their own: a contraction needs zeros where the pullback has its highest ones.
    powers = np.zeros((3, len(field.starts)), kind)
    scratch = workspace(field), powers, np.zeros(field.values.shape[1], kind), np.zeros(8, np.int64)
    places, peaks = np.zeros((4, 3)), np.zeros((4, 3))
    for line in range(begin, end):
        at_seed = offsets[line] + first_steps[line]
        for axis in range(3):
            grad_seeds[line, axis] = grad[at_seed, axis]
        for half in range(2):
            steps, sign = (second_steps[line], 1) if half else (first_steps[line], -1)
            ax = ay = az = entered = 0.0
            for t in range(steps, 0, -1):
                here = at_seed + sign * t
                gx, gy, gz = float(grad[here, 0]), float(grad[here, 1]), float(grad[here, 2])
                ax, ay, az = ax + gx, ay + gy, az + gz
                dx, dy, dz = float(directions[here, 0]), float(directions[here, 1]), float(directions[here, 2])
                for axis in range(3):
                    places[0, axis], peaks[0, axis] = points[here - sign, axis], directions[here, axis]
                length = find_stages(field, scratch, places, peaks, step) if is_rk4 else 1.0
                ex, ey, ez, of_step = pull_step(
                    field, scratch, places, peaks, length, dx, dy, dz, ax, ay, az, step, is_rk4, sums, is_touched
                )
                grad_step[line] += of_step
                ax, ay, az = ax + ex, ay + ey, az + ez
                if bound < math.inf:
                    entered += math.sqrt(gx * gx + gy * gy + gz * gz)
                    size = math.sqrt(ax * ax + ay * ay + az * az)
                    if size > bound * entered:
                        held = bound * entered / size
                        ax, ay, az = ax * held, ay * held, az * held
            grad_seeds[line, 0] += ax
            grad_seeds[line, 1] += ay
            grad_seeds[line, 2] += az


@inner
def find_stages(field, scratch, places, peaks, step):
    """The four places of a fourth-order step from ``places[0]`` and their peaks, sought from ``peaks[0]``; |k₁ + 2k₂ + …|."""
    columns, grid, divided = scratch[0]
    kind = field.values.dtype.type
    dx, dy, dz = kind(peaks[0, 0]), kind(peaks[0, 1]), kind(peaks[0, 2])
    mx = my = mz = 0.0
    for stage in range(4):
        if stage:
            for axis in range(3):
                places[stage, axis] = places[0, axis] + FRACTIONS[stage - 1] * step * peaks[stage - 1, axis]
        interpolate(field, places[stage, 0], places[stage, 1], places[stage, 2], columns)
        spread(field.starts, columns, grid)
        px, py, pz, _ = ascend(field.starts, grid, divided, dx, dy, dz)
        peaks[stage, 0], peaks[stage, 1], peaks[stage, 2] = px, py, pz
        mx, my, mz = mx + WEIGHTS[stage] * px, my + WEIGHTS[stage] * py, mz + WEIGHTS[stage] * pz
    return math.sqrt(mx * mx + my * my + mz * mz)


@inner
def pull_step(field, scratch, places, peaks, length, dx, dy, dz, ax, ay, az, step, is_rk4, sums, is_touched):
    """Through one step along (dx, dy, dz): what it adds to the gradient of the position, and to that of the step.

    ``a`` is the gradient at the place the step led to.
    """
    along = ax * dx + ay * dy + az * dz
    of_step = along
    mx, my, mz = step * ax, step * ay, step * az
    if is_rk4:
        scale = step / length
        mx, my, mz = scale * (ax - along * dx), scale * (ay - along * dy), scale * (az - along * dz)
    ex = ey = ez = tx = ty = tz = 0.0
    for stage in range(3 if is_rk4 else 0, -1, -1):
        weight, fraction = 1.0, 0.0
        if is_rk4:
            weight, fraction = WEIGHTS[stage], FRACTIONS[stage]
        x, y, z = peaks[stage, 0], peaks[stage, 1], peaks[stage, 2]
        of_step += fraction * (ex * x + ey * y + ez * z)
        gx, gy, gz = (
            weight * mx + fraction * step * ex,
            weight * my + fraction * step * ey,
            weight * mz + fraction * step * ez,
        )
        ex, ey, ez = pull_peak(
            field, scratch, places[stage, 0], places[stage, 1], places[stage, 2], x, y, z, gx, gy, gz, sums, is_touched
        )
        tx, ty, tz = tx + ex, ty + ey, tz + ez
    return tx, ty, tz, of_step


@inner
def pull_peak(field, scratch, x, y, z, dx, dy, dz, gx, gy, gz, sums, is_touched):
    """Through the peak (dx, dy, dz) at a point: adds to the table's gradient; the gradient with respect to the point.

    ``g`` is the gradient with respect to the peak.
    """
    (columns, grid, divided), powers, pulled, rows = scratch
    values = field.values
    kind = values.dtype.type
    u, v, w, inside = corners(field, x, y, z, rows)
    r0, r1, r2, r3, r4, r5, r6, r7 = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    w0, w1 = kind((1 - u) * (1 - v) * (1 - w)), kind((1 - u) * (1 - v) * w)
    w2, w3 = kind((1 - u) * v * (1 - w)), kind((1 - u) * v * w)
    w4, w5 = kind(u * (1 - v) * (1 - w)), kind(u * (1 - v) * w)
    w6, w7 = kind(u * v * (1 - w)), kind(u * v * w)
    for n in range(values.shape[1]):
        near = w0 * values[r0, n] + w1 * values[r1, n] + w2 * values[r2, n] + w3 * values[r3, n]
        far = w4 * values[r4, n] + w5 * values[r5, n] + w6 * values[r6, n] + w7 * values[r7, n]
        columns[n] = near + far
    spread(field.starts, columns, grid)
    bxx, bxy, bxz, byy, byz, bzz = contract(field.starts, grid, divided, kind(dx), kind(dy), kind(dz))
    sx, sy, sz = surface_solve(bxx, bxy, bxz, byy, byz, bzz, dx, dy, dz, gx, gy, gz, len(field.starts) - 1)
    pull_columns(field.starts, powers, pulled, dx, dy, dz, -sx, -sy, -sz)
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = kind(0)
    for n in range(values.shape[1]):
        p = pulled[n]
        a0 += values[r0, n] * p
        a1 += values[r1, n] * p
        a2 += values[r2, n] * p
        a3 += values[r3, n] * p
        a4 += values[r4, n] * p
        a5 += values[r5, n] * p
        a6 += values[r6, n] * p
        a7 += values[r7, n] * p
    add_row(sums, is_touched, r0, w0, pulled)
    add_row(sums, is_touched, r1, w1, pulled)
    add_row(sums, is_touched, r2, w2, pulled)
    add_row(sums, is_touched, r3, w3, pulled)
    add_row(sums, is_touched, r4, w4, pulled)
    add_row(sums, is_touched, r5, w5, pulled)
    add_row(sums, is_touched, r6, w6, pulled)
    add_row(sums, is_touched, r7, w7, pulled)
    si = (1 - v) * ((1 - w) * (a4 - a0) + w * (a5 - a1)) + v * ((1 - w) * (a6 - a2) + w * (a7 - a3))
    sj = (1 - u) * ((1 - w) * (a2 - a0) + w * (a3 - a1)) + u * ((1 - w) * (a6 - a4) + w * (a7 - a5))
    sk = (1 - u) * ((1 - v) * (a1 - a0) + v * (a3 - a2)) + u * ((1 - v) * (a5 - a4) + v * (a7 - a6))
    si, sj, sk = si * inside[0], sj * inside[1], sk * inside[2]
    m = field.inverse
    return (
        m[0, 0] * si + m[1, 0] * sj + m[2, 0] * sk,
        m[0, 1] * si + m[1, 1] * sj + m[2, 1] * sk,
        m[0, 2] * si + m[1, 2] * sj + m[2, 2] * sk,
    )


@inner
def corners(field, x, y, z, rows):
    """Rows of the eight corners, offsets within the cell, and 0 for each axis along which the value is constant."""
    i, j, k = to_voxel(field.inverse, x, y, z)
    ni, nj, nk = field.rows.shape[0] - 1, field.rows.shape[1] - 1, field.rows.shape[2] - 1
    i0, u = lower_corner(i, ni)
    j0, v = lower_corner(j, nj)
    k0, w = lower_corner(k, nk)
    for a in range(2):
        for b in range(2):
            for c in range(2):
                rows[4 * a + 2 * b + c] = field.rows[i0 + a, j0 + b, k0 + c]
    inside = (
        1.0 if i >= 0 and i < ni - 1 else 0.0,
        1.0 if j >= 0 and j < nj - 1 else 0.0,
        1.0 if k >= 0 and k < nk - 1 else 0.0,
    )
    return u, v, w, inside


@inner
def surface_solve(bxx, bxy, bxz, byy, byz, bzz, x, y, z, gx, gy, gz, order):
    """``K⁻¹ P g`` in the tangent plane of (x, y, z), with K = (L−1) B − f I: `peaks.surface_solve`, in double."""
    bx, by, bz = bxx * x + bxy * y + bxz * z, bxy * x + byy * y + byz * z, bxz * x + byz * y + bzz * z
    value = x * bx + y * by + z * bz
    s = order - 1.0
    xx, xy, xz, yy, yz, zz = s * bxx - value, s * bxy, s * bxz, s * byy - value, s * byz, s * bzz - value
    determinant = (
        x * x * (yy * zz - yz * yz)
        + y * y * (xx * zz - xz * xz)
        + z * z * (xx * yy - xy * xy)
        + 2 * (x * y * (xz * yz - xy * zz) + x * z * (xy * yz - xz * yy) + y * z * (xy * xz - xx * yz))
    )
    trace = xx + yy + zz - (order - 2) * value
    along = gx * x + gy * y + gz * z
    tx, ty, tz = gx - along * x, gy - along * y, gz - along * z
    kx, ky, kz = xx * tx + xy * ty + xz * tz, xy * tx + yy * ty + yz * tz, xz * tx + yz * ty + zz * tz
    along = kx * x + ky * y + kz * z
    kx, ky, kz = kx - along * x, ky - along * y, kz - along * z
    inverse = 1.0 / determinant
    return (trace * tx - kx) * inverse, (trace * ty - ky) * inverse, (trace * tz - kz) * inverse


@inner
def pull_columns(starts, powers, pulled, x, y, z, ux, uy, uz):
    """``∂(uᵀ B d)/∂components`` in the order of the columns.

    With divided powers X, Y, Z the value is ``L(L−1) Σ component · X_a Y_b Z_c`` and ``uᵀBd`` is its derivative along u
    over L.
    """
    order = len(starts) - 1
    p = q = r = 1.0
    for e in range(order + 1):
        powers[0, e], powers[1, e], powers[2, e] = p, q, r
        p, q, r = p * x / (e + 1), q * y / (e + 1), r * z / (e + 1)
    kind = powers.dtype.type
    fx, fy, fz = kind((order - 1) * ux), kind((order - 1) * uy), kind((order - 1) * uz)
    for b in range(order + 1):
        yb, before = powers[1, b], powers[1, b - 1] if b else kind(0)
        for c in range(order + 1 - b):
            a = order - b - c
            down_x = powers[0, a - 1] if a else kind(0)
            down_z = powers[2, c - 1] if c else kind(0)
            rest = yb * (fx * down_x * powers[2, c] + fz * powers[0, a] * down_z)
            pulled[starts[b] + c] = rest + fy * before * powers[0, a] * powers[2, c]


@inner
def add_row(sums, is_touched, row, weight, pulled):
    is_touched[row] = True
    for n in range(sums.shape[1]):
        sums[row, n] += weight * pulled[n]
