"""Tables of motion and quality as text, with a dictionary of their columns (``spec/quality.yaml``)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tractode.bids.spec_files import load

MISSING = "n/a"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tab-separated values with a header; a row that lacks a column has ``n/a``."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["\t".join(columns)]
    lines += ["\t".join(_text(row.get(name)) for name in columns) for row in rows]
    return "\n".join(lines) + "\n"


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of one length as rows."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def dictionary(kind: str, columns: Sequence[str]) -> dict[str, Any]:
    """What a table's columns mean; ``CNR2_mean`` is explained by ``CNR_mean``."""
    known = load("quality")[kind]
    return {name: dict(known.get(name) or known[re.sub(r"^CNR\d+", "CNR", name)]) for name in columns}


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)
