"""Similarity at scattered points: what linear registration minimises, from points of both images.

Each cost is made of a tally that adds up over points, so that the points of the fixed image, mapped forward, and those of the
moving one, mapped back, enter one tally and neither image is more than the other. Local costs keep a tally for each group of
points that lie close together. The measures are those of ``registration/metrics`` of the same names: Studholme et al. 1999 (``nmi``), Thévenaz
& Unser 2000 (``mi``), Klein et al. 2008 (``lmi``), Roche et al. 1998 (``cr``) and Cachier et al. 2003 (``lncc``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.registration.metrics.lncc import squared_correlation
from tractode.registration.metrics.local_mutual_information import window_information
from tractode.registration.metrics.mutual_information import mutual_information, normalised_mutual_information, parzen


@dataclass(frozen=True)
class PointCost(ABC):
    """A cost of intensities in [0, 1] at points of both images.

    Parameters
    ----------
    bins
        Of histograms.
    group
        Points of a group; 0 puts all points into one.
    width
        Half the edge of the cube that a group is drawn from: mm, or voxels of the level where ``in_voxels``.
    """

    bins: int = 32
    group: int = 0
    width: float = 0.0
    in_voxels: bool = False
    # Whether the tally is one joint histogram and nothing else: then loops over points can make it (`ops.joint_histogram`).
    is_joint_histogram: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, unit: Float[Tensor, "g p"]) -> Float[Tensor, "g p b"]:
        """What of an image's intensities the tally needs; computed once for the points of the image itself."""

    @abstractmethod
    def tally(
        self, fixed: Float[Tensor, "g p b"], moving: Float[Tensor, "g p b"], weight: Float[Tensor, "g p"]
    ) -> Float[Tensor, "g *t"]:
        """Sums over the points of each group."""

    @abstractmethod
    def cost(self, tally: Float[Tensor, "g *t"]) -> Float[Tensor, ""]:
        """The cost of all tallies."""

    def together(self, first: Tensor, second: Tensor) -> Tensor:
        """The tallies of both sets of points: more groups, or more points in the one."""
        return torch.cat([first, second]) if self.group else first + second


class _Histogram(PointCost):
    def prepare(self, unit: Float[Tensor, "g p"]) -> Float[Tensor, "g p b"]:
        return parzen(unit.reshape(-1), self.bins).reshape(*unit.shape, self.bins)

    def tally(
        self, fixed: Float[Tensor, "g p b"], moving: Float[Tensor, "g p b"], weight: Float[Tensor, "g p"]
    ) -> Float[Tensor, "g *t"]:
        return (fixed * weight[..., None]).mT @ moving


@dataclass(frozen=True)
class NormalisedInformation(_Histogram):
    is_joint_histogram: ClassVar[bool] = True

    def cost(self, tally: Float[Tensor, "g *t"]) -> Float[Tensor, ""]:
        return -normalised_mutual_information(tally[0])


@dataclass(frozen=True)
class Information(_Histogram):
    is_joint_histogram: ClassVar[bool] = True

    def cost(self, tally: Float[Tensor, "g *t"]) -> Float[Tensor, ""]:
        return -mutual_information(tally[0])


@dataclass(frozen=True)
class LocalInformation(_Histogram):
    def cost(self, tally: Float[Tensor, "g *t"]) -> Float[Tensor, ""]:
        information, weight = window_information(tally)
        return -(information * weight).sum() / weight.sum().clamp_min(1e-10)


@dataclass(frozen=True)
class Ratio(PointCost):
    """The mean of the correlation ratios of both directions."""

    def prepare(self, unit: Float[Tensor, "g p"]) -> Float[Tensor, "g p b"]:
        windows = parzen(unit.reshape(-1), self.bins).reshape(*unit.shape, self.bins)
        # Around the middle of the range, so that squares of means are not lost beside those of values.
        return torch.cat([windows, unit[..., None] - 0.5], dim=-1)

    def tally(
        self, fixed: Float[Tensor, "g p b"], moving: Float[Tensor, "g p b"], weight: Float[Tensor, "g p"]
    ) -> Float[Tensor, "g *t"]:
        return torch.stack([self._one_way(fixed, moving, weight), self._one_way(moving, fixed, weight)], dim=1)

    def _one_way(self, given: Tensor, values: Tensor, weight: Tensor) -> Float[Tensor, "g b 3"]:
        """Of each bin: weight, sum, and sum of squares."""
        y = values[..., -1]
        powers = torch.stack([torch.ones_like(y), y, y.square()], dim=-1)
        return (given[..., :-1] * weight[..., None]).mT @ powers

    def cost(self, tally: Float[Tensor, "g *t"]) -> Float[Tensor, ""]:
        counts, sums, squares = tally[0].unbind(-1)
        total, mean = counts.sum(-1).clamp_min(1e-10), sums.sum(-1) / counts.sum(-1).clamp_min(1e-10)
        variance = squares.sum(-1) / total - mean.square()
        explained = (sums.square() / counts.clamp_min(1e-10)).sum(-1) / total - mean.square()
        return 1 - (explained / variance.clamp_min(1e-10)).mean()


@dataclass(frozen=True)
class LocalCorrelation(PointCost):
    """One less the mean squared correlation of the groups."""

    def prepare(self, unit: Float[Tensor, "g p"]) -> Float[Tensor, "g p b"]:
        return unit[..., None] - 0.5

    def tally(
        self, fixed: Float[Tensor, "g p b"], moving: Float[Tensor, "g p b"], weight: Float[Tensor, "g p"]
    ) -> Float[Tensor, "g *t"]:
        f, m = fixed[..., 0], moving[..., 0]
        moments = torch.stack([torch.ones_like(f), f, m, f * f, m * m, f * m], dim=-1)
        return (moments * weight[..., None]).sum(1)

    def cost(self, tally: Float[Tensor, "g *t"]) -> Float[Tensor, ""]:
        # A group seen in part counts by its part.
        weight = tally[:, 0]
        f, m, ff, mm, fm = (tally[:, 1:] / weight.clamp_min(1e-6)[:, None]).unbind(-1)
        f_var, m_var = (ff - f.square()).clamp_min(0), (mm - m.square()).clamp_min(0)
        squares = squared_correlation(fm - f * m, f_var, m_var, weight, 0.01)
        return 1 - (squares * weight).sum() / weight.sum().clamp_min(1e-6)


POINT_COSTS: dict[str, Callable[[int], PointCost]] = {
    "nmi": NormalisedInformation,
    "mi": Information,
    "lmi": lambda bins: LocalInformation(max(8, bins // 2), group=600, width=20.0),
    "cr": Ratio,
    "lncc": lambda bins: LocalCorrelation(bins, group=40, width=2.5, in_voxels=True),
}


def point_cost(name: str, bins: int) -> PointCost:
    """The cost of that name; local ones take coarser histograms, since each has few points."""
    if name not in POINT_COSTS:
        raise KeyError(f"There is no cost at points named {name!r}; choose from {', '.join(POINT_COSTS)}.")
    return POINT_COSTS[name](bins)
