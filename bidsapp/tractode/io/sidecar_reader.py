"""A BIDS sidecar as a dictionary: one file, strictly JSON, with the fields that we use checked for their type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tractode.errors import InputDataError
from tractode.io.sniff import broken, check_content

_LARGEST = 1 << 24


def read_sidecar(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `InputDataError` naming the byte, or the field, that is wrong."""
    check_content(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise broken(error, path) from error
    if len(raw) > _LARGEST:
        raise _invalid(f"the file has {len(raw)} bytes", path, "a sidecar of less than 16 MB")
    content = _parse(raw, path)
    if not isinstance(content, dict):
        raise _invalid(f"the file holds a {type(content).__name__}", path, "a JSON object, {…}")
    for name, (test, needed) in _FIELDS.items():
        if name in content and not test(content[name]):
            raise InputDataError(
                f"{name} is {json.dumps(content[name])[:60]}",
                id="E-JSON-FIELD",
                path=path,
                needed=f"{name} as {needed}",
                fix="correct the field",
            )
    return content


def _parse(raw: bytes, path: Path) -> Any:
    try:
        return json.loads(
            raw.decode("utf-8-sig"),
            object_pairs_hook=lambda pairs: _unique(pairs, path),
            parse_constant=lambda name: _constant(name, path),
        )
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not UTF-8", path, "UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise _invalid(f"line {error.lineno}, column {error.colno}: {error.msg}", path, "valid JSON") from error
    except RecursionError as error:
        raise _invalid("the values are nested too deeply", path, "a flat JSON object") from error


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise _invalid(f"the field {repeated} occurs twice", path, "each field once")
    return dict(pairs)


def _constant(name: str, path: Path) -> float:
    raise _invalid(f"{name} is no JSON number", path, "finite numbers")


def _invalid(found: str, path: Path, needed: str) -> InputDataError:
    return InputDataError(
        found, id="E-JSON-INVALID", path=path, needed=needed, fix="correct the file; a JSON checker shows the place"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


def _is_direction(value: Any) -> bool:
    return value in ("i", "j", "k", "i-", "j-", "k-")


_Check = tuple[Callable[[Any], bool], str]
_NUMBER: _Check = (_is_number, "a number")
_TEXT: _Check = (_is_text, "text")
_TEXTS: _Check = (_are_texts, "text or a list of texts")
_FIELDS: dict[str, _Check] = {
    **dict.fromkeys(
        ("RepetitionTime", "EchoTime", "EchoTime1", "EchoTime2", "TotalReadoutTime", "EstimatedTotalReadoutTime"),
        _NUMBER,
    ),
    **dict.fromkeys(
        ("EffectiveEchoSpacing", "MagneticFieldStrength", "MultibandAccelerationFactor", "FlipAngle"), _NUMBER
    ),
    **dict.fromkeys(("Manufacturer", "ConversionSoftware", "Units"), _TEXT),
    **dict.fromkeys(("IntendedFor", "B0FieldIdentifier", "B0FieldSource"), _TEXTS),
    "PhaseEncodingDirection": (_is_direction, "one of i, j, k, i-, j-, k-"),
    "PhaseEncodingAxis": (lambda value: value in ("i", "j", "k"), "one of i, j, k"),
    "SliceTiming": (_are_numbers, "a list of numbers"),
    "ImageOrientationPatientDICOM": (_are_numbers, "a list of numbers"),
}
