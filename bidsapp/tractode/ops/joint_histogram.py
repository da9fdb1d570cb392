"""Joint histograms of an image at moved points and what was known there, with their gradient, point by point.

The cubic Parzen windows are those of P. Thévenaz, M. Unser, IEEE TIP 9:2083 (2000), doi:10.1109/83.887976, whose equations 23–25
are the gradient. Every window touches four bins, so a point adds to 16 of them: loops compiled by numba on the CPU, one after the
other (the same bits with any number of threads), are several times as fast as dense windows of all bins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def joint_histogram(
    matrix: Float[Tensor, "4 4"],
    volume: Float[Tensor, "2 i j k"],
    points: Float[Tensor, "p 3"],
    known: Float[Tensor, " p"],
    weight: Float[Tensor, " p"],
    bins: int,
) -> tuple[Float[Tensor, "a b"], Float[Tensor, ""]]:
    """Bins of what is known at points by bins of the volume's first channel where ``matrix`` takes them; and the weight seen.

    Parameters
    ----------
    matrix
        Points → voxels of the volume; differentiable in it alone (float64).
    volume
        Intensity in [0, 1], whose edge goes on, and weight, which is 0 out of view.
    known, weight
        Of each point: an intensity in [0, 1], and what it counts.
    """
    found: tuple[Tensor, Tensor] = _Histogram.apply(matrix, volume, points, known, weight, bins)
    return found


class _Histogram(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, matrix: Tensor, volume: Tensor, points: Tensor, known: Tensor, weight: Tensor, bins: int
    ) -> tuple[Tensor, Tensor]:
        arrays = [t.detach().contiguous().numpy() for t in (volume, points, known, weight)]
        rows = matrix.detach().double().contiguous().numpy()
        joint = np.zeros((bins, bins))
        seen = _tally(rows, arrays[0][0], arrays[0][1], arrays[1], arrays[2], arrays[3], joint)
        ctx.kept = (rows, *arrays)
        return torch.from_numpy(joint), torch.tensor(seen, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, by_joint: Tensor, by_seen: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, volume, points, known, weight = ctx.kept
        slope = np.zeros((4, 4))
        each = by_joint.double().contiguous().numpy()
        _slope(rows, volume[0], volume[1], points, known, weight, each, float(by_seen), slope)
        return torch.from_numpy(slope), None, None, None, None, None


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # What checks annotations at run time (in the tests) wraps the function; numba needs the function itself.
    bare = inspect.unwrap(function)
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(bare)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder that code may be kept in
        return numba.njit(nogil=True, error_model="numpy")(bare)  # type: ignore[no-any-return]


def _window(unit, bins, out, slope):  # type: ignore[no-untyped-def]
    """First of four bins, their weights, and the weights' slopes by the intensity."""
    inner = min(max(unit, 0.0), 1.0)
    position = inner * (bins - 5) + 2
    first = int(position) - 1
    t = position - (first + 1)
    s = 1 - t
    out[0], out[3] = s * s * s / 6, t * t * t / 6
    out[1] = (4 - 6 * t * t + 3 * t * t * t) / 6
    out[2] = (4 - 6 * s * s + 3 * s * s * s) / 6
    scale = float(bins - 5) if inner == unit else 0.0
    slope[0], slope[3] = -0.5 * s * s * scale, 0.5 * t * t * scale
    slope[1] = (-2 * t + 1.5 * t * t) * scale
    slope[2] = (2 * s - 1.5 * s * s) * scale
    return first


_window = _compiled(_window)


def _look(values, weights, x, y, z, out):  # type: ignore[no-untyped-def]
    """Intensity (the edge goes on) and its slopes along the voxel axes, then weight (0 outside) and its slopes."""
    out[:] = 0.0
    ni, nj, nk = values.shape
    if not (-1 < x < ni and -1 < y < nj and -1 < z < nk):
        return
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    for a in range(2):
        fx, dx = (x - i, 1.0) if a else (1 - x + i, -1.0)
        ia = i + a
        ic = min(max(ia, 0), ni - 1)
        for b in range(2):
            fy, dy = (y - j, 1.0) if b else (1 - y + j, -1.0)
            jb = j + b
            jc = min(max(jb, 0), nj - 1)
            for c in range(2):
                fz, dz = (z - k, 1.0) if c else (1 - z + k, -1.0)
                kc = k + c
                kd = min(max(kc, 0), nk - 1)
                v = values[ic, jc, kd]
                out[0] += v * fx * fy * fz
                out[1] += v * dx * fy * fz
                out[2] += v * fx * dy * fz
                out[3] += v * fx * fy * dz
                if ic == ia and jc == jb and kd == kc:
                    w = weights[ia, jb, kc]
                    out[4] += w * fx * fy * fz
                    out[5] += w * dx * fy * fz
                    out[6] += w * fx * dy * fz
                    out[7] += w * fx * fy * dz


_look = _compiled(_look)


@_compiled
def _tally(rows, values, weights, points, known, weight, joint):  # type: ignore[no-untyped-def]
    bins = joint.shape[0]
    here, there, unused, look = np.zeros(4), np.zeros(4), np.zeros(4), np.zeros(8)
    total = 0.0
    for p in range(len(points)):
        px, py, pz = points[p, 0], points[p, 1], points[p, 2]
        x = rows[0, 0] * px + rows[0, 1] * py + rows[0, 2] * pz + rows[0, 3]
        y = rows[1, 0] * px + rows[1, 1] * py + rows[1, 2] * pz + rows[1, 3]
        z = rows[2, 0] * px + rows[2, 1] * py + rows[2, 2] * pz + rows[2, 3]
        _look(values, weights, x, y, z, look)
        w = look[4] * weight[p]
        if w == 0.0:
            continue
        total += w
        a = _window(known[p], bins, here, unused)
        b = _window(look[0], bins, there, unused)
        for m in range(4):
            for n in range(4):
                joint[a + m, b + n] += w * here[m] * there[n]
    return total


@_compiled
def _slope(rows, values, weights, points, known, weight, by_joint, by_seen, out):  # type: ignore[no-untyped-def]
    bins = by_joint.shape[0]
    here, there, rise, unused, look = np.zeros(4), np.zeros(4), np.zeros(4), np.zeros(4), np.zeros(8)
    for p in range(len(points)):
        px, py, pz = points[p, 0], points[p, 1], points[p, 2]
        x = rows[0, 0] * px + rows[0, 1] * py + rows[0, 2] * pz + rows[0, 3]
        y = rows[1, 0] * px + rows[1, 1] * py + rows[1, 2] * pz + rows[1, 3]
        z = rows[2, 0] * px + rows[2, 1] * py + rows[2, 2] * pz + rows[2, 3]
        _look(values, weights, x, y, z, look)
        if weight[p] == 0.0:
            continue
        a = _window(known[p], bins, here, unused)
        b = _window(look[0], bins, there, rise)
        by_value, by_weight = 0.0, by_seen
        for m in range(4):
            for n in range(4):
                g = by_joint[a + m, b + n] * here[m]
                by_value += g * rise[n]
                by_weight += g * there[n]
        by_value *= look[4] * weight[p]
        by_weight *= weight[p]
        for axis in range(3):
            s = by_value * look[1 + axis] + by_weight * look[5 + axis]
            out[axis, 0] += s * px
            out[axis, 1] += s * py
            out[axis, 2] += s * pz
            out[axis, 3] += s
