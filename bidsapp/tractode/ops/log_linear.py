"""Fits of models whose log signal is linear in their parameters: ``ln S = X β``, in the five usual ways.

Weights of Veraart et al., *Weighted linear least squares estimation of diffusion MRI parameters: strengths, limitations,
and pitfalls*, NeuroImage 2013, doi:10.1016/j.neuroimage.2013.05.028: the variance of a log signal is σ²/S², so squares
of signals are the weights, better those of a first fit than the noisy ones. Departure: signals at or below zero are raised
to 10⁻⁴ of the voxel's largest before the logarithm.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import native
from tractode.ops.least_squares import Design, in_threads, in_tiles
from tractode.ops.levenberg_marquardt import levenberg_marquardt
from tractode.ops.rician_fit import rician_fit

Method = Literal["ols", "wls", "iwls", "nlls", "rician"]
METHODS: tuple[Method, ...] = ("ols", "wls", "iwls", "nlls", "rician")
FLOOR = 1e-4
N_REWEIGHTS = 2
_TILE = 512
_GROUP = 16  # voxels that are fitted side by side
_KERNEL = "tractode.ops.log_linear_kernel"
_SMALL = 8  # systems up to this size are quicker in torch than the compiled loop is to load
_ROUNDS = {"ols": 0, "wls": 1, "iwls": 1 + N_REWEIGHTS}
_LARGEST_EXPONENT = 20.0  # a fit that predicts more than e²⁰ times the largest signal is none; its weights stay finite


def fit_voxels(
    signal: Float[Tensor, "v n"], design: Design, method: Method, sigma: float | None = None
) -> Float[Tensor, "v p"]:
    """`fit` of any number of voxels, by tiles and threads; the linear fits of float32 signals are compiled ones."""
    differentiable = torch.is_grad_enabled() and signal.requires_grad
    plain = signal.dtype == torch.float32 and signal.device.type == "cpu" and not differentiable
    if method in _ROUNDS and plain and design.matrix.shape[1] > _SMALL:
        return _compiled(signal, design, method)
    return in_tiles(lambda tile: fit(tile, design, method, sigma), signal, _TILE, threaded=method != "rician")


def _compiled(signal: Float[Tensor, "v n"], design: Design, method: Method) -> Float[Tensor, "v p"]:
    """The linear fits in one pass; voxels without a solution are left to `fit`."""
    single = design.cast(torch.float32)
    chosen, place, factor = single.products
    matrices = [_columns(m) for m in (single.inverse, single.matrix, single.matrix.mT, chosen)]
    params = signal.new_empty(len(signal), design.matrix.shape[1])
    arrays = [signal.detach().contiguous().numpy(), *matrices, place.numpy(), factor.numpy(), params.numpy()]
    (v, n), p, m = signal.shape, params.shape[1], matrices[-1].shape[1]
    limits = (_ROUNDS[method], int(method == "iwls"), FLOOR, _LARGEST_EXPONENT)

    def work(begin: int, end: int) -> None:
        memory = _aligned(16 * (3 * n + 3 * m + 6 * p + p * p // 4 + 100))
        native.call(_KERNEL, "fit_rows", *arrays, memory, v, n, p, m, len(memory), *limits, begin, end)

    in_threads(work, v, _GROUP)
    if not bool(params.sum().isfinite()):  # quicker than to look at each
        lost = ~torch.isfinite(params).all(-1)
        params[lost] = in_tiles(lambda tile: fit(tile, design, method), signal[lost], _TILE, threaded=True)
    return params


def _aligned(size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Float64 numbers that begin on a 64-byte line."""
    whole = np.empty(size + 8)
    first = -whole.ctypes.data % 64 // 8
    return whole[first : first + size]


def _columns(matrix: Float[Tensor, "n p"]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """By columns, filled up with zeros to a multiple of 8 rows."""
    return torch.nn.functional.pad(matrix.mT, (0, -len(matrix) % 8)).contiguous().numpy()


def fit(
    signal: Float[Tensor, "t n"], design: Design, method: Method, sigma: float | None = None
) -> Float[Tensor, "t p"]:
    """``β`` of each row; the last column of X is that of ln S₀. Systems are solved in float64; dtype follows the signal.

    ``ols``; ``wls``: one round with weights from the ordinary fit; ``iwls``: weights from the signals, then two rounds with
    weights from the last fit (as MRtrix3 ``dwi2tensor``); ``nlls``: least squares of the signals; ``rician``: the greatest
    likelihood under Rician noise of the given standard deviation, or of one estimated in the voxel.
    """
    if method in ("nlls", "rician"):
        return _nonlinear(signal.to(torch.float64), design, sigma if method == "rician" else 0.0).to(signal.dtype)
    return linear(*logarithm(signal), design, method)[0].mT.to(signal.dtype)


def logarithm(signal: Float[Tensor, "t n"]) -> tuple[Float[Tensor, "n t"], Float[Tensor, " t"]]:
    """Log signals over the voxel's largest, volumes first, kept above `FLOOR`; and the logarithm of the largest."""
    columns = signal.mT.contiguous()
    tiny = torch.finfo(signal.dtype).tiny
    largest = columns.amax(0).clamp_min(tiny / FLOOR)
    level = largest.detach().log()  # a mere unit: nothing depends on it
    return torch.maximum(columns, FLOOR * largest).log() - level, level


def linear(
    logs: Float[Tensor, "n t"], level: Float[Tensor, " t"], design: Design, method: Method
) -> tuple[Float[Tensor, "p t"], Float[Tensor, "n t"] | None]:
    """Parameters (float64) by one of the three linear methods, and the weights of the last round.

    Each round solves for what it adds to the last, from the residuals: the long sums of float32 data may then be formed in
    float32, which is good to 10⁻⁵ of the noise.
    """
    single = design.cast(logs.dtype)
    params = single.ordinary(logs).to(torch.float64)
    weights = None
    for index in range(_ROUNDS[method]):
        rounded = params.to(logs.dtype)
        predicted = single.predict(rounded)
        values = logs if method == "iwls" and index == 0 else predicted.clamp_max(_LARGEST_EXPONENT)
        weights = (2 * values).exp()
        params = rounded.to(torch.float64) + single.weighted(logs - predicted, weights).to(torch.float64)
    return torch.cat([params[:-1], params[-1:] + level.to(torch.float64)]), weights


def _nonlinear(signal: Float[Tensor, "t n"], design: Design, sigma: float | None) -> Float[Tensor, "t p"]:
    """Least squares of signals (``sigma`` 0), or the greatest likelihood, from the weighted fit; each voxel in units of its largest."""
    logs, level = logarithm(signal.detach())
    start = linear(logs, torch.zeros_like(level), design, "wls")[0].mT
    unit = signal / level.exp()[:, None]

    def predict(params: Tensor) -> Tensor:
        return (params @ design.matrix.mT).exp()

    def linearised(params: Tensor) -> tuple[Tensor, Tensor]:
        value = predict(params)
        return value, value[..., None] * design.matrix

    found = levenberg_marquardt(predict, unit, start, linearised=linearised)
    if sigma is None or sigma > 0:
        noise = None if sigma is None else sigma / level.exp()[:, None]
        found = rician_fit(predict, unit, found.detach(), noise, linearised=linearised)
    return torch.cat([found[:, :-1], found[:, -1:] + level[:, None]], -1)
