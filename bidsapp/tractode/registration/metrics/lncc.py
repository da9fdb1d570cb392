"""Squared local normalised cross-correlation.

P. Cachier et al., "Iconic feature based nonrigid registration: the PASHA algorithm", CVIU 89:272 (2003),
doi:10.1016/S1077-3142(03)00002-X; as the cost of registration: B. B. Avants et al., Medical Image Analysis 12:26 (2008),
doi:10.1016/j.media.2007.06.004, equation 6.

Departures: windows are boxes that count only voxels inside the mask and the image; flat windows, whose correlation would be
that of noise, are held to 0 by a floor under the variances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import SimilarityMetric
from tractode.ops import smooth


@dataclass(frozen=True)
class LNCC(SimilarityMetric):
    """``1 − mean of cov(F, M)² / (var F var M)`` over windows centred on every voxel of the mask.

    Parameters
    ----------
    radius
        Of the windows, voxels: 4 is the 9 × 9 × 9 of the 2008 paper.
    floor
        Added to the variances, as a share of their mean over the mask.
    """

    radius: int = 4
    floor: float = 1e-3
    is_multimodal: ClassVar[bool] = True
    invariances: ClassVar[frozenset[str]] = frozenset({"linear", "shading"})
    needs_grid: ClassVar[bool] = True

    def __call__(
        self,
        fixed: Float[Tensor, "c i j k"],
        moving: Float[Tensor, "c i j k"],
        mask: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        weight = torch.ones_like(fixed[0]) if mask is None else mask.to(fixed)
        squares = [self.correlation(f, m, weight) for f, m in zip(fixed, moving, strict=True)]
        return 1 - (torch.stack(squares).mean(0) * weight).sum() / weight.sum().clamp_min(1e-6)

    def correlation(
        self, fixed: Float[Tensor, "i j k"], moving: Float[Tensor, "i j k"], weight: Float[Tensor, "i j k"]
    ) -> Float[Tensor, "i j k"]:
        """The squared correlation in the window around every voxel, between 0 and 1."""
        f, m = _centred(fixed, weight), _centred(moving, weight)
        sums = window_means(
            torch.stack([weight, weight * f, weight * m, weight * f * f, weight * m * m, weight * f * m]), self.radius
        )
        count = sums[0].clamp_min(1e-6)
        f_mean, m_mean, ff, mm, fm = (sums[1:] / count).unbind(0)
        f_var, m_var = (ff - f_mean.square()).clamp_min(0), (mm - m_mean.square()).clamp_min(0)
        return squared_correlation(fm - f_mean * m_mean, f_var, m_var, weight, self.floor)


def squared_correlation(
    covariance: Float[Tensor, "*v"],
    f_var: Float[Tensor, "*v"],
    m_var: Float[Tensor, "*v"],
    weight: Float[Tensor, "*v"],
    floor: float,
) -> Float[Tensor, "*v"]:
    """``cov² / (var F var M)`` with a floor under both variances relative to their weighted means."""
    total = weight.sum().clamp_min(1e-6)
    f_floor, m_floor = (floor * (v * weight).sum() / total + 1e-12 for v in (f_var, m_var))
    return covariance.square() / ((f_var + f_floor) * (m_var + m_floor))


def window_means(values: Float[Tensor, "c i j k"], radius: int) -> Float[Tensor, "c i j k"]:
    """Sums over cubes of ``2 radius + 1`` voxels over their full number; beyond the image there is nothing."""
    kernel = torch.full((2 * radius + 1,), 1 / (2 * radius + 1), dtype=values.dtype, device=values.device)
    for axis in range(3):
        values = smooth.convolve(values, kernel, axis, border="zero")
    return values


def _centred(values: Float[Tensor, "i j k"], weight: Float[Tensor, "i j k"]) -> Float[Tensor, "i j k"]:
    """Less the mean over the mask: differences of large squares would lose the small ones."""
    return values - (values.detach() * weight).sum() / weight.sum().clamp_min(1e-6)
