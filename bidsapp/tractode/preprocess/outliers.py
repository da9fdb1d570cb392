"""Slices that lost their signal: their mean against the prediction, and against the other volumes' slices.

J. L. R. Andersson et al., *Incorporating outlier detection and replacement into a non-parametric framework for movement and distortion
correction of diffusion MR images*, NeuroImage 141:556 (2016), doi:10.1016/j.neuroimage.2016.06.058.

Departures: differences are shares of the predicted signal, so that they mean the same in every slice and shell; the deviation is robust
(from the median of absolute deviations) and taken over the volumes of a kind in a slice, but never less than that over all slices. Only
losses count: movement within a volume makes signal disappear, hardly ever appear. A volume that is lost as a whole is told beforehand, from
its brightness and its likeness to the mean of its kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields.gradients import GradientTable

_MOST_VOXELS = 20_000
_LEAST_OF_A_KIND = 4  # volumes, to say what is usual
_SHARE = 0.5


@dataclass(frozen=True)
class OutlierSettings:
    """A slice is an outlier beyond ``deviations`` standard deviations if it lost at least the share ``loss`` of its signal too."""

    deviations: float = 4.0
    loss: float = 0.06
    least_voxels: int = 60


def slice_losses(
    signal: Float[Tensor, "i j k"],
    predicted: Float[Tensor, "i j k"],
    mask: Bool[Tensor, "i j k"],
    slice_axis: int,
    least_voxels: int,
) -> Float[Tensor, " s"]:
    """Mean difference in each slice of a volume as a share of the predicted mean; NaN where a slice holds too little brain."""
    inside = mask.movedim(slice_axis, 0).flatten(1)
    apart = ((signal - predicted) * mask).movedim(slice_axis, 0).flatten(1).double().sum(-1)
    whole = (predicted * mask).movedim(slice_axis, 0).flatten(1).double().sum(-1)
    counts = inside.sum(-1) >= least_voxels
    return torch.where(counts & (whole > 0), apart / whole.clamp_min(1e-12), torch.nan)


def deviations(losses: Float[Tensor, "n s"], gtab: GradientTable) -> Float[Tensor, "n s"]:
    """How many robust standard deviations each slice's difference lies from the median of its kind (b=0, or a shell); 0 where unknown."""
    out = torch.zeros_like(losses)
    for index in kinds(gtab):
        own = losses[index]
        if len(index) < 3:
            continue
        apart = own - own.nanmedian(0, keepdim=True).values
        scale = 1.4826 * apart.abs().nanmedian(0, keepdim=True).values
        # A few volumes may happen to agree in one slice.
        floor = 1.4826 * apart.abs().flatten().nanmedian()
        out[index] = torch.nan_to_num(apart / torch.maximum(scale, floor).clamp_min(1e-9), nan=0.0)
    return out


def lost_volumes(
    signal: Float[Tensor, "n i j k"], mask: Bool[Tensor, "i j k"], gtab: GradientTable
) -> Bool[Tensor, " n"]:
    """Volumes that show nothing of the brain: less than half as bright, or half as like the others' mean, as is usual in their kind."""
    lost = torch.zeros(len(signal), dtype=torch.bool)
    where = mask.reshape(-1).nonzero()[:, 0]
    where = where[:: max(1, len(where) // _MOST_VOXELS)]
    for index in kinds(gtab):
        if len(index) < _LEAST_OF_A_KIND or len(where) < 2:
            continue
        values = torch.stack([signal[volume].reshape(-1)[where].double() for volume in index.tolist()])
        level = values.mean(-1)
        # The median volume, since a mean holds the lost one.
        usual = values / level[:, None].clamp_min(1e-12)
        like = torch.corrcoef(torch.cat((usual.median(0).values[None], values)))[0, 1:].nan_to_num(0.0)
        lost[index] = (level < _SHARE * level.median()) | (like < _SHARE * like.median())
    return lost


def kinds(gtab: GradientTable) -> list[Tensor]:
    """Indices of the volumes that can be compared: all b=0, and each shell; small shells (scattered b-values) together."""
    groups = [gtab.is_b0.cpu().nonzero()[:, 0]] if bool(gtab.is_b0.any()) else []
    small: list[Tensor] = []
    for _, index in gtab.shells():
        if len(index) >= 6:
            groups.append(index)
        else:
            small.append(index)
    return [*groups, torch.cat(small).sort().values] if small else groups


def outlying(losses: Float[Tensor, "n s"], z: Float[Tensor, "n s"], settings: OutlierSettings) -> Bool[Tensor, "n s"]:
    """Slices that lost signal, beyond chance."""
    return (z < -settings.deviations) & (torch.nan_to_num(losses, nan=0.0) < -settings.loss)
