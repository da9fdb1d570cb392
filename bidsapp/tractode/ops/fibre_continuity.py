"""How much orientation distributions change along their own orientations: a quadratic cost and its light derivative.

Reisert & Kiselev, *Fiber continuity: an anisotropic prior for ODF estimation*, IEEE Trans Med Imaging 2011,
doi:10.1109/TMI.2011.2112769: ``∫∫ (u·∇ f(x, u))² du dx``. Departure: the derivative along ``u`` is the difference
between a voxel and the value one step further along ``u``, interpolated linearly, so that no pattern of alternating
voxels is free.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

Taps = list[list[tuple[tuple[int, int, int], float]]]


def taps_of(steps_vox: Float[Tensor, "k 3"]) -> Taps:
    """For each direction the voxel offsets (0, 1 or 2 in an image padded by one voxel) and weights of a shift."""
    found: Taps = []
    for step in steps_vox.double():
        if float(step.abs().max()) > 1:
            raise ValueError(f"A step may be one voxel along each axis at most; got {step.tolist()}.")
        base = step.floor().clamp(max=0)
        offset, taps = (step - base).tolist(), []
        for corner in range(8):
            upper = (corner >> 2 & 1, corner >> 1 & 1, corner & 1)
            weight = 1.0
            for u, o in zip(upper, offset, strict=True):
                weight *= o if u else 1 - o
            if weight > 1e-9:
                i, j, k = (int(b) + u + 1 for b, u in zip(base.tolist(), upper, strict=True))
                taps.append(((i, j, k), weight))
        found.append(taps)
    return found


def pairs_of(mask: Bool[Tensor, "i j k"], taps: Taps) -> Bool[Tensor, "d i j k"]:
    """For each direction the voxels of a mask whose step's every corner lies in the mask too."""
    inside = mask.to(torch.float32)
    return torch.stack([mask & (shifted(inside, steps) > 1 - 1e-4) for steps in taps])


def discontinuity(
    amplitudes: Float[Tensor, "d i j k"], taps: Taps, pairs: Bool[Tensor, "d i j k"]
) -> Float[Tensor, ""]:
    """``Σ (f_d(x + step_d) − f_d(x))² / n`` over n directions and their pairs; differentiable in the amplitudes."""
    return _Discontinuity.apply(amplitudes, taps, pairs) / len(taps)


def shifted(image: Float[Tensor, "i j k"], taps: list[tuple[tuple[int, int, int], float]]) -> Float[Tensor, "i j k"]:
    """One image moved by one direction's step: its value at ``x + step``; 0 beyond the border."""
    ni, nj, nk = image.shape
    padded = functional.pad(image, (1, 1, 1, 1, 1, 1))
    out = torch.zeros_like(image)
    for (i, j, k), weight in taps:
        out.add_(padded[i : i + ni, j : j + nj, k : k + nk], alpha=weight)
    return out


class _Discontinuity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, amplitudes: Tensor, taps: Taps, pairs: Tensor) -> Tensor:  # type: ignore[override]
        grad, total = torch.empty_like(amplitudes), amplitudes.new_zeros((), dtype=torch.float64)
        for k, (image, steps, is_pair) in enumerate(zip(amplitudes, taps, pairs, strict=True)):
            difference = torch.where(is_pair, shifted(image, steps) - image, 0.0)
            total += difference.double().square().sum()
            # The transpose of a shift is the shift the other way.
            back = [((2 - a, 2 - b, 2 - c), weight) for (a, b, c), weight in steps]
            grad[k] = 2 * (shifted(difference, back) - difference)
        ctx.save_for_backward(grad)
        return total.to(amplitudes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None
