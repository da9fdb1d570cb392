"""The kind of sampling a gradient table is: shells, a Cartesian grid in q-space, or neither.

Grid (DSI): Wedeen et al. 2005, https://doi.org/10.1002/mrm.20642.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from tractode.fields.gradients import GradientTable

Scheme = Literal["single-shell", "multi-shell", "grid", "scattered"]

_GAP = 50.0
_MOST_SHELLS = 7


def clusters(bvals: np.ndarray) -> list[np.ndarray]:
    """Indices of b-values that belong together: neighbours nearer than 50 s/mm² or 5 %."""
    order = np.argsort(bvals, kind="stable")
    breaks = [
        n for n in range(1, len(order)) if bvals[order[n]] - bvals[order[n - 1]] > max(_GAP, 0.05 * bvals[order[n]])
    ]
    return [np.sort(part) for part in np.split(order, breaks)] if len(order) else []


def scheme_of(gtab: GradientTable) -> Scheme:
    """Shells, a Cartesian grid in q-space, whichever way it is turned, or neither; b = 0 apart."""
    weighted = ~gtab.is_b0
    bvals, bvecs = gtab.bvals[weighted].detach().cpu().numpy(), gtab.bvecs[weighted].detach().cpu().numpy()
    groups = clusters(bvals)
    if len(groups) <= 1:
        return "single-shell"
    if len(groups) >= 4 and _is_lattice(bvals, bvecs):
        return "grid"
    # A shell needs more than a direction or two; scattered b-values make many small groups.
    return "multi-shell" if len(groups) <= _MOST_SHELLS and np.median([len(g) for g in groups]) >= 3 else "scattered"


def _is_lattice(bvals: np.ndarray, bvecs: np.ndarray) -> bool:
    q = np.sqrt(bvals / bvals.min())[:, None] * bvecs
    # The grid may be turned against the scanner: its axes are the shortest q that are at right angles.
    shortest = bvecs[bvals < 1.2 * bvals.min()]
    axes = _right_angled(shortest)
    if axes is None:
        return False
    steps = q @ axes.T
    return bool((np.abs(steps - np.round(steps)).max(axis=1) < 0.15).mean() > 0.9)


def _right_angled(vectors: np.ndarray) -> np.ndarray | None:
    """Three of the vectors that stand at right angles, as rows."""
    chosen: list[np.ndarray] = []
    for vector in vectors:
        if all(abs(vector @ other) < 0.1 for other in chosen):
            chosen.append(vector)
    if len(chosen) != 3:
        return None
    u, _, vh = np.linalg.svd(np.array(chosen))
    return u @ vh
