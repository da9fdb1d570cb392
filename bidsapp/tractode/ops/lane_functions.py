"""Exponentials and logarithms of several float32 numbers at once, for `tractode.ops.lanes`.

Abramowitz & Stegun, *Handbook of Mathematical Functions*, 4.1.27 and 4.2.1: the power of two is split off by the bits of the number,
and a short series does the rest. Relative errors are some 2·10⁻⁷, of logarithms near 0 the absolute ones as well.
"""

from __future__ import annotations

from typing import Any

from tractode.ops.compile import inner
from tractode.ops.lanes import exponent, larger, nearest, scaled, spread

LN_2 = 0.6931471805599453
LEAST = -86.0  # of what follows the result would be subnormal


@inner
def exp(array: Any, x: Any) -> Any:
    """``e^x`` for x up to 80, below −86 as there; ``array`` is any of the type that x was loaded from."""
    x = larger(x, spread(array, LEAST))
    whole = nearest(x * (1 / LN_2))
    r = x - whole * LN_2
    series = 1 / 720 + r * (1 / 5040)
    series = 1 / 24 + r * (1 / 120 + r * series)
    series = 1.0 + r * (1.0 + r * (1 / 2 + r * (1 / 6 + r * series)))
    return scaled(series, whole)


@inner
def log(x: Any) -> Any:
    """``ln x`` of positive numbers that are not subnormal."""
    power = exponent(x)
    m = scaled(x, 0.0 - power)
    f = (m - 1.0) / (m + 1.0)
    s = f * f
    return power * LN_2 + 2.0 * f * (1.0 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9)))))
