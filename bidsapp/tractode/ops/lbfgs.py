"""Minimising a smooth function of many unknowns by limited-memory BFGS with a diagonal start.

Nocedal & Wright, *Numerical Optimization*, 2006, doi:10.1007/978-0-387-40065-5, algorithms 7.4 and 7.5. Departures: steps are
bounded in the largest change of any unknown, the line search only halves until the function falls enough (Armijo), and
a pair that does not curve upwards is not kept. Sums are elementwise (no BLAS), so threads do not change a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Vector = Float[np.ndarray, " n"]
Progress = Callable[[int, float], None]

_ARMIJO = 1e-4
_PATIENCE = 5
_MOST_HALVINGS = 30


@dataclass(frozen=True)
class LbfgsSettings:
    """Stops after ``most`` iterations, or when the function fell by less than ``tolerance`` of its first value an iteration."""

    memory: int = 10
    most: int = 300
    tolerance: float = 1e-5
    largest_step: float = 1.0


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the function is least, its value after every iteration (the start's first), and whether it stood still."""

    point: Vector
    history: tuple[float, ...]
    converged: bool


def minimise(
    function: Callable[[Vector], tuple[float, Vector]],
    start: Vector,
    diagonal: Vector,
    settings: LbfgsSettings | None = None,
    on_progress: Progress | None = None,
) -> Minimum:
    """The minimum of ``function`` (value and gradient) from ``start``; ``diagonal`` is a guess at its second derivatives, > 0."""
    settings = settings or LbfgsSettings()
    point, (value, gradient) = start, function(start)
    history, pairs = [value], list[tuple[Vector, Vector]]()
    for iteration in range(1, settings.most + 1):
        direction = -_inverse_times(gradient, pairs, diagonal)
        slope = _dot(direction, gradient)
        if slope >= 0:
            pairs.clear()
            direction, slope = -gradient / diagonal, -_dot(gradient / diagonal, gradient)
        if slope == 0:
            return Minimum(point, tuple(history), True)
        step = min(1.0, settings.largest_step / max(float(np.abs(direction).max()), 1e-300))
        found = _search(function, point, direction, value, slope, step)
        if found is None:
            return Minimum(point, tuple(history), True)
        moved, value, new_gradient = found
        change, turn = moved - point, new_gradient - gradient
        if _dot(change, turn) > 1e-10 * np.sqrt(_dot(change, change) * _dot(turn, turn)):
            pairs = [*pairs[-settings.memory + 1 :], (change, turn)]
        point, gradient = moved, new_gradient
        history.append(value)
        if on_progress is not None:
            on_progress(iteration, value)
        window = history[-_PATIENCE - 1 :]
        if len(window) > _PATIENCE and window[0] - value <= _PATIENCE * settings.tolerance * abs(history[0]):
            return Minimum(point, tuple(history), True)
    return Minimum(point, tuple(history), False)


def _search(
    function: Callable[[Vector], tuple[float, Vector]],
    point: Vector,
    direction: Vector,
    value: float,
    slope: float,
    step: float,
) -> tuple[Vector, float, Vector] | None:
    """The first of the halved steps at which the function falls enough; ``None`` where none does (rounding)."""
    for _ in range(_MOST_HALVINGS):
        moved = point + step * direction
        new_value, gradient = function(moved)
        if np.isfinite(new_value) and new_value <= value + _ARMIJO * step * slope:
            return moved, new_value, gradient
        step /= 2
    return None


def _inverse_times(gradient: Vector, pairs: list[tuple[Vector, Vector]], diagonal: Vector) -> Vector:
    """The two loops: an approximate inverse Hessian times the gradient."""
    q, shares = gradient.copy(), []
    for change, turn in reversed(pairs):
        share = _dot(change, q) / _dot(change, turn)
        q -= share * turn
        shares.append(share)
    q /= diagonal
    if pairs:
        change, turn = pairs[-1]
        q *= _dot(change, turn) / _dot(turn, turn / diagonal)
    for (change, turn), share in zip(pairs, reversed(shares), strict=True):
        q += (share - _dot(turn, q) / _dot(change, turn)) * change
    return q


def _dot(a: Vector, b: Vector) -> float:
    return float((a * b).sum())
