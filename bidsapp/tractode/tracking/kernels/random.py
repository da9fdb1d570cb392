"""`ops.counter_random` as scalars for compiled loops: the same bits.

A loop hashes key and number once (`stream`) and then draws with one mixing each.
"""

from __future__ import annotations

import numpy as np

from tractode.ops import counter_random as vector
from tractode.ops.compile import inner, kernel

INCREMENT = np.uint64(vector.INCREMENT)
FIRST_FACTOR = np.uint64(vector.FIRST_FACTOR)
SECOND_FACTOR = np.uint64(vector.SECOND_FACTOR)
ONE = np.uint64(1)


@inner
def mix(x):
    """SplitMix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * FIRST_FACTOR
    x = (x ^ (x >> np.uint64(27))) * SECOND_FACTOR
    return x ^ (x >> np.uint64(31))


@inner
def stream(key: int, number: int):
    """The hashed start (uint64) of a line's random numbers."""
    return mix(mix(np.uint64(key) + INCREMENT) + np.uint64(number) * INCREMENT)


@inner
def draw(start, counter: int) -> float:
    """The ``counter``-th draw of the stream that starts there: float64 in [0, 1)."""
    bits = mix(start + (np.uint64(counter) + ONE) * INCREMENT) >> np.uint64(11)
    # Below 2⁵³ the signed conversion is exact, and one instruction.
    return np.float64(np.int64(bits)) * vector.UNIT


@kernel
def uniform(key: int, number: int, counter: int) -> float:
    """See `ops.counter_random.uniform`."""
    return draw(stream(key, number), counter)
