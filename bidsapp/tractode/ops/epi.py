"""What a magnetic field does to an echo-planar image: it shifts and rescales it along the phase-encoding axis, nowhere else.

P. Jezzard, R. S. Balaban, *Correction for geometric distortion in echo planar images from B0 field variations*, MRM 34:65
(1995), doi:10.1002/mrm.1910340111. A field of ``b`` Hz moves what is at ``x`` by ``b · sign · T`` voxels along the axis, T being
the total readout time (s) and the sign that of BIDS's ``PhaseEncodingDirection``; where signal is pushed together it is
brighter by as much: ``undistorted(x) = distorted(x + s(x)) · (1 + ∂s/∂x)``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def shift_vox(field_hz: Float[Tensor, "*v"], sign: int, readout: float) -> Float[Tensor, "*v"]:
    """How far (voxels along the phase-encoding axis) a field moves what is there."""
    return field_hz * (sign * readout)


def undistorted(
    values: Float[Tensor, "c i j k"], shift: Float[Tensor, "i j k"], axis: int, *, modulated: bool = True
) -> Float[Tensor, "c i j k"]:
    """The image before it was shifted by ``shift`` (voxels, given where things really are); the edges go on.

    Linear between voxels; differentiable in both. Without ``modulated`` brightness is left as it is: for a ratio of images
    that are distorted alike, and for labels.
    """
    lines, moved = values.movedim(axis + 1, -1), shift.movedim(axis, -1)
    n = lines.shape[-1]
    place = (torch.arange(n, dtype=moved.dtype, device=moved.device) + moved).clamp(0, n - 1)
    lower = place.detach().floor().clamp(0, max(n - 2, 0))
    upper = (lower + 1).clamp(max=n - 1)
    low, high = (lines.gather(-1, at.long().expand(lines.shape)) for at in (lower, upper))
    found = torch.lerp(low, high, (place - lower).to(lines).expand(lines.shape))
    if modulated:
        found = found * (1 + slope(moved, -1)).to(found)
    return found.movedim(-1, axis + 1)


def slope(shift: Float[Tensor, "*v"], axis: int) -> Float[Tensor, "*v"]:
    """The derivative of a shift along an axis, per voxel: central differences, one-sided at the ends."""
    lines = shift.movedim(axis, -1)
    steps = lines.diff(dim=-1)
    ends = torch.cat((steps[..., :1], 0.5 * (steps[..., 1:] + steps[..., :-1]), steps[..., -1:]), dim=-1)
    return ends.movedim(-1, axis)


def distorted(
    values: Float[Tensor, "c i j k"], shift: Float[Tensor, "i j k"], axis: int, finer: int = 16
) -> Float[Tensor, "c i j k"]:
    """The image shifted by ``shift`` voxels: signal is moved, none is made or lost (but what leaves the image).

    Every voxel's line is cut into ``finer`` pieces whose signal is shared by the two voxels that they arrive between.
    """
    lines, moved = values.movedim(axis + 1, -1), shift.movedim(axis, -1)
    n = lines.shape[-1]
    offsets = (torch.arange(finer, dtype=moved.dtype, device=moved.device) + 0.5) / finer - 0.5
    at = (torch.arange(n, dtype=moved.dtype, device=moved.device)[:, None] + offsets).reshape(-1)
    signal, along = _on_line(lines, at), _on_line(moved, at)
    place = at + along
    lower = place.floor()
    out = torch.zeros(*lines.shape[:-1], n + 2, dtype=lines.dtype, device=lines.device)
    for index, weight in ((lower, lower + 1 - place), (lower + 1, place - lower)):
        # Voxels −1 and n gather what leaves the image.
        slot = (index.clamp(-1, n) + 1).long().expand(signal.shape)
        out = out.scatter_add(-1, slot, signal * weight.to(signal) / finer)
    return out[..., 1:-1].movedim(-1, axis + 1)


def _on_line(lines: Float[Tensor, "*v n"], at: Float[Tensor, " m"]) -> Float[Tensor, "*v m"]:
    """Linear interpolation along the last axis; the ends go on."""
    n = lines.shape[-1]
    place = at.clamp(0, n - 1)
    lower = place.floor().clamp(0, max(n - 2, 0)).long()
    upper = (lower + 1).clamp(max=n - 1)
    return torch.lerp(lines[..., lower], lines[..., upper], (place - lower).to(lines))
