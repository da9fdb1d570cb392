"""What happens to a series while it is scanned: motion, eddy currents, susceptibility, coil shading and dropped slices, with their truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import epi, interpolate
from tractode.ops import volume_pose as pose
from tractode.simulate import bias, eddy, motion, outliers
from tractode.simulate.echo_planar import Encoding
from tractode.simulate.subject import Diffusion, SubjectSettings, clean_signal


@dataclass(frozen=True)
class DisturbanceSettings:
    """Each part as its own file has it; ``None``: without it."""

    motion: motion.HeadMotionSettings | None = None
    eddy: eddy.EddySettings | None = None
    dropped: outliers.DroppedSlicesSettings | None = None
    bias: bias.BiasSettings | None = None


@dataclass(frozen=True, eq=False)
class Disturbance:
    """The truth: ``rigid`` shift (mm) and rotation vector (rad) about ``centre`` from where the head lies by itself to each volume; ``eddy``
    terms (mm at 100 mm along the encoding); share of the signal that each slice ``left``; the coils' ``shading``."""

    centre: Float[Tensor, " 3"]
    rigid: Float[Tensor, "n 6"]
    eddy: Float[Tensor, "n 9"]
    left: Float[Tensor, "n s"]
    shading: Float[Tensor, "i j k"]


def disturbance(true: Diffusion, settings: DisturbanceSettings, generator: torch.Generator) -> Disturbance:
    """Draws what happens. Parts that are not asked for draw nothing."""
    n, grid = len(true.gtab), true.grid
    centre = grid.to_world(true.mask.nonzero().double()).mean(0)
    rigid = torch.zeros(n, 6, dtype=torch.float64)
    if settings.motion is not None:
        rigid = motion.head_motion(n, generator, settings.motion)
    terms = torch.zeros(n, 9, dtype=torch.float64)
    if settings.eddy is not None:
        terms = eddy.eddy_terms(true.gtab, generator, settings.eddy)
    left = torch.ones(n, grid.shape[2], dtype=torch.float64)
    if settings.dropped is not None:
        left = outliers.signal_left(true.gtab, grid.shape[2], generator, settings.dropped)
    shading = torch.ones(grid.shape, dtype=torch.float64)
    if settings.bias is not None:
        shading = bias.coil_shading(grid, true.mask, generator, settings.bias)
    return Disturbance(centre, rigid, terms, left, shading)


def disturbed(
    true: Diffusion,
    what: Disturbance,
    subject: SubjectSettings,
    encoding: Encoding,
    field_hz: Float[Tensor, "i j k"] | None = None,
) -> Float[Tensor, "n i j k"]:
    """The signal as scanned, without noise. ``field_hz``: of the head where it lies by itself; it moves with the head."""
    signal = true.signal
    if bool(what.rigid.any()):
        table = motion.seen_by_head(true.gtab, what.rigid)
        signal = motion.moved(clean_signal(true.fibres, table, subject), true.grid, what.rigid, what.centre)
    signal = _shifted(signal, true, what, encoding, field_hz)
    return signal * what.shading * what.left[:, None, None, :]


def _shifted(
    signal: Float[Tensor, "n i j k"],
    true: Diffusion,
    what: Disturbance,
    encoding: Encoding,
    field_hz: Float[Tensor, "i j k"] | None,
) -> Float[Tensor, "n i j k"]:
    """Every volume shifted along the encoding by its eddy currents and by the field, which lies where the head lies."""
    if field_hz is None and not bool(what.eddy.any()):
        return signal
    out = torch.empty_like(signal)
    still = (
        torch.zeros_like(signal[0]) if field_hz is None else epi.shift_vox(field_hz, encoding.sign, encoding.readout)
    )
    for volume, values in enumerate(signal):
        one = slice(volume, volume + 1)
        shift = still.to(values)[None]
        if field_hz is not None and bool(what.rigid[one].any()):
            shift = _carried(shift, true, what, volume)
        shift = shift[0] + eddy.shifts_vox(what.eddy[one], true.grid, encoding.axis)[0].to(values)
        out[volume] = epi.distorted(values[None], shift, encoding.axis)[0]
    return out


def _carried(
    shift: Float[Tensor, "1 i j k"], true: Diffusion, what: Disturbance, volume: int
) -> Float[Tensor, "1 i j k"]:
    """The field's shift where the head lies in a volume."""
    points = true.grid.centres(torch.float64).reshape(-1, 3)
    still = pose.still(points, what.rigid[volume : volume + 1], what.centre)[0]
    found = interpolate.sample(shift, true.grid.to_voxel(still), outside="nearest")[:, 0]
    return found.reshape(shift.shape)
