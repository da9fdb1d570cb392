"""Whether a stated probability is what comes true: reliability curve and expected calibration error.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
doi:10.48550/arXiv.1706.04599, equations 2, 3 and 5. Departure: the reliability curve's bins hold equal numbers of samples
where asked for, so that none is empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Reliability:
    """For each bin that has any: mean stated probability, share that came true, number of samples.

    ``error`` is the expected calibration error (mean distance of the two, weighted by the samples), ``brier`` the mean
    squared distance of the stated probability from what happened; NaN without samples.
    """

    stated: tuple[float, ...]
    observed: tuple[float, ...]
    counts: tuple[int, ...]
    error: float
    brier: float


def reliability(
    probability: Float[Tensor, " s"], came_true: Bool[Tensor, " s"], n_bins: int = 10, equal_counts: bool = False
) -> Reliability:
    """Samples gathered by their stated probability, in bins of equal width or of equal numbers of samples."""
    p, y = probability.detach().cpu().double(), came_true.cpu().double()
    if not len(p):
        return Reliability((), (), (), math.nan, math.nan)
    if equal_counts:
        rank = p.argsort(stable=True).argsort(stable=True)
        place = rank * n_bins // len(p)
    else:
        place = (p * n_bins).long().clamp(0, n_bins - 1)
    counts = torch.bincount(place, minlength=n_bins)
    used = counts > 0
    stated, observed = (torch.bincount(place, v, n_bins)[used] / counts[used] for v in (p, y))
    error = float(((stated - observed).abs() * counts[used]).sum() / len(p))
    return Reliability(
        tuple(stated.tolist()),
        tuple(observed.tolist()),
        tuple(counts[used].tolist()),
        error,
        float((p - y).square().mean()),
    )


def discrimination(score: Float[Tensor, " s"], came_true: Bool[Tensor, " s"]) -> float:
    """Probability that a sample that came true has the higher score (area under the ROC curve; ties count half).

    NaN where all or none came true.
    """
    good, bad = score[came_true].double(), score[~came_true].double()
    if not len(good) or not len(bad):
        return math.nan
    ordered = bad.sort().values
    below = torch.searchsorted(ordered, good)
    not_above = torch.searchsorted(ordered, good, right=True)
    return float((below + not_above).double().mean() / 2 / len(bad))
