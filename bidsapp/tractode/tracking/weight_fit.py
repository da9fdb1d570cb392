"""What a fit of streamline weights is asked for and what it gives, whichever model it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Image

Progress = Callable[[int, float], None]
"""Called with the number of the iteration and the objective."""


@dataclass(frozen=True)
class Regularisation:
    """How weights are held back.

    For the FOD's model both act on the logarithms of the weights and are in units of the mean squared fibre density a
    line, as those of SIFT2: ``tikhonov`` keeps them near 0, ``variation`` near those of the lines beside them. For the
    signal's model ``tikhonov`` acts on the weights themselves, in units of a line's squared signal; ``variation`` is
    not used.
    """

    tikhonov: float = 0.0
    variation: float = 0.1


@dataclass(frozen=True, eq=False)
class WeightFit:
    """Weights of a tractogram's lines and how well they explain the data.

    ``mu`` turns the summed lengths of lines of weight 1 (mm) into what is explained: fibre density a mm, or signal a
    mm³/mm³. ``target``, ``before`` and ``after`` hold the data and their explanation by equal and by fitted weights,
    element by element (fixels that any line follows, or crossed voxels × volumes). ``maps``: ``residual`` and ``explained``, by voxel.
    """

    weights: Float[Tensor, " s"]
    mu: float
    model: str
    objective: tuple[float, ...]
    n_iterations: int
    converged: bool
    target: Float[Tensor, " e"]
    before: Float[Tensor, " e"]
    after: Float[Tensor, " e"]
    maps: dict[str, Image]

    def statistics(self) -> dict[str, dict[str, float]]:
        """`agreement` of target and explanation, before and after the fit."""
        return {"before": agreement(self.target, self.before), "after": agreement(self.target, self.after)}


def agreement(target: Float[Tensor, " e"], explained: Float[Tensor, " e"]) -> dict[str, float]:
    """Sum of squared differences (``sse``), ``rmse``, and R² about the target's mean; NaN where there is nothing."""
    if not len(target):
        return {"sse": math.nan, "rmse": math.nan, "r2": math.nan, "n": 0}
    wanted, given = target.double(), explained.double()
    sse = float((wanted - given).square().sum())
    spread = float((wanted - wanted.mean()).square().sum())
    r2 = 1 - sse / spread if spread > 0 else math.nan
    return {"sse": sse, "rmse": math.sqrt(sse / len(wanted)), "r2": r2, "n": len(wanted)}


def check_lines(n_lines: int) -> None:
    """A fit needs lines: `ValueError` otherwise."""
    if n_lines == 0:
        raise ValueError("Weights were asked for of a tractogram without streamlines; make some first.")


def voxel_map(grid_shape: tuple[int, int, int], voxel: Tensor, values: Tensor) -> Float[Tensor, "1 i j k"]:
    """Values of some ravelled voxels on their grid, 0 elsewhere, float32."""
    out = torch.zeros(math.prod(grid_shape), dtype=torch.float32)
    out[voxel] = values.float()
    return out.reshape(1, *grid_shape)
