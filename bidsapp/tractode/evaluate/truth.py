"""Maps, directions, transforms and fields against the truth they were simulated from."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import SpaceMismatchError
from tractode.fields import Transform
from tractode.ops import sphere

Scores = dict[str, float | int]


def scalar_error(
    estimate: Float[Tensor, "i j k"], truth: Float[Tensor, "i j k"], mask: Bool[Tensor, "i j k"]
) -> Scores:
    """Mean difference (``bias``) and mean absolute difference (``mae``) over a mask, with the number of voxels."""
    difference = (estimate.double() - truth.double())[mask]
    return {"bias": _mean(difference), "mae": _mean(difference.abs()), "n": int(mask.sum())}


def direction_error(
    estimate: Float[Tensor, "3 i j k"], truth: Float[Tensor, "3 i j k"], mask: Bool[Tensor, "i j k"]
) -> Scores:
    """Angles between axes over a mask, degrees: mean, median and 95th percentile. A missing (zero) estimate counts as 90°."""
    given, wanted = estimate[:, mask].mT.double(), truth[:, mask].mT.double()
    norm = given.norm(dim=-1, keepdim=True)
    angle = torch.rad2deg(
        sphere.angle(given / norm.clamp(min=1e-12), wanted / wanted.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    )
    angle = torch.where(norm[:, 0] > 1e-6, angle, torch.full_like(angle, 90.0))
    if not len(angle):
        return {"mean": math.nan, "median": math.nan, "p95": math.nan, "n": 0}
    ordered = angle.sort().values
    return {
        "mean": float(angle.mean()),
        "median": float(angle.median()),
        "p95": float(ordered[math.ceil(0.95 * len(ordered)) - 1]),
        "n": len(angle),
    }


def warp_error(estimate: Transform, truth_inverse: Transform, points: Float[Tensor, "p 3"]) -> Scores:
    """End-point error in the space of ``points``, mm: how far ``estimate`` brings each point back from where it truly is.

    ``truth_inverse`` maps the points (of the template) to the participant, ``estimate`` the participant to the template.
    """
    if truth_inverse.target != estimate.source or truth_inverse.source != estimate.target:
        raise SpaceMismatchError(
            f"The truth goes {truth_inverse.source!r} → {truth_inverse.target!r} and the estimate {estimate.source!r} → {estimate.target!r}: they should be inverse to each other."
        )
    error = (estimate.map(truth_inverse.map(points.double())) - points).norm(dim=-1)
    before = (truth_inverse.map(points.double()) - points).norm(dim=-1)
    return {
        "mean": _mean(error),
        "median": float(error.median()),
        "max": float(error.max()),
        "mean_before": _mean(before),
        "n": len(points),
    }


def map_error(estimate: Transform, truth: Transform, points: Float[Tensor, "p 3"]) -> Scores:
    """Distance (mm) between where two transforms carry the same points, and how far the true one carries them."""
    if truth.source != estimate.source or truth.target != estimate.target:
        raise SpaceMismatchError(
            f"The truth goes {truth.source!r} → {truth.target!r} and the estimate {estimate.source!r} → {estimate.target!r}."
        )
    there = truth.map(points.double())
    error = (estimate.map(points.double()) - there).norm(dim=-1)
    before = (there - points).norm(dim=-1)
    return {
        "mean": _mean(error),
        "median": float(error.median()),
        "p95": float(error.quantile(0.95)),
        "max": float(error.max()),
        "mean_before": _mean(before),
        "n": len(points),
    }


def field_error(estimate: Float[Tensor, "i j k"], truth: Float[Tensor, "i j k"], mask: Bool[Tensor, "i j k"]) -> Scores:
    """Absolute difference (Hz) of two fields over a mask: median and 95th percentile.

    ``bias`` is the median difference. A pair of opposite encodings leaves it open (it is a shift of both), so the same numbers
    without it follow. ``rms_before`` is the field itself: the error of assuming none.
    """
    wanted = truth.double()[mask]
    off = estimate.double()[mask] - wanted
    bias = off.median()
    left = (off - bias).abs()
    return {
        "median": float(off.abs().median()),
        "p95": float(_quantile(off.abs(), 0.95)),
        "bias": float(bias),
        "median_without_bias": float(left.median()),
        "p95_without_bias": float(_quantile(left, 0.95)),
        "rms": float(off.square().mean().sqrt()),
        "rms_before": float(wanted.square().mean().sqrt()),
        "n": len(off),
    }


def _quantile(values: Float[Tensor, " v"], share: float) -> Float[Tensor, ""]:
    """`torch.quantile` without its limit of 16 million values."""
    return values.sort().values[min(len(values) - 1, int(share * len(values)))]


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
