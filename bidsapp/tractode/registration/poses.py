"""Where to start a linear registration: a grid of poses, and short descents from the best of them that lie well apart.

Many starts and few descents, as M. Jenkinson, S. Smith, "A global optimisation method for robust affine registration of brain
images", Medical Image Analysis 5:143 (2001), doi:10.1016/S1361-8415(01)00036-6. Departures: normalised mutual information at points of both
images; and the grid holds with every pose of one image against the other the inverse pose, so that the search is the same
from either side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import affine as aff
from tractode.registration.halfway import RADIUS, Dof, Halfway, step
from tractode.registration.point_costs import point_cost

if TYPE_CHECKING:
    from tractode.registration.linear_level import Level, Pair

Matrix = Float[Tensor, "4 4"]
# Along the body's long axis, where fields of view differ most, and front to back.
_SHIFTS = (
    (0.0, 0.0, 0.0),
    *((0.0, y, z) for y, z in ((0.0, 20.0), (0.0, -20.0), (0.0, 40.0), (0.0, -40.0), (20.0, 0.0), (-20.0, 0.0))),
)
_COARSE = tuple(itertools.product((-30.0, 0.0, 30.0), repeat=3))
_FINE = ((0.0, 0.0, 0.0), *(tuple(s * 15.0 if a == n else 0.0 for a in range(3)) for n in range(3) for s in (1, -1)))


def search(pair: Pair, dof: Dof) -> Matrix:
    """The start of the descent."""
    from tractode.registration.affine import descend

    # With one mask, strictly inside it: at its rim, brain against nothing rivals head against air, and heads come out
    # too large. With two, each brain is cut out and its outline says most of where and how large it is.
    settings = pair.settings
    both = pair.fixed_mask is not None and pair.moving_mask is not None
    pair = replace(pair, stripped=both, settings=replace(settings, margin=settings.search_margin if both else 0.0))
    coarse = point_cost("nmi", settings.search_bins)
    level = pair.level(settings.search_level, settings.search_points, coarse)
    finer = pair.level(settings.search_level, 2 * settings.search_points, coarse)
    ends = []
    for scale in (1.0,) if dof == "rigid" else settings.search_scales:
        for start in _starts(level, scale, settings.starts):
            end = descend(finer, start, "rigid", settings)
            ends.append(end if dof == "rigid" else descend(finer, end[0], "similarity", settings))
    finalists = _apart(_sorted(ends), level, settings.finalists, 4.0)
    if len(finalists) == 1:
        return finalists[0]
    level = pair.level(settings.levels[0], settings.points // 2, point_cost("nmi", settings.bins))
    return _sorted([descend(level, start, dof, settings) for start in finalists])[0]


def _starts(level: Level, scale: float, n: int) -> list[Matrix]:
    """The best poses of one size that lie well apart."""
    ranked = _rank(level, _grid(level, scale))
    turned = []
    for matrix in _apart(ranked, level, 2 * n):
        around = Halfway(matrix, level.fixed.centre, level.moving.centre)
        turned += [around.pose(_parameters((0.0, 0.0, 0.0), turn)) for turn in _FINE]
    return _apart(_rank(level, turned), level, n)


def _grid(level: Level, scale: float) -> list[Matrix]:
    """Poses over guesses of where the heads are, shifts and turns; of the exchanged images, the same poses inverted."""
    fixed, moving = level.fixed, level.moving
    between = (fixed.centre + moving.centre) / 2
    guesses = ((fixed.centre, moving.centre), (fixed.middle, moving.middle), (between, between))
    poses = []
    for (source, target), shift, turn in itertools.product(guesses, _SHIFTS, _COARSE):
        matrix = step(_parameters(shift, turn, scale), torch.zeros(3, dtype=torch.float64))
        matrix[:3, 3] += target - matrix[:3, :3] @ source
        poses.append(matrix)
    return poses


def _parameters(shift: Sequence[float], degrees: Sequence[float], scale: float = 1.0) -> Float[Tensor, " p"]:
    turn = RADIUS * np.deg2rad(np.asarray(degrees, dtype=np.float64))
    size = [] if scale == 1.0 else [RADIUS * np.log(scale)]
    return torch.tensor([*shift, *turn, *size], dtype=torch.float64)


def _rank(level: Level, poses: Sequence[Matrix]) -> list[Matrix]:
    """The poses, best first."""
    with torch.no_grad():
        return _sorted([(pose, level.evaluate(pose)[0].item()) for pose in poses])


def _sorted(scored: Sequence[tuple[Tensor, float]]) -> list[Tensor]:
    return [matrix for matrix, _ in sorted(scored, key=lambda item: item[1])]


def _apart(ranked: Sequence[Tensor], level: Level, n: int, distance: float = 12.0) -> list[Tensor]:
    """The first ``n`` poses that move points of both images by ``distance`` mm or more on average from one another."""
    some, others = (
        side.points.reshape(-1, 3)[:: max(1, side.points.shape[:-1].numel() // 50)].double().cpu()
        for side in (level.fixed, level.moving)
    )
    kept: list[tuple[Tensor, Tensor]] = []
    for matrix in ranked:
        here = torch.cat([aff.apply_affine(matrix, some), aff.apply_affine(torch.linalg.inv(matrix), others)])
        if all(float((here - there).norm(dim=-1).mean()) >= distance for _, there in kept):
            kept.append((matrix, here))
        if len(kept) == n:
            break
    return [matrix for matrix, _ in kept]
