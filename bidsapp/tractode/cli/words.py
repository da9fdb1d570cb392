"""How one word on the command line becomes a value, or is refused with the reason."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

_LABEL = re.compile(r"[A-Za-z0-9]+")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([TGMKB]?)(?:i?B)?", re.IGNORECASE)
_UNIT_GIB = {"T": 1024.0, "G": 1.0, "M": 1 / 1024, "K": 1 / 1024**2, "B": 1 / 1024**3, "": 1 / 1024}


def label(prefix: str) -> Callable[[str], str]:
    """A converter that drops the prefix of a BIDS label and refuses what cannot be one (a path, a line break, …)."""

    def read(text: str) -> str:
        bare = text.removeprefix(prefix)
        if not _LABEL.fullmatch(bare):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a BIDS label: letters and digits only, with or without {prefix!r} in front"
            )
        return bare

    return read


def whole(least: int) -> Callable[[str], int]:
    """A converter to a whole number that is at least ``least``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return read


def positive(text: str) -> float:
    """A finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return value


def at_least_zero(what: str) -> Callable[[str], float]:
    """A converter to a finite number of at least zero; ``what`` names it in the refusal."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


def within(least: float, largest: float, what: str = "a number") -> Callable[[str], float]:
    """A converter to a number from ``least`` to ``largest``, both allowed; ``what`` names it in the refusal."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {least:g} to {largest:g}")
        return value

    return read


def share(text: str) -> float:
    """A number from 0 to 1."""
    return within(0.0, 1.0)(text)


def threshold(text: str) -> float:
    """A finite b-value of at least zero."""
    return at_least_zero("a b-value (s/mm², at least 0)")(text)


def memory(text: str) -> float:
    """GiB of ``8G``, ``8000M``, ``8388608K``, … ; a bare number is in MiB."""
    match = _MEMORY.fullmatch(text.strip())
    value = float(match[1]) * _UNIT_GIB[match[2].upper()] if match else 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory (examples: 8G, 8000M, 8000)")
    return value


def device(text: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``; whether it is there is asked later."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device (auto, cpu, cuda or cuda:N)")
    return text


def one_of(noun: str, names: tuple[str, ...]) -> Callable[[str], str]:
    """A converter that accepts the given names."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"there is no {noun} named {text!r}; choose from {', '.join(names)}")
        return text

    return read
