"""The error types of tractode: each carries a stable ID, an exit code, and says what was found, needed and to be done."""

from __future__ import annotations

from pathlib import PurePath


class TractodeError(Exception):
    """Base of every error a user can meet. One line of text, no traceback, an exit code of HOUSE.md §10.

    Parameters
    ----------
    found, needed, fix
        What was given, what was needed, and what to do about it.
    id
        Stable identifier, ``E-<TOPIC>-<DETAIL>``; documented in ``docs/errors.md``.
    path
        The offending file, where there is one.
    """

    exit_code: int = 70

    def __init__(
        self,
        found: str,
        *,
        id: str,
        needed: str = "",
        fix: str = "",
        path: PurePath | str | None = None,
    ) -> None:
        self.id, self.found, self.needed, self.fix = id, found, needed, fix
        self.path = str(path) if path is not None else ""
        super().__init__(self._text())

    def _text(self) -> str:
        where = f"{self.path}: " if self.path else ""
        parts = [f"[{self.id}] {where}{self.found.rstrip('.')}."]
        if self.needed:
            parts.append(f"Needed: {self.needed.rstrip('.')}.")
        if self.fix:
            parts.append(f"To do: {self.fix.rstrip('.')}.")
        return " ".join(parts)

    def record(self) -> dict[str, str | int]:
        """The error as plain data, for the manifest and the report."""
        return {
            "id": self.id,
            "exit_code": self.exit_code,
            "path": self.path,
            "found": self.found,
            "needed": self.needed,
            "fix": self.fix,
        }

    def __reduce__(self) -> tuple:
        # Worker processes send errors back by pickling them; keyword-only arguments need help to survive that.
        return _rebuild, (type(self), self.found, self.id, self.needed, self.fix, self.path)


def _rebuild(cls: type[TractodeError], found: str, id: str, needed: str, fix: str, path: str) -> TractodeError:
    return cls(found, id=id, needed=needed, fix=fix, path=path or None)


class InvalidDatasetError(TractodeError):
    """The input is not a BIDS dataset."""

    exit_code = 16


class UnknownLevelError(TractodeError):
    """The analysis level does not exist."""

    exit_code = 17


class NoMatchError(TractodeError):
    """Labels or filters matched nothing."""

    exit_code = 18


class UsageError(TractodeError):
    """The command line is wrong."""

    exit_code = 64


class InputDataError(TractodeError):
    """A file was read and what it holds cannot be used."""

    exit_code = 65


class MissingInputError(TractodeError):
    """A needed file is missing or its content was not fetched."""

    exit_code = 66


class ResourceUnavailableError(TractodeError):
    """A GPU, template or set of weights was asked for and is not to be had."""

    exit_code = 69


class InternalError(TractodeError):
    """A bug of ours."""

    exit_code = 70


class OutOfMemoryError(TractodeError):
    """Memory ran out, or a worker process was killed."""

    exit_code = 71


class OutputError(TractodeError):
    """The output cannot be created."""

    exit_code = 73


class InputOutputError(TractodeError):
    """Reading or writing failed half-way: a broken disk or a full one."""

    exit_code = 74


class LockedError(TractodeError):
    """Another live run holds the lock."""

    exit_code = 75


class ConfigurationError(TractodeError):
    """Settings contradict each other, or the output belongs to another version."""

    exit_code = 78


class ShapeError(ValueError):
    """A tensor has the wrong shape for the field it should become. A programmer's mistake, not the user's."""


class SpaceMismatchError(ValueError):
    """Two objects that should share a space do not. Says which transform to insert."""
