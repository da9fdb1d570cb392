"""Gather every input error of a run in one pass, so that a user mends them all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tractode.errors import InputDataError, MissingInputError, TractodeError

Result = TypeVar("Result")


class Problems:
    """Collects the errors of independent steps; `raise_any` raises one of them, or all of them as one."""

    def __init__(self) -> None:
        self.errors: list[TractodeError] = []

    def attempt(self, step: Callable[..., Result], *args: object, **keywords: object) -> Result | None:
        """The step's result, or ``None`` where it raised an input error, which is kept."""
        try:
            return step(*args, **keywords)
        except (InputDataError, MissingInputError) as error:
            self.errors.extend(parts_of(error))
            return None

    def raise_any(self) -> None:
        """Raise what was gathered; several errors become one whose text lists them all."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise _joined(self.errors)


def parts_of(error: TractodeError) -> tuple[TractodeError, ...]:
    """The single errors behind one that `Problems` joined; the error itself otherwise."""
    return getattr(error, "parts", (error,))


def _joined(errors: list[TractodeError]) -> TractodeError:
    # Data that cannot be used outranks data that is not there: fetching would not be enough.
    kind = InputDataError if any(isinstance(e, InputDataError) for e in errors) else MissingInputError
    listed = " | ".join(f"({n}) {error}" for n, error in enumerate(errors, 1))
    joined = kind(f"{len(errors)} problems: {listed}", id="E-INPUT-SEVERAL")
    joined.parts = tuple(errors)  # type: ignore[union-attr]
    return joined
