"""Phase without its jumps of 2π: weighted least squares on the differences of neighbours, then the nearest multiple.

D. C. Ghiglia, L. A. Romero, *Robust two-dimensional weighted and unweighted phase unwrapping*, JOSA A 11:107 (1994),
doi:10.1364/JOSAA.11.000107, in three dimensions. Departures: the equations are solved by conjugate gradients with a
diagonal preconditioner; the smooth answer only chooses the multiple of 2π, so that the phase itself is never changed
by anything else.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

TURN = 2 * math.pi


def unwrap(
    phase: Float[Tensor, "i j k"], weight: Float[Tensor, "i j k"], iterations: int = 400, tolerance: float = 1e-4
) -> Float[Tensor, "i j k"]:
    """The phase (rad) plus whole turns, so that neighbours of weight differ little; its weighted median is within half a turn of 0.

    ``weight`` (≥ 0) says how far a voxel's phase can be believed: magnitude in the head, 0 in air.
    """
    weight = weight / weight.amax().clamp_min(1e-12)
    pairs = [torch.minimum(weight.narrow(a, 1, n - 1), weight.narrow(a, 0, n - 1)) for a, n in enumerate(phase.shape)]
    # A little everywhere, so that nothing is left undetermined.
    shares = [pair.square() + 1e-6 for pair in pairs]
    steps = [share * wrapped(phase.diff(dim=axis)) for axis, share in enumerate(shares)]
    smooth = _solve(shares, _divergence(steps), iterations, tolerance)
    apart = smooth - phase
    # The least-squares answer is free by a constant: the one that makes it differ from the phase by whole turns.
    circle = torch.polar(weight, apart).sum()
    turns = ((apart - circle.angle()) / TURN).round()
    found = phase + TURN * turns
    believed = found[weight > 0.2]
    return found - TURN * (believed.median() / TURN).round() if believed.numel() else found


def wrapped(phase: Float[Tensor, "*v"]) -> Float[Tensor, "*v"]:
    """In [−π, π)."""
    return phase - TURN * ((phase + math.pi) / TURN).floor()


def _divergence(steps: list[Float[Tensor, "_ _ _"]]) -> Float[Tensor, "i j k"]:
    """The transpose of taking differences along each axis."""
    shape = [steps[1].shape[0], steps[0].shape[1], steps[0].shape[2]]
    out = steps[0].new_zeros(shape)
    for axis, step in enumerate(steps):
        n = shape[axis] - 1
        out.narrow(axis, 1, n).add_(step)
        out.narrow(axis, 0, n).sub_(step)
    return out


def _solve(
    shares: list[Float[Tensor, "_ _ _"]], right: Float[Tensor, "i j k"], iterations: int, tolerance: float
) -> Float[Tensor, "i j k"]:
    """Conjugate gradients for ``Dᵀ S D u = right``."""
    diagonal = _divergence([torch.zeros_like(share) for share in shares])
    for axis, share in enumerate(shares):
        n = share.shape[axis]
        diagonal.narrow(axis, 1, n).add_(share)
        diagonal.narrow(axis, 0, n).add_(share)
    diagonal = diagonal.clamp_min(1e-12)
    u, residual = torch.zeros_like(right), right.clone()
    ahead = residual / diagonal
    size = first = (residual * ahead).sum()
    for _ in range(iterations):
        if float(size) <= tolerance**2 * float(first):
            break
        pushed = _divergence([share * ahead.diff(dim=axis) for axis, share in enumerate(shares)])
        step = size / (ahead * pushed).sum().clamp_min(1e-30)
        u, residual = u + step * ahead, residual - step * pushed
        scaled = residual / diagonal
        new = (residual * scaled).sum()
        ahead, size = scaled + new / size * ahead, new
    return u
