"""Runs of one session that are parts of one measurement, as one run: ``--combine-runs all``.

What a merged run is called: the entities that all its parts share, so ``sub-01_dir-AP_run-1`` and ``sub-01_dir-PA_run-1`` become
``sub-01_run-1``. Each part keeps its own phase encoding and correction; the series are joined after that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tractode.bids import names
from tractode.bids.found import DwiRun, Participant
from tractode.errors import TractodeError
from tractode.io.gradient_text import read_bvals
from tractode.io.notes import Note, info, warning

_B0 = 50.0  # s/mm²; a run with nothing above it measures the field, not diffusion


def combined(participant: Participant) -> tuple[Participant, list[Note]]:
    """The participant with runs of one session and grid (shape and voxel sizes) made one, and what was done, in words.

    Corrections stay those of the parts. A run of b=0 volumes alone is left to the field's estimate.
    """
    from tractode.io.nifti_affine import read_geometry

    groups: dict[tuple[Any, ...], list[DwiRun]] = defaultdict(list)
    for run in participant.runs:
        geometry = read_geometry(run.path)
        groups[(run.session, geometry[:2] if geometry else run.path, run.done_by)].append(run)
    runs: list[DwiRun] = []
    notes: list[Note] = []
    for members in groups.values():
        weighted = [run for run in members if _is_weighted(run.bval)]
        if len(weighted) < 2 and len(weighted) == len(members):
            runs += members
            continue
        if lone := [run.name for run in members if run not in weighted and weighted]:
            notes.append(info("N-COMBINE-B0", f"{', '.join(lone)}: b=0 volumes only; used for the field, not merged"))
        kept = weighted or members
        runs += [_merged(kept)] if len(kept) > 1 else kept
    taken = [run.name for run in runs]
    if len(set(taken)) < len(taken):
        text = f"sub-{participant.label}: runs of different grids would get one name when merged; they stay apart"
        return participant, [warning("W-COMBINE-NAMES", text)]
    return replace(participant, runs=tuple(runs)), notes


def _merged(parts: Sequence[DwiRun]) -> DwiRun:
    first = parts[0]
    entities = _shared([part.entities for part in parts])
    sidecars = tuple(dict.fromkeys(path for part in parts for path in part.sidecars))
    metadata = _shared([part.metadata for part in parts])
    return replace(
        first, metadata=metadata, entities=entities, name=names.stem(entities), sidecars=sidecars, parts=tuple(parts)
    )


def _shared(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in tables[0].items() if all(table.get(key) == value for table in tables)}


def _is_weighted(bval: Path) -> bool:
    """Whether any b-value says diffusion; a table that cannot be read is its run's own problem."""
    try:
        values, _ = read_bvals(bval)
    except TractodeError:
        return True
    return bool((values > _B0).any())
