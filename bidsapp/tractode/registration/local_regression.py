"""How much of one image others explain in windows: a correlation ratio in which each window has a linear model of its own.

A. Roche et al., "Unifying maximum likelihood approaches in medical image registration", Int J Imaging Syst Technol 11:71 (2000),
doi:10.1002/(SICI)1098-1098(2000)11:1<71::AID-IMA8>3.0.CO;2-5, on regression as a measure of similarity. Departures: the model is a
line on a few given images (a contrast, its square, a mask) in place of a function of one intensity, and holds in a window, as coil
shading asks for; windows are 3 × 3 × 3 cells of a lattice and overlap by two thirds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_RIDGE = 0.01  # of the variance of a regressor: where it is flat in a window it explains nothing
_FLOOR = 0.01  # of the mean variance of windows: what is flatter than that counts for less


@dataclass(frozen=True, eq=False)
class LocalRegression:
    """Regressors, ready to explain images on their grid.

    Parameters
    ----------
    regressors
        Of mean 0 and variance 1 where there is weight.
    cell
        Edge of a cell, voxels.
    count, means
        Of every window: weight, and mean of each regressor.
    factor
        Rows of the Cholesky factor of every window's covariance of the regressors.
    """

    regressors: Float[Tensor, "r i j k"]
    weight: Float[Tensor, "i j k"]
    cell: int
    count: Float[Tensor, "x y z"]
    means: Float[Tensor, "r x y z"]
    factor: tuple[tuple[Float[Tensor, "x y z"], ...], ...]

    @classmethod
    def of(cls, images: Float[Tensor, "r i j k"], weight: Float[Tensor, "i j k"], cell: int) -> LocalRegression:
        total = weight.sum().clamp_min(1e-6)
        centred = images - (images * weight).sum((1, 2, 3), keepdim=True) / total
        spread = ((centred.square() * weight).sum((1, 2, 3), keepdim=True) / total).sqrt()
        unit = centred / spread.clamp_min(1e-6)
        n = len(unit)
        pairs = [(a, b) for a in range(n) for b in range(a + 1)]
        products = torch.stack([unit[a] * unit[b] for a, b in pairs])
        sums = window_sums(torch.cat([torch.ones_like(unit[:1]), unit, products]) * weight, cell)
        count = sums[0]
        means, squares = (sums[1:] / count.clamp_min(1e-6)).split((n, len(pairs)))
        covariances = {(a, b): squares[at] - means[a] * means[b] for at, (a, b) in enumerate(pairs)}
        return cls(unit, weight, cell, count, means, _cholesky(covariances, n))

    def unexplained(self, image: Float[Tensor, "i j k"]) -> Float[Tensor, ""]:
        """The mean over windows of the share of the image's variance that the regressors leave, 0 to 1."""
        weight, count = self.weight, self.count.clamp_min(1e-6)
        y = image - (image.detach() * weight).sum() / weight.sum().clamp_min(1e-6)
        own = torch.stack([y * weight, y.square() * weight])
        sums = window_sums(torch.cat([own, self.regressors * own[:1]]), self.cell) / count
        variance = (sums[1] - sums[0].square()).clamp_min(0)
        shared = sums[2:] - self.means * sums[0]
        parts: list[Float[Tensor, "x y z"]] = []
        for row, value in zip(self.factor, shared, strict=True):
            known = [entry * part for entry, part in zip(row, parts, strict=False)]
            parts.append((value - torch.stack(known).sum(0) if known else value) / row[-1])
        explained = torch.stack(parts).square().sum(0)
        total = self.count.sum().clamp_min(1e-6)
        floor = _FLOOR * (variance * self.count).sum() / total + 1e-12
        return 1 - (explained / (variance + floor) * self.count).sum() / total


def window_sums(values: Float[Tensor, "c i j k"], cell: int) -> Float[Tensor, "c x y z"]:
    """Means (a constant times sums) over windows of 3 × 3 × 3 cells, one around each cell; beyond the image there is nothing."""
    missing = [-n % cell for n in values.shape[1:]]
    padded = functional.pad(values, [0, missing[2], 0, missing[1], 0, missing[0]])
    cells = functional.avg_pool3d(padded[None], cell, stride=cell)
    return functional.avg_pool3d(functional.pad(cells, [1] * 6), 3, stride=1)[0]


def _cholesky(covariances: dict[tuple[int, int], Tensor], n: int) -> tuple[tuple[Tensor, ...], ...]:
    """Lower rows, written out: a batched factorisation of many small matrices is slower."""
    rows: list[tuple[Tensor, ...]] = []
    for a in range(n):
        row: list[Tensor] = []
        for b in range(a + 1):
            value = covariances[a, b]
            for c in range(b):
                value = value - row[c] * (row[c] if a == b else rows[b][c])
            row.append((value + _RIDGE).clamp_min(1e-6).sqrt() if a == b else value / rows[b][b])
        rows.append(tuple(row))
    return tuple(rows)
