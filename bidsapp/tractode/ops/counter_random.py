"""Random numbers that are a function of (key, number, counter): no state, so no order in which they must be drawn.

The n-th number of a stream is the finaliser of SplitMix64 over the n-th multiple of its odd constant, started at a hash
of the key and of the stream's number: Steele, Lea & Flood, *Fast splittable pseudorandom number generators*, OOPSLA
2014, doi:10.1145/2660193.2660195 (constants: Stafford's variant 13, as there). Counter-based use after Salmon et al.,
*Parallel random numbers: as easy as 1, 2, 3*, SC 2011, doi:10.1145/2063384.2063405. Departure: each stream starts at a
hashed place of the same sequence of 2⁶⁴ instead of having an increment of its own; that two of a billion streams with a
thousand draws each ever share a draw has a chance of about 10⁻⁴.

int64 arithmetic that wraps, so the numbers are the same on every device; `tracking/kernels/random.py` has the same bits.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

INCREMENT = 0x9E3779B97F4A7C15
FIRST_FACTOR = 0xBF58476D1CE4E5B9
SECOND_FACTOR = 0x94D049BB133111EB
UNIT = 2.0**-53


def uniform(key: int, number: Int[Tensor, "*s"], counter: Int[Tensor, "*s"] | int) -> Float[Tensor, "*s"]:
    """The ``counter``-th draw of stream ``number``: float64, uniform on [0, 1) in steps of 2⁻⁵³.

    ``key`` is any integer (its lowest 64 bits count); ``number`` and ``counter`` are any int64, also below 0.
    """
    return draw(stream(key, number), counter)


def stream(key: int, number: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
    """The hashed start of a stream, for many draws from it with `draw`."""
    start = _mix(torch.tensor(_signed(key + INCREMENT), device=number.device))
    return _mix(start + number * _signed(INCREMENT))


def draw(start: Int[Tensor, "*s"], counter: Int[Tensor, "*s"] | int) -> Float[Tensor, "*s"]:
    """The ``counter``-th draw of the stream that starts there (see `uniform`)."""
    steps = _signed((counter + 1) * INCREMENT) if isinstance(counter, int) else (counter + 1) * _signed(INCREMENT)
    return _shifted(_mix(start + steps), 11).double() * UNIT


def _mix(x: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
    """SplitMix64's finaliser: a bijection of 64 bits in which each input bit flips about half of the output bits."""
    x = (x ^ _shifted(x, 30)) * _signed(FIRST_FACTOR)
    x = (x ^ _shifted(x, 27)) * _signed(SECOND_FACTOR)
    return x ^ _shifted(x, 31)


def _shifted(x: Int[Tensor, "*s"], bits: int) -> Int[Tensor, "*s"]:
    """Shift right and fill with zeros (int64's own shift repeats the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The lowest 64 bits of an integer, as int64 holds them."""
    return (value + 2**63) % 2**64 - 2**63
