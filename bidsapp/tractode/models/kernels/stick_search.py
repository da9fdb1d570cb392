"""The search of `tractode.models.ball_and_sticks`, voxel by voxel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tractode.models.kernels.marquardt import FIRST_DAMPING, LARGEST_DAMPING, gain, settled, softer, step
from tractode.ops.compile import inner, kernel


@inner
def _decay(b: Any, d: Any, r: Any) -> tuple[Any, Any, Any, Any]:
    """``(1 + br)^(−d/r)``, its slopes in b and in ln d, and that in r."""
    product = b * r
    if product < 1e-4:
        mean = b * (1 - product / 2 + product * product / 3)
        tilt = b * b * (2 * product / 3 - 0.5)
    else:
        mean = math.log1p(product) / r
        tilt = (b / (1 + product) - mean) / r
    value = math.exp(-d * mean)
    return value, -d * value / (1 + product), -d * mean * value, -d * tilt * value


@inner
def _linearise(x: Any, data: Any, b: Any, g: Any, j: Any, normal: Any, right: Any) -> Any:
    """Normal equations of the signal's derivative at x (lower triangle), and the sum of squared residuals."""
    p = len(x)
    k_sticks = (p - 2) // 3
    with_spread = p > 2 + 3 * k_sticks
    d, ball_amount = math.exp(x[0]), x[1] * x[1]
    r = x[p - 1] * x[p - 1] if with_spread else 0.0
    normal[:] = 0.0
    right[:] = 0.0
    cost = 0.0
    for n in range(len(b)):
        value, _, by_d, by_r = _decay(b[n], d, r)
        whole, by_d, by_r = ball_amount * value, ball_amount * by_d, ball_amount * by_r
        j[1] = 2 * x[1] * value
        for k in range(2, 2 + 3 * k_sticks, 3):
            amount = x[k] * x[k] + x[k + 1] * x[k + 1] + x[k + 2] * x[k + 2] + 1e-12
            along = x[k] * g[n, 0] + x[k + 1] * g[n, 1] + x[k + 2] * g[n, 2]
            z = along * along / amount
            value, by_b, stick_d, stick_r = _decay(b[n] * z, d, r)
            whole += amount * value
            by_d += amount * stick_d
            by_r += amount * stick_r
            radial, turned = 2 * (value - b[n] * by_b * z), 2 * b[n] * by_b * along
            for c in range(3):
                j[k + c] = radial * x[k + c] + turned * g[n, c]
        j[0] = by_d
        if with_spread:
            j[p - 1] = 2 * x[p - 1] * by_r
        residual = data[n] - whole
        cost += residual * residual
        for i in range(p):
            right[i] += j[i] * residual
            for m in range(i + 1):
                normal[i, m] += j[i] * j[m]
    return cost


@kernel
def search(data: Any, start: Any, b: Any, g: Any, n_iterations: int, tolerance: float, out: Any) -> None:
    """The least-squares unknowns of each row of ``data`` from those of ``start``, into ``out``."""
    p = start.shape[1]
    x, trial, delta, j = np.empty(p), np.empty(p), np.empty(p), np.empty(p)
    normal, other, factor = np.empty((p, p)), np.empty((p, p)), np.empty((p, p))
    right, other_right = np.empty(p), np.empty(p)
    for v in range(len(data)):
        x[:] = start[v]
        cost = _linearise(x, data[v], b, g, j, normal, right)
        damping, growth = FIRST_DAMPING, 2.0
        for _ in range(n_iterations):
            expected = step(normal, right, damping, factor, delta, p)
            share = -1.0
            done = False
            if expected >= 0:
                trial[:] = x + delta
                done = settled(normal, x, delta, tolerance, p)
                after = _linearise(trial, data[v], b, g, j, other, other_right)
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


@kernel
def best_pairs(products: Any, inverse: Any, pairs: Any, cost: Any, place: Any, amounts: Any) -> None:
    """The pair of axes that leaves the least of each row, with the ball beside it.

    ``products`` are a row's with the ball and with each axis; ``inverse`` the upper triangles of the inverse Gram matrices of
    ball and pair. ``cost`` (less the row's own square), ``place`` and the three ``amounts`` are filled.
    """
    for v in range(len(products)):
        least, best = np.inf, 0
        ball = products[v, 0]
        for c in range(len(pairs)):
            one, two = products[v, pairs[c, 0] + 1], products[v, pairs[c, 1] + 1]
            a = inverse[0, c] * ball + inverse[1, c] * one + inverse[2, c] * two
            b = inverse[1, c] * ball + inverse[3, c] * one + inverse[4, c] * two
            d = inverse[2, c] * ball + inverse[4, c] * one + inverse[5, c] * two
            value = -(a * ball + b * one + d * two)
            if min(a, b, d) < 0:
                value *= 0.5
            if value < least:
                least, best = value, c
        one, two = products[v, pairs[best, 0] + 1], products[v, pairs[best, 1] + 1]
        amounts[v, 0] = inverse[0, best] * ball + inverse[1, best] * one + inverse[2, best] * two
        amounts[v, 1] = inverse[1, best] * ball + inverse[3, best] * one + inverse[4, best] * two
        amounts[v, 2] = inverse[2, best] * ball + inverse[4, best] * one + inverse[5, best] * two
        cost[v, 0], place[v, 0] = least, best
