"""Which volumes are b = 0, and whether a tensor can be fitted to the directions of the others.

Condition number of the tensor design: Skare et al. 2000, https://doi.org/10.1006/jmre.2000.2209.
"""

from __future__ import annotations

import numpy as np

from tractode.fields import GradientTable
from tractode.fields.scheme import clusters

_ALWAYS_B0, _AT_MOST_B0, _GAP = 50.0, 100.0, 50.0


def find_b0(bvals: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Which volumes are b = 0: the lowest cluster of b-values, if it is low enough.

    The cluster starts at the least b-value and grows while steps are at most 50 s/mm². It may reach 50, or 100 where
    the next b-value is at least three times its highest. ``threshold`` (s/mm²) replaces the rule.
    """
    if threshold is not None:
        return bvals <= threshold
    levels = np.unique(bvals)
    limit = _AT_MOST_B0 if _has_gap(levels) else _ALWAYS_B0
    top = -np.inf
    for level in levels:
        if level > limit or (np.isfinite(top) and level - top > _GAP):
            break
        top = float(level)
    return bvals <= top


def _has_gap(levels: np.ndarray) -> bool:
    low, high = levels[levels <= _AT_MOST_B0], levels[levels > _AT_MOST_B0]
    return bool(len(low) and len(high) and high.min() >= 3 * low.max())


def design_condition(bvecs: np.ndarray) -> float:
    """Condition number of the tensor's design by these unit directions; infinite where its rank is below 6."""
    x, y, z = bvecs.T
    singular = np.linalg.svd(np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1), compute_uv=False)
    if len(singular) < 6 or singular[-1] < 1e-4 * singular[0]:
        return float("inf")
    return float(singular[0] / singular[-1])


def count_axes(bvecs: np.ndarray, tolerance_deg: float = 1.0) -> int:
    """How many different axes there are, opposite directions counted once."""
    kept: list[np.ndarray] = []
    for vector in bvecs:
        if all(abs(vector @ other) < np.cos(np.radians(tolerance_deg)) for other in kept):
            kept.append(vector)
    return len(kept)


def describe(gtab: GradientTable) -> str:
    """Shells in words: ``2 b=0; b=995–1005: 12 directions``."""
    weighted = (~gtab.is_b0).nonzero().ravel().numpy()
    bvals = gtab.bvals.numpy()
    parts = [f"{int(gtab.is_b0.sum())} b=0"]
    for group in clusters(bvals[weighted]):
        low, high = bvals[weighted][group].min(), bvals[weighted][group].max()
        span = f"{low:.0f}" if high - low < 0.5 else f"{low:.0f}–{high:.0f}"
        parts.append(f"b={span}: {len(group)} directions")
    return "; ".join(parts)
