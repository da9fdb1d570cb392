"""The timing of the diffusion-encoding pulses, from the sidecars of one series or of the runs that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BIG = ("BigDelta", "LargeDelta")  # BIDS; HBCD and QSIRecon
_SMALL = ("SmallDelta",)
_EFFECTIVE = ("DiffusionTime",)
_LONGEST = 1.0  # s: a longer pulse or time is meant in milliseconds
_ALIKE = 0.05


@dataclass(frozen=True)
class PulseTiming:
    """Duration δ of a pulse and time Δ between the leading edges of two, in seconds; ``source`` says which fields told so.

    Where only the effective diffusion time is known it stands for Δ, with δ = 0.
    """

    small_delta: float
    big_delta: float
    source: str


def pulse_timing(sidecars: Sequence[Mapping[str, Any]]) -> tuple[PulseTiming | None, str]:
    """The timing that all sidecars agree on, and a word on what is wrong with what they say; ``None`` where they do not tell.

    Fields of BIDS 1.11 (``SmallDelta``, ``BigDelta``, seconds, one number or one a volume), ``LargeDelta`` for ``BigDelta``,
    or ``DiffusionTime`` (Δ − δ/3). Numbers above 1 are milliseconds.
    """
    found = [_of_one(metadata) for metadata in sidecars]
    known = [timing for timing, _ in found if timing is not None]
    problems = "; ".join(dict.fromkeys(problem for _, problem in found if problem))
    if not known or len(known) < len(found):
        return None, problems or ("only some of the runs tell the timing of their pulses" if known else "")
    times = [timing.big_delta - timing.small_delta / 3 for timing in known]
    if not _alike(times):
        return None, "the runs differ in the timing of their pulses"
    return known[0], problems


def _of_one(metadata: Mapping[str, Any]) -> tuple[PulseTiming | None, str]:
    big, small, effective = (_named(metadata, names) for names in (_BIG, _SMALL, _EFFECTIVE))
    if big is None and effective is None:
        return None, ""
    if big is None or small is None:
        if effective is None:
            return None, f"{big[0]} without SmallDelta does not tell the diffusion time" if big else ""
        time = _seconds(effective[1])
        return (None, _bad(effective)) if time is None else (PulseTiming(0.0, time, effective[0]), "")
    long, short = _seconds(big[1]), _seconds(small[1])
    if long is None or short is None:
        return None, _bad(big if long is None else small)
    if short > long:
        return None, f"{small[0]} ({short:g} s) is longer than {big[0]} ({long:g} s)"
    return PulseTiming(short, long, f"{small[0]}, {big[0]}"), ""


def _named(metadata: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any] | None:
    return next(((name, metadata[name]) for name in names if metadata.get(name) is not None), None)


def _seconds(value: Any) -> float | None:
    """One positive number for all volumes, in seconds."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in values):
        return None
    seconds = [float(v) / 1000 if v > _LONGEST else float(v) for v in values]
    return sum(seconds) / len(seconds) if _alike(seconds) and max(seconds) <= _LONGEST else None


def _alike(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= _ALIKE * max(values)


def _bad(field: tuple[str, Any]) -> str:
    return f"{field[0]} is not one positive time for all volumes"
