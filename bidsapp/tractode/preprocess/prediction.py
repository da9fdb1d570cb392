"""Each volume of a series predicted from all the others, by a Gaussian process on the sphere and over b-values.

J. L. R. Andersson, S. N. Sotiropoulos, *Non-parametric representation and prediction of single- and multi-shell diffusion-weighted MRI
data using Gaussian processes*, NeuroImage 122:166 (2015), doi:10.1016/j.neuroimage.2015.07.067; leaving one out without fitting again:
C. E. Rasmussen, C. K. I. Williams, *Gaussian Processes for Machine Learning*, MIT Press 2006, section 5.4.2.

The prediction is one matrix times the series: all voxels share it. Departures: the mean over directions is a second process that depends
on the b-value alone, and all parameters are found together from the second moments of the brain's voxels; b=0 volumes are predicted by
the mean of the other b=0 volumes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from torch import Tensor

from tractode.fields.gradients import GradientTable

# Standard deviations of the mean and of the changes with direction, angle (rad) at which directions share nothing, spread of
# log b, standard deviation of the noise; signals are shares of the b=0 image.
_START = (0.3, 0.08, 1.2, 0.5, 0.05)
_LEAST = (0.03, 0.01, 0.4, 0.1, 0.003)
_MOST = (3.0, 1.0, math.pi / 2, 3.0, 1.0)
_FLOOR = 100.0  # s/mm²; below it log b would make too much of small differences


@dataclass(frozen=True)
class Process:
    """What a Gaussian process says of two volumes: see `_START` for the units."""

    mean: float = _START[0]
    angular: float = _START[1]
    angle: float = _START[2]
    spread: float = _START[3]
    noise: float = _START[4]

    def covariance(self, gtab: GradientTable) -> Float[Tensor, "n n"]:
        """Of the noise-free signals of every two volumes."""
        log_b = gtab.bvals.double().clamp_min(_FLOOR).log()
        near = torch.exp(-0.5 * ((log_b[:, None] - log_b) / self.spread).square())
        directions = gtab.bvecs.double()
        apart = torch.arccos((directions @ directions.mT).abs().clamp(max=1.0)) / self.angle
        alike = torch.where(apart < 1, 1 - 1.5 * apart + 0.5 * apart**3, 0.0)
        return near * (self.mean**2 + self.angular**2 * alike)


def fitted(gtab: GradientTable, moments: Float[Tensor, "n n"]) -> Process:
    """The process that makes the second moments of the voxels (means of products over voxels) most likely; weighted volumes only."""
    moments = moments.double()
    # Searched as logarithms; beyond the bounds the cost rises, so that the search comes back.
    low, high = np.log(_LEAST), np.log(_MOST)

    def cost(logs: np.ndarray) -> float:
        process = Process(*np.exp(np.clip(logs, low, high)).tolist())
        total = process.covariance(gtab) + process.noise**2 * torch.eye(len(moments), dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(total)
        if int(failed):
            return 1e12
        explained = torch.cholesky_solve(moments, factor).trace()
        beyond = np.square(logs - np.clip(logs, low, high)).sum()
        return float(explained + 2 * factor.diagonal().log().sum()) + float(beyond)

    found = minimize(cost, np.log(_START), method="Nelder-Mead", options={"maxfev": 300, "xatol": 0.02, "fatol": 1e-3})
    return Process(*np.exp(np.clip(found.x, low, high)).tolist())


def left_out(gtab: GradientTable, process: Process, present: Bool[Tensor, " n"] | None = None) -> Float[Tensor, "n n"]:
    """The matrix whose row predicts a volume from all others that are ``present``; the diagonal is 0.

    A volume without any other of its kind has a row that is itself.
    """
    n = len(gtab)
    present = torch.ones(n, dtype=torch.bool) if present is None else present.cpu()
    is_b0 = gtab.is_b0.cpu()
    weights = torch.zeros(n, n, dtype=torch.float64)
    seen = (is_b0 & present).double()
    others = seen.repeat(n, 1).fill_diagonal_(0.0)
    weights[is_b0] = (others / others.sum(-1, keepdim=True).clamp_min(1.0))[is_b0]
    weighted = (~is_b0).nonzero()[:, 0]
    if len(weighted) > 1:
        weights[weighted[:, None], weighted] = _process_rows(gtab[weighted], process, present[weighted])
    alone = weights.abs().sum(-1) == 0
    weights[alone, alone.nonzero()[:, 0]] = 1.0
    return weights


def _process_rows(gtab: GradientTable, process: Process, present: Bool[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Conditional means given the volumes that are present, each left out of its own."""
    signal = process.covariance(gtab).cpu()
    total = signal + process.noise**2 * torch.eye(len(signal), dtype=torch.float64)
    known = present.nonzero()[:, 0]
    rows = torch.zeros_like(total)
    if len(known):
        precision = torch.linalg.inv(total[known[:, None], known])
        # Of those present: y − K⁻¹y / diag K⁻¹ (eq. 5.12); of the others: K* K⁻¹.
        rows[known[:, None], known] = -precision / precision.diagonal()[:, None]
        rows[known, known] = 0.0
        missing = (~present).nonzero()[:, 0]
        rows[missing[:, None], known] = signal[missing[:, None], known] @ precision
    return rows


def predicted(weights: Float[Tensor, "n n"], series: Float[Tensor, "n *v"]) -> Float[Tensor, "n *v"]:
    """The matrix times the series."""
    return (weights.to(series) @ series.flatten(1)).reshape(series.shape)
