"""A JSON object read strictly: what is accepted means one thing only, what is not is told with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from tractode.errors import InputDataError, MissingInputError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a file; a byte-order mark is accepted.

    Raises
    ------
    MissingInputError
        The file cannot be opened.
    InputDataError
        Not UTF-8, not JSON, not an object, a key given twice, a number that is none (NaN, Infinity), or nested too deep.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise MissingInputError(f"The file cannot be opened ({error.strerror})", id="E-JSON-OPEN", path=path) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(
            path,
            f"Byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8",
            "UTF-8 text",
            "save the file as UTF-8",
            error,
        )
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_not_a_number)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}, byte {len(text[: error.pos].encode())}"
        _refuse(
            path,
            f"This is not JSON at {place}: {error.msg}",
            "one JSON object",
            "correct the file at that place",
            error,
        )
    except RecursionError as error:
        _refuse(path, "The JSON is nested too deep", "one JSON object of fields", "convert the scan again", error)
    except ValueError as error:
        _refuse(path, str(error), "each field once, with a value that JSON has", "correct the field", error)
    if not isinstance(content, dict):
        _refuse(
            path, f"The file holds a {type(content).__name__}, not an object", "{ … }", "convert the scan again", None
        )
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"The field {', '.join(twice)} is given twice")
    return content


def _not_a_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} stands where a number belongs")


def _refuse(path: Path, found: str, needed: str, fix: str, cause: BaseException | None) -> NoReturn:
    raise InputDataError(found, id="E-JSON", path=path, needed=needed, fix=fix) from cause
