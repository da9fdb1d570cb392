"""Response functions as MRtrix3 writes them: a line of zonal coefficients (even degrees 0, 2, …) for each b-value.

The b-values stand in a comment before them, ``# Shells: 0,1000,3000``; where it is missing (``responsemean`` writes none) their
order tells, as in MRtrix3 itself. Units are those of the signal.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from tractode.errors import InputDataError
from tractode.io.atomic import atomic_path
from tractode.models.tissue_response import TISSUES, TissueResponse


def load_response(path: Path | str, tissue: str = "wm") -> TissueResponse:
    """The response in a file.

    Without the comment that names them the b-values are NaN (see `TissueResponse.placed`). Raises `InputDataError`
    (E-RESPONSE-FILE).
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [[float(number) for number in line.replace(",", " ").split()] for line in lines if _is_data(line)]
    except (OSError, ValueError) as error:
        raise _refused(path, f"It cannot be read as lines of numbers ({error})") from error
    if not rows or not all(math.isfinite(number) for row in rows for number in row):
        raise _refused(path, "It has no line of finite numbers")
    found = [match.group(1) for line in lines if (match := re.match(r"#\s*shells\s*:\s*(.*)$", line, re.IGNORECASE))]
    bvals = [float(number) for number in found[-1].replace(",", " ").split()] if found else [math.nan] * len(rows)
    if len(bvals) != len(rows):
        raise _refused(path, f"It has {len(rows)} lines of coefficients and {len(bvals)} b-values")
    if tissue not in TISSUES:
        raise ValueError(f"A response is of {', '.join(TISSUES)}; got {tissue!r}.")
    width = max(len(row) for row in rows)
    values = torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64)
    try:
        return TissueResponse(tissue, torch.tensor(bvals, dtype=torch.float64), values, "given")
    except ValueError as error:
        raise _refused(path, str(error)) from error


def save_response(response: TissueResponse, path: Path | str) -> None:
    """Writes the file, with nine digits."""
    shells = ",".join(f"{float(b):.10g}" for b in response.bvals)
    rows = [" ".join(f"{float(c):.9g}" for c in row) for row in response.coefficients]
    with atomic_path(Path(path)) as temporary:
        temporary.write_text("\n".join([f"# Shells: {shells}", *rows]) + "\n", encoding="utf-8")


def _is_data(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _refused(path: Path, what: str) -> InputDataError:
    return InputDataError(
        what,
        id="E-RESPONSE-FILE",
        path=path,
        needed="a line of coefficients for each b-value, and the b-values as '# Shells: 0,1000,…'",
    )
