"""The ways a gradient table is commonly wrong, by name: exchanged and mirrored axes of the bvec file, and how to undo them."""

from __future__ import annotations

from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import UsageError
from tractode.fields import GradientTable
from tractode.ops import affine as aff


def candidate_fixes() -> dict[str, Float[Tensor, "3 3"]]:
    """The 24 signed permutations of a bvec file's rows that differ as axes: ``identity`` first.

    ``swapxy_flipz`` means: exchange rows x and y, then change the sign of the new z. ``cyclexyz`` takes the rows
    y, z, x as the new x, y, z, and ``cyclexzy`` the rows z, x, y.
    """
    words: dict[tuple[int, ...], str] = {
        (0, 1, 2): "",
        (1, 0, 2): "swapxy",
        (2, 1, 0): "swapxz",
        (0, 2, 1): "swapyz",
        (1, 2, 0): "cyclexyz",
        (2, 0, 1): "cyclexzy",
    }
    fixes: dict[str, Float[Tensor, "3 3"]] = {}
    for order in sorted(permutations(range(3)), key=lambda order: list(words).index(order)):
        # A change of all three signs is none: directions are axes. One flip at most tells the four classes apart.
        for flips in [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)]:
            name = "_".join(
                part for part in (words[order], *("flip" + "xyz"[i] for i in range(3) if flips[i] < 0)) if part
            )
            matrix = torch.zeros(3, 3, dtype=torch.float64)
            for row, column in enumerate(order):
                matrix[row, column] = flips[row]
            fixes[name or "identity"] = matrix
    return fixes


def apply_fix(gtab: GradientTable, affine: Float[Tensor, "4 4"], name: str) -> GradientTable:
    """The table after one of `candidate_fixes` was applied to its bvec file; raises `UsageError` for another name."""
    fixes = candidate_fixes()
    if name not in fixes:
        raise UsageError(
            f"There is no gradient fix named {name!r}",
            id="E-CLI-GRADIENT-FIX",
            needed="one of " + ", ".join(list(fixes)[1:]),
        )
    return gtab.rotated(in_scanner(fixes[name], affine))


def _file_axes(affine: Float[Tensor, "4 4"]) -> Float[Tensor, "3 3"]:
    """``R F``: takes a vector of a bvec file to the scanner frame (HOUSE §3)."""
    axes = aff.axis_directions(affine)
    flip = axes.new_tensor([-1.0, 1.0, 1.0]) if float(torch.det(axes)) > 0 else torch.ones(3).to(axes)
    return axes * flip


def in_scanner(change: Float[Tensor, "3 3"], affine: Float[Tensor, "4 4"]) -> Float[Tensor, "3 3"]:
    axes = _file_axes(affine)
    return axes @ change @ torch.linalg.inv(axes)
