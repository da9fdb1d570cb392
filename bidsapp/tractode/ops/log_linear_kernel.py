"""The linear fits of `tractode.ops.log_linear` from signals to parameters, sixteen voxels at a time, compiled.

Equations and rounds are those of that module; everything a group of voxels needs between its signals and its parameters
stays in the processor's nearest memory. Long sums are float32 like the data, systems float64 (`tractode.ops.normal_kernel`);
each round solves for what it adds to the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from tractode.ops.compile import inner
from tractode.ops.lane_algebra import factorise, solve, times
from tractode.ops.lane_functions import exp, log
from tractode.ops.lanes import larger, load, smaller, spread, store
from tractode.ops.normal_kernel import LANES

GROUP = 16  # float32 numbers in 64 bytes


def fit_rows(
    signal_at: Any,
    inverse_at: Any,
    predictor_at: Any,
    rows_at: Any,
    products_at: Any,
    place_at: Any,
    factor_at: Any,
    params_at: Any,
    work_at: Any,
    n_voxels: int,
    n: int,
    p: int,
    n_sums: int,
    n_work: int,
    rounds: int,
    observed: int,
    floor: float,
    largest_exponent: float,
    begin: int,
    end: int,
) -> None:
    """Parameters of the voxels from ``begin`` to ``end``; not finite where a system is singular or a signal is not finite.

    ``signal`` (v, n) and ``params`` (v, p) are by rows. The matrices are those of `tractode.ops.lane_algebra.times`, by columns
    filled up to multiples of 8 with zeros: X⁺, X (``predictor``), Xᵀ (``rows``) and the products of columns. ``observed``:
    the first of the rounds weights by the signals, the others by what was fitted. ``work``: float64 numbers on a 64-byte line.
    """
    n_rows, n_params, size = (n + 7) // 8 * 8, (p + 7) // 8 * 8, (p + 3) // 4 * 4
    signal, params = carray(signal_at, (n_voxels, n)), carray(params_at, (n_voxels, p))
    by_inverse, by_predictor = carray(inverse_at, n * n_params), carray(predictor_at, p * n_rows)
    by_rows, by_products = carray(rows_at, n * n_params), carray(products_at, n * n_sums)
    place, factor = carray(place_at, (p, p)), carray(factor_at, (p, p))
    work = carray(work_at, n_work)
    wide_sums, work = work[: n_sums * GROUP], work[n_sums * GROUP :]
    wide_right, work = work[: n_params * GROUP], work[n_params * GROUP :]
    total, work = work[: n_params * GROUP], work[n_params * GROUP :]
    triangle = size * (size + 1) // 2 * LANES
    lower, x = work[:triangle], work[triangle:][: size * LANES]
    rest = work[triangle + size * LANES :].view(np.float32)
    logs, rest = rest[: n_rows * GROUP], rest[n_rows * GROUP :]
    predicted, rest = rest[: n_rows * GROUP], rest[n_rows * GROUP :]
    weights, rest = rest[: n_rows * GROUP], rest[n_rows * GROUP :]
    fitted, rest = rest[: n_params * GROUP], rest[n_params * GROUP :]
    right, rest = rest[: n_params * GROUP], rest[n_params * GROUP :]
    sums, level = rest[: n_sums * GROUP], rest[n_sums * GROUP :]
    for start in range(begin, end, GROUP):
        _transpose(signal, start, end, logs)
        _logarithms(logs, level, n, floor)
        times(by_inverse, logs, fitted, n_params, n, GROUP)
        for e in range(p * GROUP):
            total[e] = fitted[e]
        for index in range(rounds):
            times(by_predictor, fitted, predicted, n_rows, p, GROUP)
            _weigh(logs, predicted, weights, n, observed != 0 and index == 0, largest_exponent)
            times(by_products, weights, sums, n_sums, n, GROUP)
            times(by_rows, predicted, right, n_params, n, GROUP)
            for e in range(n_sums * GROUP):
                wide_sums[e] = sums[e]
            for e in range(p * GROUP):
                wide_right[e] = right[e]
            for half in range(0, GROUP, LANES):
                _system(wide_sums, place, factor, wide_right, half, lower, x)
                factorise(lower, size, LANES)
                solve(lower, x, size, LANES)
                for i in range(p):
                    at = i * GROUP + half
                    store(total, at, load(x, i * LANES))
            for e in range(p * GROUP):
                total[e] += fitted[e]
                fitted[e] = total[e]
        for voxel in range(start, min(start + GROUP, end)):
            for i in range(p):
                params[voxel, i] = total[i * GROUP + voxel - start]
            params[voxel, p - 1] += level[voxel - start]


@inner
def _system(sums: Any, place: Any, factor: Any, right: Any, start: int, lower: Any, x: Any) -> None:
    """The systems and right sides of `LANES` voxels of a group, filled up with rows of the identity."""
    p = len(place)
    zero, one = spread(x, 0.0), spread(x, 1.0)
    for i in range(p):
        store(x, i * LANES, load(right, i * GROUP + start))
        row = i * (i + 1) // 2
        for j in range(i + 1):
            store(lower, (row + j) * LANES, factor[i, j] * load(sums, place[i, j] * GROUP + start))
    for i in range(p, len(x) // LANES):
        row = i * (i + 1) // 2
        store(x, i * LANES, zero)
        for j in range(i):
            store(lower, (row + j) * LANES, zero)
        store(lower, (row + i) * LANES, one)


@inner
def _transpose(signal, start, end, columns):  # type: ignore[no-untyped-def]
    """Signals of a group, volumes first; the last group is filled up with its last voxel."""
    for lane in range(GROUP):
        voxel = min(start + lane, end - 1)
        for k in range(signal.shape[1]):
            columns[k * GROUP + lane] = signal[voxel, k]


@inner
def _logarithms(columns: Any, level: Any, n: int, floor: float) -> None:
    """Log signals over the voxel's largest, kept above the floor, in place; and the logarithm of the largest."""
    top = spread(columns, np.finfo(np.float32).tiny / floor)
    check = spread(columns, 0.0)
    for k in range(n):
        value = load(columns, k * GROUP)
        top, check = larger(top, value), check + value * 0.0  # not a number where a signal is none
    store(level, 0, log(top) + check)
    unit = 1.0 / top
    lowest = spread(columns, floor)
    for k in range(n):
        store(columns, k * GROUP, log(larger(load(columns, k * GROUP) * unit, lowest)))


@inner
def _weigh(logs: Any, predicted: Any, weights: Any, n: int, observed: bool, largest_exponent: float) -> None:
    """Squares of signals, and in place of what is predicted the residuals times these weights."""
    highest = spread(logs, largest_exponent)
    for k in range(n):
        seen, value = load(logs, k * GROUP), load(predicted, k * GROUP)
        basis = seen if observed else smaller(value, highest)
        weight = exp(logs, 2.0 * basis)
        store(weights, k * GROUP, weight)
        store(predicted, k * GROUP, (seen - value) * weight)
