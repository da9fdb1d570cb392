"""The search of `tractode.models.noddi`, voxel by voxel; its formulas are those of `NODDI._linearised`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tractode.models.kernels.marquardt import FIRST_DAMPING, LARGEST_DAMPING, gain, settled, softer, step
from tractode.ops.compile import inner, kernel


@inner
def _moments(kappa: Any, nodes: Any, weights: Any, legendre: Any, mean: Any, slope: Any) -> None:
    """Moments of Watson's distribution and their slopes in κ."""
    total, square = 0.0, 0.0
    mean[:] = 0.0
    slope[:] = 0.0
    for q in range(len(nodes)):
        z = nodes[q] * nodes[q]
        density = weights[q] * math.exp(kappa * (z - 1))
        total += density
        square += density * z
        for r in range(len(mean)):
            mean[r] += density * legendre[r, q]
            slope[r] += density * z * legendre[r, q]
    for r in range(len(mean)):
        mean[r] /= total
        slope[r] = slope[r] / total - mean[r] * square / total


@inner
def _linearise(
    x: Any,
    data: Any,
    b: Any,
    g: Any,
    place: Any,
    free: Any,
    sticks: Any,
    rule: Any,
    d: Any,
    work: Any,
    normal: Any,
    right: Any,
) -> Any:
    """Normal equations of the signal's derivative at x (lower triangle), and the sum of squared residuals."""
    nodes, weights, legendre = rule
    mean, slope, powers, power_slopes, j = work
    kappa = x[3] * x[3] + x[4] * x[4] + x[5] * x[5] + 1e-12
    root = math.sqrt(kappa)
    _moments(kappa, nodes, weights, legendre, mean, slope)
    n_powers = sticks.shape[1]
    for u in range(sticks.shape[2]):
        for k in range(n_powers):
            value, tilt = 0.0, 0.0
            for r in range(len(mean)):
                value += mean[r] * sticks[r, k, u]
                tilt += slope[r] * sticks[r, k, u]
            powers[u, k], power_slopes[u, k] = value, tilt
    density, water, s0 = math.sin(x[1]) ** 2, math.sin(x[2]) ** 2, math.exp(x[0])
    by_angle, by_water_angle = math.sin(2 * x[1]), math.sin(2 * x[2])
    square, square_k = (1 + 2 * mean[1]) / 3, 2 / 3 * slope[1]
    steep = 1.5 * square - 0.5
    normal[:] = 0.0
    right[:] = 0.0
    cost = 0.0
    for n in range(len(b)):
        along = (x[3] * g[n, 0] + x[4] * g[n, 1] + x[5] * g[n, 2]) / root
        z, u = along * along, place[n]
        inside = powers[u, n_powers - 1]
        inside_z, inside_k = 0.0, power_slopes[u, n_powers - 1]
        for k in range(n_powers - 2, -1, -1):
            inside_z = inside_z * z + inside
            inside = inside * z + powers[u, k]
            inside_k = inside_k * z + power_slopes[u, k]
        bias = steep * z - (1 + square) / 2
        outside = math.exp(-b[n] * d * (1 + density * bias))
        fall = -b[n] * d * outside
        tissue = density * inside + (1 - density) * outside
        share = s0 * (1 - water)
        j[0] = share * tissue + s0 * water * free[n]
        j[1] = share * (inside - outside + (1 - density) * fall * bias) * by_angle
        j[2] = s0 * (free[n] - tissue) * by_water_angle
        by_cosine = share * (density * inside_z + (1 - density) * fall * density * steep)
        by_kappa = share * (density * inside_k + (1 - density) * fall * density * square_k * (1.5 * z - 0.5))
        turned = 2 * by_cosine * along / root
        radial = 2 * root * by_kappa - turned * along
        for c in range(3):
            j[3 + c] = turned * g[n, c] + radial * x[3 + c] / root
        residual = data[n] - j[0]
        cost += residual * residual
        for i in range(6):
            right[i] += j[i] * residual
            for m in range(i + 1):
                normal[i, m] += j[i] * j[m]
    return cost


@kernel
def search(
    data: Any,
    start: Any,
    b: Any,
    g: Any,
    place: Any,
    free: Any,
    sticks: Any,
    rule: Any,
    d: float,
    n_iterations: int,
    tolerance: float,
    out: Any,
) -> None:
    """The least-squares unknowns of each row of ``data`` from those of ``start``, into ``out``.

    ``free`` is the signal of free water, ``sticks`` and ``place`` those of the model's table, ``rule`` nodes, weights and
    Legendre polynomials of `tractode.ops.watson`, ``d`` the parallel diffusivity.
    """
    p, r, k, u = 6, sticks.shape[0], sticks.shape[1], sticks.shape[2]
    x, trial, delta = np.empty(p), np.empty(p), np.empty(p)
    work = (np.empty(r), np.empty(r), np.empty((u, k)), np.empty((u, k)), np.empty(p))
    normal, other, factor = np.empty((p, p)), np.empty((p, p)), np.empty((p, p))
    right, other_right = np.empty(p), np.empty(p)
    for v in range(len(data)):
        x[:] = start[v]
        cost = _linearise(x, data[v], b, g, place, free, sticks, rule, d, work, normal, right)
        damping, growth = FIRST_DAMPING, 2.0
        for _ in range(n_iterations):
            expected = step(normal, right, damping, factor, delta, p)
            share = -1.0
            done = False
            if expected >= 0:
                trial[:] = x + delta
                done = settled(normal, x, delta, tolerance, p)
                after = _linearise(trial, data[v], b, g, place, free, sticks, rule, d, work, other, other_right)
                share = gain(cost, after, expected)
            if share > 0:
                x[:] = trial
                cost = after
                normal[:] = other
                right[:] = other_right
                damping *= softer(share)
                growth = 2.0
            else:
                damping *= growth
                growth *= 2
            if done or damping >= LARGEST_DAMPING:
                break
        out[v] = x
