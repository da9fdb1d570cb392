"""One damped step and its judgement, for compiled searches that go voxel by voxel.

Marquardt, J SIAM 1963, doi:10.1137/0111030, with the damping of `tractode.ops.levenberg_marquardt`, whose iteration this is.
"""

from __future__ import annotations

import math
from typing import Any

from tractode.ops.compile import inner

FIRST_DAMPING = 1e-3
LARGEST_DAMPING = 1e16
_EPS = 2.220446049250313e-16


@inner
def step(normal: Any, right: Any, damping: Any, factor: Any, delta: Any, p: int) -> Any:
    """Solves ``(N/√sᵢsⱼ + λ) y = r/√s`` into ``delta = y/√s``, s the diagonal; the decrease expected, −1 where it cannot."""
    for i in range(p):
        scale_i = normal[i, i] if normal[i, i] > 0 else 1.0
        for j in range(i + 1):
            scale_j = normal[j, j] if normal[j, j] > 0 else 1.0
            total = normal[i, j] / (scale_i * scale_j) ** 0.5
            if i == j:
                total += damping
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            if i == j:
                if not total > 0:
                    return -1.0
                factor[i, i] = total**0.5
            else:
                factor[i, j] = total / factor[j, j]
        total = right[i] / scale_i**0.5
        for k in range(i):
            total -= factor[i, k] * delta[k]
        delta[i] = total / factor[i, i]
    for i in range(p - 1, -1, -1):
        total = delta[i]
        for k in range(i + 1, p):
            total -= factor[k, i] * delta[k]
        delta[i] = total / factor[i, i]
    expected = 0.0
    for i in range(p):
        scale = normal[i, i] if normal[i, i] > 0 else 1.0
        delta[i] /= scale**0.5
        expected += delta[i] * (damping * scale * delta[i] + right[i])
    return expected


@inner
def gain(before: Any, after: Any, expected: Any) -> Any:
    """The decrease as a share of the expected one; 1 where a cost is too coarse a measure to tell."""
    noise = 8 * _EPS * before
    if expected <= noise and after - before <= noise:
        return 1.0
    share = (before - after) / max(expected, 1e-300)
    return -1.0 if math.isnan(share) else share


@inner
def softer(share: Any) -> Any:
    """What the damping is multiplied by after a step that was worth ``share`` of what was expected (Nielsen 1999)."""
    bent = 2 * min(max(share, 0.0), 1.0) - 1
    return max(1 / 3, 1 - bent * bent * bent)


@inner
def settled(normal: Any, x: Any, delta: Any, tolerance: Any, p: int) -> Any:
    """Whether a step changes the prediction by no more than ``tolerance``, relatively."""
    moved, size = 0.0, 0.0
    for i in range(p):
        scale = normal[i, i] if normal[i, i] > 0 else 1.0
        moved += scale * delta[i] * delta[i]
        size += scale * x[i] * x[i]
    return moved <= tolerance * tolerance * size
