"""Each volume of a series predicted from all the others, by a Gaussian process on the sphere and over b-values.

J. L. R. Andersson, S. N. Sotiropoulos, *Non-parametric representation and prediction of single- and multi-shell diffusion-weighted MRI
data using Gaussian processes*, NeuroImage 122:166 (2015), doi:10.1016/j.neuroimage.2015.07.067; leaving one out without fitting again:
C. E. Rasmussen, C. K. I. Williams, *Gaussian Processes for Machine Learning*, MIT Press 2006, section 5.4.2.

The prediction is one matrix times the series: all voxels share it. Departures: the covariance over directions is a sum of Legendre
polynomials of even degree, each with a variance of its own, in place of the spherical model, whose kink at equal directions makes it
predict worse than smooth signals can be; all variances are found together, the most likely ones given the second moments of the brain's
voxels; b=0 volumes are predicted by the mean of the other b=0 volumes.
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

_DEGREES = (0, 2, 4, 6)
_FLOOR = 100.0  # s/mm²; below it log b would make too much of small differences
_GROWN = 1000.0  # s/mm²; by about here a degree has grown to its full size
_LEAST, _MOST = -7.0, 2.0  # of the logarithm of a standard deviation


@dataclass(frozen=True)
class Process:
    """What a Gaussian process says of two volumes; signals are shares of the b=0 image.

    Parameters
    ----------
    sizes
        Standard deviations of the parts of degree 0, 2, 4, 6 of the signal of a voxel.
    spread
        Over how much of the logarithm of b signals are alike.
    noise
        Standard deviation of what no other volume tells of.
    """

    sizes: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01)
    spread: float = 0.7
    noise: float = 0.05

    def undirected(self) -> Process:
        """The same without what depends on the direction, which is noise then."""
        apart = math.hypot(self.noise, *self.sizes[1:])
        return Process((self.sizes[0], *(1e-6 for _ in self.sizes[1:])), self.spread, apart)

    def covariance(self, gtab: GradientTable) -> Float[Tensor, "n n"]:
        """Of the noise-free signals of every two volumes."""
        logs = torch.tensor([*self.sizes, self.spread], dtype=torch.float64).log()
        return torch.einsum("l,lmn->mn", (2 * logs[:-1]).exp(), _parts(gtab)) * _near(gtab, logs[-1])


def _parts(gtab: GradientTable) -> Float[Tensor, "l n n"]:
    """The Legendre polynomial of each degree, for every two volumes; degree l grows as b to the power l/2 at first."""
    directions, b = gtab.bvecs.double(), gtab.bvals.double() / _GROWN
    cosine = (directions @ directions.mT).clamp(-1, 1).numpy()
    parts = []
    for degree in _DEGREES:
        size = torch.ones_like(b) if degree == 0 else 1 - torch.exp(-(b ** (degree / 2)))
        legendre = np.polynomial.legendre.Legendre.basis(degree)(cosine)
        parts.append(torch.from_numpy(legendre) * size[:, None] * size)
    return torch.stack(parts)


def _near(gtab: GradientTable, log_spread: Float[Tensor, ""]) -> Float[Tensor, "n n"]:
    log_b = gtab.bvals.double().clamp_min(_FLOOR).log()
    return torch.exp(-0.5 * ((log_b[:, None] - log_b) / log_spread.exp()).square())


def fitted(gtab: GradientTable, moments: Float[Tensor, "n n"]) -> Process:
    """The process that makes the second moments of the voxels (means of products over voxels) most likely; weighted volumes only."""
    moments, parts, one = moments.double(), _parts(gtab), torch.eye(len(moments), dtype=torch.float64)
    start = Process()
    first = np.log([*start.sizes, start.noise, start.spread])
    varied = float(gtab.bvals.max()) > 1.2 * float(gtab.bvals.min().clamp_min(_FLOOR))

    def cost(logs: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(logs, requires_grad=True)
        sizes = (2 * leaf[:5]).exp()
        # One shell alone says nothing of the spread over b.
        near = _near(gtab, leaf[5]) if varied else 1.0
        total = torch.einsum("l,lmn->mn", sizes[:4], parts) * near + sizes[4] * one
        factor = torch.linalg.cholesky(total)
        value = torch.cholesky_solve(moments, factor).trace() + 2 * factor.diagonal().log().sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()

    bounds = [(_LEAST, _MOST)] * 4 + [(-6.0, 0.0), (-2.0, 1.5)]
    found = minimize(cost, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x
    values = np.exp(found).tolist()
    return Process(tuple(values[:4]), values[5], values[4])


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
