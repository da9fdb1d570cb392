"""A mixture of Gaussians of tissues and of voxels that hold two of them, and a smooth field that multiplies the intensities.

Steps of EM for `tissue_segmentation`: J. Ashburner, K. J. Friston, NeuroImage 26:839 (2005),
doi:10.1016/j.neuroimage.2005.02.018; D. H. Laidlaw et al., IEEE TMI 17:74 (1998), doi:10.1109/42.668696. Departures: see there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

GREY, WHITE, CSF, OTHER = range(4)
_PAIRS = ((GREY, WHITE), (GREY, CSF), (WHITE, CSF))
_SHARES = (1 / 6, 1 / 2, 5 / 6)  # the middles of three equal parts of the way from one tissue to the other
_LEAST_VARIANCE = (
    1e-4  # a hundredth of the brain's middle intensity: rounding to integers, and the nought around a brain
)


@dataclass(frozen=True, eq=False)
class Mixture:
    """The Gaussians: three tissues, then those of what is not brain. Intensities are in units of the brain's middle one.

    Parameters
    ----------
    loads
        Share of each Gaussian in each component; pure components first.
    spread
        Variance that a component has because it stands for a range of shares.
    """

    mean: Float[Tensor, " g"]
    variance: Float[Tensor, " g"]
    weight: Float[Tensor, " k"]
    loads: Float[Tensor, "k g"]

    @property
    def means(self) -> Float[Tensor, " k"]:
        return self.loads @ self.mean

    @property
    def variances(self) -> Float[Tensor, " k"]:
        mixed = (self.loads[:, :, None] * self.loads[:, None, :] > 0).any(-1).sum(-1) > 1
        # A mixture of shares a ± 1/6: uniform over a third of the way between the two means.
        away = self.loads @ self.mean.square() - self.means.square()  # a (1 − a) Δ²
        shares = (self.loads * self.loads).sum(-1)  # a² + (1 − a)²
        gap = away / ((1 - shares) / 2).clamp_min(1e-9)
        return self.loads @ self.variance + torch.where(mixed, gap / 108, 0.0)

    @property
    def tissues(self) -> Float[Tensor, "k t"]:
        """Share of grey, white, CSF and the rest in every component."""
        return torch.cat((self.loads[:, :3], self.loads[:, 3:].sum(-1, keepdim=True)), dim=-1)


class Cosines:
    """Products of cosines over a box, of a total order of 1 to the highest: the logarithm of the field."""

    def __init__(self, shape: torch.Size, highest: int) -> None:
        orders = torch.cartesian_prod(*(torch.arange(highest + 1) for _ in range(3))).reshape(-1, 3)
        total = orders.sum(-1)
        self.orders = orders[(total >= 1) & (total <= highest)]
        self.axes = [
            torch.cos(torch.pi * (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n * torch.arange(highest + 1))
            for n in shape
        ]

    def at(self, index: Tensor) -> Float[Tensor, "v a"]:
        """Values of all functions at voxels (rows of indices)."""
        parts = [axis[index[:, d]][:, self.orders[:, d]] for d, axis in enumerate(self.axes)]
        return parts[0] * parts[1] * parts[2]

    def field(self, weights: Float[Tensor, " a"]) -> Float[Tensor, "i j k"]:
        n = self.axes[0].shape[1]
        table = torch.zeros(n, n, n, dtype=torch.float64)
        table[tuple(self.orders.T)] = weights
        return torch.einsum("abc,ia,jb,kc->ijk", table, *self.axes)


def start(values: Float[Tensor, " v"], prior: Float[Tensor, "v 4"], n_other: int) -> Mixture:
    """Tissues where the priors are surest; the rest at quantiles of what lies outside."""
    means, variances = [], []
    for tissue in (GREY, WHITE, CSF):
        weight = prior[:, tissue].square()
        middle = float((weight * values).sum() / weight.sum())
        means.append(middle)
        variances.append(float((weight * (values - middle).square()).sum() / weight.sum()) / 2)
    outside = values[prior[:, OTHER] > 0.5]
    outside = outside if len(outside) > n_other else values
    shares = (torch.arange(n_other, dtype=values.dtype) + 0.5) / n_other
    others = torch.quantile(outside[:: max(1, len(outside) // 100_000)], shares)
    spread = float(outside.var()) / n_other**2
    pure = torch.eye(3 + n_other, dtype=values.dtype)
    mixed = [share * pure[a] + (1 - share) * pure[b] for a, b in _PAIRS for share in _SHARES]
    loads = torch.cat((pure, torch.stack(mixed)))
    weight = torch.ones(len(loads), dtype=values.dtype)
    weight[3 : 3 + n_other] = 1 / n_other
    weight[3 + n_other :] = 1 / 3
    mean = torch.cat((torch.tensor(means, dtype=values.dtype), others))
    variance = torch.tensor([*variances, *[spread] * n_other], dtype=values.dtype)
    return Mixture(mean, variance.clamp_min(_LEAST_VARIANCE), weight, loads)


_LEAST_VARIANCE = (
    1e-4  # a hundredth of the brain's middle intensity: rounding to integers, and the nought around a brain
)


def memberships(
    values: Float[Tensor, " v"], log_prior: Float[Tensor, "v 4"], mixture: Mixture
) -> tuple[Float[Tensor, "v k"], Float[Tensor, " v"]]:
    """Of every component, and the log likelihood of every voxel."""
    means, variances = mixture.means.to(values.dtype), mixture.variances.to(values.dtype)
    constant = mixture.weight.clamp_min(1e-12).log().to(values.dtype) - variances.log() / 2
    logarithm = log_prior @ mixture.tissues.T.to(values.dtype) + constant
    logarithm = logarithm - (values[:, None] - means).square() / (2 * variances)
    total = torch.logsumexp(logarithm, dim=-1)
    return (logarithm - total[:, None]).exp(), total


def updated(
    mixture: Mixture, values: Float[Tensor, " v"], shares: Float[Tensor, "v k"], log_prior: Float[Tensor, "v 4"]
) -> Mixture:
    """The M step: means by weighted least squares on the loads, spreads from pure voxels, weights beside the priors'."""
    precision = shares.sum(0) / mixture.variances
    normal = torch.einsum("k,kg,kh->gh", precision, mixture.loads, mixture.loads)
    right = mixture.loads.T @ ((shares.T @ values) / mixture.variances)
    ridge = 1e-9 * normal.diagonal().sum() + 1e-12
    mean = torch.linalg.solve(normal + ridge * torch.eye(len(normal), dtype=normal.dtype), right + ridge * mixture.mean)
    pure = shares[:, : len(mean)]
    count = pure.sum(0)
    squares = (pure * (values[:, None] - mean).square()).sum(0)
    # One voxel's worth of the old spread keeps a Gaussian that nothing belongs to where it is.
    variance = ((squares + mixture.variance) / (count + 1)).clamp_min(_LEAST_VARIANCE)
    expected = (log_prior @ mixture.tissues.T).exp()
    weight = shares.sum(0) / (expected / (expected @ mixture.weight)[:, None]).sum(0).clamp_min(1e-12)
    return replace(mixture, mean=mean, variance=variance, weight=weight / weight.sum() * len(weight))


def field_step(
    weights: Float[Tensor, " a"],
    functions: Float[Tensor, "v a"],
    values: Float[Tensor, " v"],
    shares: Float[Tensor, "v k"],
    mixture: Mixture,
    orders: Tensor,
    stiffness: float,
) -> Float[Tensor, " a"]:
    """One Gauss–Newton step of the field's logarithm on the brain's share of every voxel."""
    brain = shares * mixture.tissues[:, :OTHER].sum(-1)
    inverse = 1 / mixture.variances
    count, precision, pull = brain.sum(-1), brain @ inverse, brain @ (mixture.means * inverse)
    slope = values * (precision * values - pull) - count
    curvature = values.square() * precision + count
    penalty = stiffness * float(count.sum()) * orders.sum(-1).double().pow(4)
    matrix = functions.T @ (curvature[:, None] * functions) + torch.diag(penalty)
    step = torch.linalg.solve(matrix, functions.T @ slope + penalty * weights)
    return weights - step
