"""The lobes of functions on the sphere: axes divided among the peaks that steepest ascent from them leads to.

Smith, Tournier, Calamante & Connelly, *SIFT: spherical-deconvolution informed filtering of tractograms*, NeuroImage
2013, doi:10.1016/j.neuroimage.2012.11.049 (appendix 2: segmentation of lobes). Departures: amplitudes are taken on 600
axes instead of 1281 directions, and a direction belongs to the lobe that steepest ascent from it leads to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.ops import least_squares, sphere
from tractode.ops import spherical_harmonics as sh
from tractode.ops.lobe_walk import divide

N_AXES = 600
TILE = 4096  # functions at a time: 600 amplitudes each, some 10 MB
_NEIGHBOURS = 8


@dataclass(frozen=True, eq=False)
class Lobes:
    """Up to ``k`` lobes of each function, the largest first; rows beyond ``count`` are zero.

    ``means`` are unit axes weighted by amplitude, ``tips`` the axes (of the 600) where lobes are largest, ``integrals`` those
    over the sphere.
    """

    count: Int[Tensor, " v"]
    means: Float[Tensor, "v k 3"]
    tips: Float[Tensor, "v k 3"]
    integrals: Float[Tensor, "v k"]

    @property
    def kept(self) -> Tensor:
        """Which rows are lobes."""
        return torch.arange(self.integrals.shape[1]) < self.count[:, None]


def lobes_of(coefficients: Float[Tensor, "v l"], order: int, least_peak: float, most: int) -> Lobes:
    """Lobes of functions given by harmonics; those whose peak is below ``least_peak`` are dropped. Computed on the CPU."""
    axes, neighbours = _set()
    basis = sh.basis(axes.double(), order).float()
    n = len(coefficients)
    count, integral = np.zeros(n, np.int64), np.zeros((n, most))
    mean, tip = np.zeros((n, most, 3), np.float32), np.zeros((n, most), np.int64)
    for start in range(0, n, TILE):
        part = slice(start, start + TILE)
        # In tiles of one size: a product of matrices rounds differently for another number of rows.
        rows = least_squares.in_tiles(lambda tile: tile @ basis.mT, coefficients[part].detach().cpu().float(), TILE)
        divide(
            rows.numpy(),
            axes.numpy(),
            neighbours.numpy(),
            least_peak,
            count[part],
            mean[part],
            integral[part],
            tip[part],
        )
    kept = torch.arange(most) < torch.from_numpy(count)[:, None]
    solid_angle = 4 * math.pi / N_AXES  # an axis stands for two opposite patches of the sphere
    integrals = torch.from_numpy(integral * solid_angle).float() * kept
    return Lobes(
        torch.from_numpy(count),
        torch.from_numpy(mean) * kept[..., None],
        axes[torch.from_numpy(tip)] * kept[..., None],
        integrals,
    )


@cache
def _set() -> tuple[Float[Tensor, "d 3"], Int[Tensor, "d n"]]:
    """The axes and, for each, its neighbours (across the equator too, where axes are each other's opposite)."""
    axes = sphere.directions(N_AXES, hemisphere=True)
    order = (axes @ axes.mT).abs().argsort(dim=-1, descending=True, stable=True)
    return axes.float(), order[:, 1 : _NEIGHBOURS + 1].contiguous()
