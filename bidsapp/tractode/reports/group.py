"""The group page: one row a run, what each measure's distribution looks like, and which values stand out."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes

from tractode.reports import viewer
from tractode.reports.assemble import render
from tractode.reports.canvas import encode, new_figure

OUTLIER_LIMIT = 3.5  # robust standard deviations, Iglewicz & Hoaglin 1993
FEWEST = 5  # rows below which no value can be called an outlier


def group_report(
    rows: Sequence[Mapping[str, object]],
    *,
    title: str = "Group quality report",
    summary: Sequence[tuple[str, object]] = (),
    dictionary: Mapping[str, Mapping[str, object]] | None = None,
    links: Mapping[str, str] | None = None,
    provenance: Mapping[str, object] | None = None,
    errors: Sequence[Mapping[str, object]] = (),
    bundles: tuple[str, str] | None = None,
) -> str:
    """One HTML page from the rows of the QC table.

    ``dictionary`` gives each column's ``Description`` and ``Units``; ``links`` maps values of the first column to a
    participant's page, relative to this one. ``bundles`` is the map of `group_bundles.bundle_map` and its caption.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    complete = [{column: row.get(column, "n/a") for column in columns} for row in rows]
    measures = {column: numbers for column in columns if (numbers := _numbers(complete, column)) is not None}
    flagged = {(index, column) for column, numbers in measures.items() for index in outliers(numbers)}
    return render(
        "group.html.j2",
        viewer.group_scripts(),
        title=title,
        summary=list(summary),
        rows=complete,
        columns=columns,
        dictionary={key: dict(entry) for key, entry in (dictionary or {}).items()},
        links={str(key): target for key, target in (links or {}).items() if _is_relative(target)},
        provenance=dict(provenance or {}),
        errors=list(errors),
        flagged=flagged,
        limit=OUTLIER_LIMIT,
        fewest=FEWEST,
        figure=_distributions(measures, flagged),
        bundles=bundles,
    )


def outliers(numbers: Sequence[float]) -> list[int]:
    """Rows farther than `OUTLIER_LIMIT` robust standard deviations (1.4826 × MAD) from the median; NaN are not counted."""
    finite = [value for value in numbers if math.isfinite(value)]
    if len(finite) < FEWEST:
        return []
    centre = median(finite)
    spread = 1.4826 * median(abs(value - centre) for value in finite)
    if spread == 0:
        # More than half are equal: the mean absolute deviation takes the median one's place.
        spread = 1.2533 * sum(abs(value - centre) for value in finite) / len(finite)
    if spread == 0:
        return []
    return [
        i for i, value in enumerate(numbers) if math.isfinite(value) and abs(value - centre) > OUTLIER_LIMIT * spread
    ]


def _numbers(rows: Sequence[Mapping[str, object]], column: str) -> list[float] | None:
    """A column as numbers with NaN for missing values; ``None`` where it holds text or nothing."""
    numbers = []
    for row in rows:
        value = row[column]
        if isinstance(value, bool):
            return None
        if value is None or value in ("", "n/a"):
            numbers.append(math.nan)
            continue
        try:
            numbers.append(float(str(value)))
        except ValueError:
            return None
    return numbers if any(math.isfinite(value) for value in numbers) else None


def _distributions(measures: Mapping[str, Sequence[float]], flagged: set[tuple[int, str]]) -> str:
    """Small strips of points, one a measure, as the text of an ``src`` attribute; empty where there is no measure."""
    varied = list(measures)
    if not varied:
        return ""
    across = min(5, len(varied))
    down = math.ceil(len(varied) / across)
    figure = new_figure(270 * across, 210 * down, "white")
    for place, column in enumerate(varied):
        row, col = divmod(place, across)
        axes = figure.add_axes(((col + 0.3) / across, 1 - (row + 0.9) / down, 0.62 / across, 0.72 / down))
        _strip(axes, column, np.asarray(measures[column]), {i for i, name in flagged if name == column})
    return f"data:image/webp;base64,{base64.b64encode(encode(figure, 90)).decode()}"


def _strip(axes: Axes, column: str, values: np.ndarray, marked: set[int]) -> None:
    # Golden-ratio offsets keep the points apart without randomness.
    offset = (np.arange(len(values)) * 0.6180339887) % 1 - 0.5
    finite = np.isfinite(values)
    plain = finite & ~np.isin(np.arange(len(values)), list(marked))
    axes.plot(offset[plain], values[plain], "o", ms=4.5, color="#0b5cad", alpha=0.75, mew=0)
    axes.plot(offset[finite & ~plain], values[finite & ~plain], "o", ms=5.5, color="#b3261e", mew=0)
    axes.hlines(float(np.median(values[finite])), -0.6, 0.6, color="#5b6675", lw=1)
    axes.set_xlim(-0.8, 0.8)
    axes.set_xticks([])
    axes.set_title(column if len(column) <= 28 else column[:27] + "…", fontsize=8.5)
    axes.tick_params(labelsize=7)
    axes.margins(y=0.12)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _is_relative(target: str) -> bool:
    """Links of the group page stay inside the output folder: no scheme, no host, no way up, no odd character."""
    return bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", target)) and ".." not in target.split("/")
