"""The text of ``.bval`` and ``.bvec`` files as numbers: lenient about blanks, strict about anything ambiguous.

BIDS: the ``.bvec`` file has three rows (x, y, z) and one column a volume, the ``.bval`` file one row; separated by spaces.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tractode.errors import InputDataError
from tractode.io.notes import Note, warning
from tractode.io.sniff import broken, check_content

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_SPEC = "numbers with a decimal point, separated by spaces (BIDS)"
# A table of a hundred thousand volumes is smaller than this.
_LARGEST_TEXT = 1 << 24


def read_bvals(path: Path) -> tuple[np.ndarray, list[Note]]:
    """The b-values, ``(n,)``; a column is accepted with a warning."""
    rows, notes = _rows(path)
    if len(rows) == 1:
        return np.array(rows[0]), notes
    if all(len(row) == 1 for row in rows):
        return np.array([row[0] for row in rows]), [
            *notes,
            warning("W-GRAD-TRANSPOSED", f"{path.name}: one column of {len(rows)} b-values; BIDS wants one row"),
        ]
    raise InputDataError(
        f"there are {len(rows)} rows of {len(rows[0])} numbers",
        id="E-GRAD-ROWS",
        path=path,
        needed="one row of b-values",
        fix="keep the row of b-values",
    )


def read_bvecs(path: Path) -> tuple[np.ndarray, list[Note]]:
    """The vectors as stored, ``(n, 3)``. Three rows are x, y, z whatever the number of columns; N × 3 is accepted with a warning."""
    rows, notes = _rows(path)
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        usual = max(set(lengths), key=lengths.count)
        odd = next(n for n, length in enumerate(lengths) if length != usual)
        raise InputDataError(
            f"row {odd + 1} has {lengths[odd]} numbers and the others {usual}",
            id="E-GRAD-RAGGED",
            path=path,
            needed="rows of equal length",
            fix="convert the series again, or complete the row",
        )
    table = np.array(rows)
    if table.shape[0] == 3:
        return table.T, notes
    if table.shape[1] == 3:
        return table, [
            *notes,
            warning(
                "W-GRAD-TRANSPOSED",
                f"{path.name}: {len(rows)} rows of 3; read as one vector a row, though BIDS wants three rows",
            ),
        ]
    raise InputDataError(
        f"there are {table.shape[0]} rows of {table.shape[1]} numbers",
        id="E-GRAD-ROWS",
        path=path,
        needed="three rows (x, y, z)",
        fix="keep the three rows of the vectors",
    )


def _rows(path: Path) -> tuple[list[list[float]], list[Note]]:
    """Every line's numbers, and a warning where the file strays from the specification."""
    text, oddities = _text(path)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        content = line.split("#")[0].strip()
        if "#" in line:
            oddities.append("comments")
        if content:
            rows.append([_number(token, number, path) for token in _tokens(content, number, path, oddities)])
    if not rows:
        raise InputDataError(
            "the file holds no numbers", id="E-GRAD-EMPTY", path=path, needed=_SPEC, fix="convert the series again"
        )
    if not oddities:
        return rows, []
    return rows, [
        warning("W-GRAD-FORMAT", f"{path.name}: read, but not as BIDS specifies ({', '.join(dict.fromkeys(oddities))})")
    ]


def _text(path: Path) -> tuple[str, list[str]]:
    check_content(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_LARGEST_TEXT + 1)
    except OSError as error:
        raise broken(error, path) from error
    oddities: list[str] = []
    if len(raw) > _LARGEST_TEXT:
        raise InputDataError(
            f"the file has more than {_LARGEST_TEXT} bytes",
            id="E-GRAD-TEXT",
            path=path,
            needed=_SPEC,
            fix="check that this is the gradient file",
        )
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw:
        raise InputDataError(
            "the text is UTF-16 or binary",
            id="E-GRAD-ENCODING",
            path=path,
            needed="plain text (ASCII or UTF-8)",
            fix=f"iconv -f UTF-16 -t ASCII '{path.name}'",
        )
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
        oddities.append("byte-order mark")
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise InputDataError(
            f"byte {error.start} is no plain text",
            id="E-GRAD-ENCODING",
            path=path,
            needed="plain text (ASCII or UTF-8)",
            fix="save the file as plain text",
        ) from error
    if "\r\n" in text:
        oddities.append("Windows line ends")
    elif "\r" in text:
        oddities.append("old Macintosh line ends")
    return text.replace("\r\n", "\n").replace("\r", "\n"), oddities


def _tokens(content: str, number: int, path: Path, oddities: list[str]) -> list[str]:
    """The words of a line. A comma separates, unless blanks do too and the comma sits inside a word: then it is a decimal comma."""
    if ";" in content:
        raise InputDataError(
            f"line {number} is separated by semicolons",
            id="E-GRAD-TEXT",
            path=path,
            needed=_SPEC,
            fix="replace the semicolons by spaces",
        )
    if "\t" in content:
        oddities.append("tabs")
    if "," not in content:
        return content.split()
    if re.search(r"\d,\d", content) and re.search(r"[\d.]\s+[\d.+-]", content):
        raise InputDataError(
            f"line {number} seems to be written with decimal commas",
            id="E-GRAD-TEXT",
            path=path,
            needed=_SPEC,
            fix="replace the decimal commas by points",
        )
    oddities.append("commas")
    return [token.strip() for token in content.rstrip(", ").split(",")]


def _number(token: str, number: int, path: Path) -> float:
    if not _NUMBER.fullmatch(token):
        raise InputDataError(
            f"line {number} holds {token[:40]!r}, which is no decimal number",
            id="E-GRAD-TEXT",
            path=path,
            needed=_SPEC,
            fix="convert the series again, or correct the line",
        )
    return float(token)
