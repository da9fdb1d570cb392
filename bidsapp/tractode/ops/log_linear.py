"""Fits of models whose log signal is linear in their parameters: ``ln S = X β``, in the five usual ways.

Weights of Veraart et al., *Weighted linear least squares estimation of diffusion MRI parameters: strengths, limitations,
and pitfalls*, NeuroImage 2013, doi:10.1016/j.neuroimage.2013.05.028: the variance of a log signal is σ²/S², so squares
of signals are the weights, better those of a first fit than the noisy ones. Departure: signals at or below zero are raised
to 10⁻⁴ of the voxel's largest before the logarithm.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops.least_squares import Design
from tractode.ops.levenberg_marquardt import levenberg_marquardt
from tractode.ops.rician_fit import rician_fit

Method = Literal["ols", "wls", "iwls", "nlls", "rician"]
METHODS: tuple[Method, ...] = ("ols", "wls", "iwls", "nlls", "rician")
FLOOR = 1e-4
N_REWEIGHTS = 2
_LARGEST_EXPONENT = 20.0  # a fit that predicts more than e²⁰ times the largest signal is none; its weights stay finite


def fit(
    signal: Float[Tensor, "t n"], design: Design, method: Method, sigma: float | None = None
) -> Float[Tensor, "t p"]:
    """``β`` of each row; the last column of X is that of ln S₀. float64 inside, the signal's dtype outside.

    ``ols``; ``wls``: one round with weights from the ordinary fit; ``iwls``: weights from the signals, then two rounds with
    weights from the last fit (as MRtrix3 ``dwi2tensor``); ``nlls``: least squares of the signals; ``rician``: the greatest
    likelihood under Rician noise of the given standard deviation, or of one estimated in the voxel.
    """
    signal64 = signal.to(torch.float64)
    logs = logarithm(signal64)
    if method in ("nlls", "rician"):
        return _nonlinear(signal64, logs, design, sigma if method == "rician" else 0.0).to(signal.dtype)
    return linear(logs, design, method)[0].mT.to(signal.dtype)


def logarithm(signal: Float[Tensor, "t n"]) -> Float[Tensor, "n t"]:
    """Log signals, volumes first, kept above `FLOOR` of the voxel's largest."""
    columns = signal.mT.contiguous()
    largest = columns.amax(0).clamp_min(torch.finfo(signal.dtype).tiny / FLOOR)
    return torch.maximum(columns, FLOOR * largest).log()


def linear(
    logs: Float[Tensor, "n t"], design: Design, method: Method
) -> tuple[Float[Tensor, "p t"], Float[Tensor, "n t"] | None]:
    """Parameters by one of the three linear methods, and the weights of the last round."""
    if method == "ols":
        return design.ordinary(logs), None
    largest = logs.amax(0)
    if method == "wls":
        params, rounds = design.ordinary(logs), 1
    else:
        params, rounds = design.weighted(logs, (2 * (logs - largest)).exp()), N_REWEIGHTS
    weights = None
    for _ in range(rounds):
        # Twice the exponent and the scale are put into the parameters, of which there are fewer.
        doubled = torch.cat([2 * params[:-1], 2 * (params[-1:] - largest)])
        weights = design.predict(doubled).clamp_max(2 * _LARGEST_EXPONENT).exp()
        params = design.weighted(logs, weights)
    return params, weights


def _nonlinear(
    signal: Float[Tensor, "t n"], logs: Float[Tensor, "n t"], design: Design, sigma: float | None
) -> Float[Tensor, "t p"]:
    """Least squares of signals (``sigma`` 0), or the greatest likelihood, from the weighted fit; each voxel in units of its largest."""
    largest = logs.detach().amax(0)
    start = linear(logs.detach(), design, "wls")[0].mT.clone()
    start[:, -1] -= largest
    unit = signal / largest.exp()[:, None]

    def predict(params: Tensor) -> Tensor:
        return (params @ design.matrix.mT).exp()

    found = levenberg_marquardt(predict, unit, start)
    if sigma is None or sigma > 0:
        level = None if sigma is None else sigma / largest.exp()[:, None]
        found = rician_fit(predict, unit, found.detach(), level)
    return torch.cat([found[:, :-1], found[:, -1:] + largest[:, None]], -1)
