"""A series with its motion, eddy currents and susceptibility undone by one interpolation.

Interpolation by cubic B-splines: M. Unser, *Splines: a perfect fit for signal and image processing*, IEEE SPM 16:22 (1999),
doi:10.1109/79.799930. Geometry and brightness: `eddy`. Lost slices are replaced by their prediction before anything is interpolated
(`outliers`). A voxel that has left the field of view of any volume is no voxel of the mask: what was not measured is not fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from tractode.fields.dwi import DWI
from tractode.fields.gradients import GradientTable
from tractode.fields.image import Image, ImageGrid, check_same_grid
from tractode.fields.transform import Affine
from tractode.ops import interpolate
from tractode.ops.affine import rotation_part
from tractode.preprocess.eddy import Geometry, PhaseEncoding, geometry
from tractode.preprocess.motion import MotionEstimate
from tractode.preprocess.prediction import Process, fitted, left_out

Progress = Callable[[int, int], None]
_VOXELS = 4000  # of the brain, that the process of a prediction is found on
_LEAST_SHARE = 0.3  # of a slice that the other volumes must tell; with less the prediction is mostly a guess of nothing
_FRACTIONS = 32


@dataclass(frozen=True, eq=False)
class Resampled:
    """A series in the space of the reference, and what became of its voxels.

    Parameters
    ----------
    seen
        Voxels that lie in the field of view of every volume; the scan's mask holds no others.
    unreplaced
        Lost slices (volume, slice) that no other volume tells enough of; they are as they were scanned.
    gain
        What interpolation and the change of brightness make of the variance of white noise, a mean over the volumes.
    """

    scan: DWI
    seen: Bool[Tensor, "i j k"]
    unreplaced: Bool[Tensor, "n s"]
    gain: Float[Tensor, "i j k"]


def resampled(
    scan: DWI,
    estimate: MotionEstimate | None,
    hz: Float[Tensor, "i j k"] | None = None,
    encoding: PhaseEncoding | None = None,
    target: ImageGrid | None = None,
    to_scan: Affine | None = None,
    progress: Progress | None = None,
    *,
    out: Float[Tensor, "n i j k"] | None = None,
) -> Resampled:
    """The series in the space of the reference, its directions turned with the head; never negative.

    Parameters
    ----------
    estimate
        ``None``: no motion (for the field alone).
    hz
        Field of the head on the scan's grid, where things are in the reference; it needs an ``encoding`` with sign and readout time.
    target
        Grid of the result; ``None``: the scan's own. The mask is carried to it, less what not every volume sees.
    to_scan
        From the target's space to the scan's (of the reference), where they differ: a run merged with another one. The directions are
        turned by it too.
    out
        Where the series is written to, float32 on the CPU; it may be the scan's own where the grid is.
    """
    device = scan.signal.device
    scan = DWI(scan.grid, scan.signal.cpu(), scan.gtab, scan.mask.cpu())  # splines are SciPy's
    still = estimate or _nothing(scan, encoding)
    check_same_grid(scan.grid, still.grid, "A series and its motion estimate")
    place = geometry(scan.grid, still.centre, encoding or still.encoding, None if hz is None else hz.cpu())
    instead: dict[int, dict[int, Tensor]] = {}
    unreplaced = torch.zeros_like(still.outliers)
    if bool(still.outliers.any()):
        instead, unreplaced = replaced(scan, still, place)
    grid = target or scan.grid
    points = grid.centres(torch.float64).reshape(-1, 3)
    points = points if to_scan is None else to_scan.map(points)
    n = len(scan.signal)
    out = torch.empty(n, *grid.shape, dtype=torch.float32) if out is None else out
    seen, gain = torch.ones(len(points), dtype=torch.bool), torch.zeros(len(points))
    for volume in range(n):
        index, bright = _place_of(place, still, volume, points)
        values = _with(scan.signal[volume], instead.get(volume, {}), still.slice_axis)
        out[volume] = (torch.from_numpy(splined(values, index)) * bright).clamp_min(0).reshape(grid.shape)
        seen &= inside(index, scan.grid.shape)
        gain += noise_gain(index) * bright.square() / n
        if progress is not None:
            progress(volume + 1, n)
    gtab = still.rotated(scan.gtab)
    gtab = gtab if to_scan is None else gtab.rotated(rotation_part(to_scan.matrix).mT)
    everywhere = seen.reshape(grid.shape)
    mask = (scan.mask if target is None else _carried(scan, points, grid)) & everywhere
    fixed = DWI(grid, out.to(device, scan.signal.dtype), gtab, mask.to(device))
    return Resampled(fixed, everywhere, unreplaced, gain.reshape(grid.shape))


def _nothing(scan: DWI, encoding: PhaseEncoding | None) -> MotionEstimate:
    n, slices = len(scan.gtab), scan.grid.shape[2]
    zero = torch.zeros(n, slices, dtype=torch.float64)
    middle = scan.grid.to_world((torch.tensor(scan.grid.shape, dtype=torch.float64) - 1) / 2)
    return MotionEstimate(
        scan.grid, middle, encoding, torch.zeros(n, 6, dtype=torch.float64), torch.zeros(n, 9, dtype=torch.float64),
        zero.bool(), zero, torch.ones(n, dtype=torch.float64),
    )  # fmt: skip


def _carried(scan: DWI, points: Float[Tensor, "p 3"], grid: ImageGrid) -> Bool[Tensor, "i j k"]:
    sampled = Image(scan.grid, scan.mask[None].float()).sample(points.float())
    return (sampled[..., 0] > 0.5).reshape(grid.shape)


def _place_of(
    place: Geometry, estimate: MotionEstimate, volume: int, points: Float[Tensor, "p 3"]
) -> tuple[Float[Tensor, "p 3"], Float[Tensor, " p"]]:
    """Where one volume holds points of the reference (voxel indices), and how much brighter it must be made there."""
    one = slice(volume, volume + 1)
    index, bright = place.read_at(points, estimate.rigid[one].double(), estimate.eddy[one].double())
    return index[0], bright[0].to(torch.float32)


def inside(index: Float[Tensor, "p 3"], shape: tuple[int, ...]) -> Bool[Tensor, " p"]:
    """Whether voxel indices lie in the image: no farther than half a voxel beyond the outermost centres."""
    upper = torch.tensor(shape).to(index) - 0.5
    return ((index >= -0.5) & (index <= upper)).all(-1)


def noise_gain(index: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
    """The variance of white noise of variance 1 that is read by cubic B-splines at voxel indices: 1 at centres, less between them."""
    table = _gain_table()
    place = (index - index.floor()) * _FRACTIONS
    lower = place.long().clamp(0, _FRACTIONS - 1)
    return torch.lerp(table[lower], table[lower + 1], (place - lower).float()).prod(-1)


@cache
def _gain_table() -> Float[Tensor, " f"]:
    """Sum of the squares of a line's weights at fractions of a voxel."""
    n = 33
    place = n // 2 + np.arange(_FRACTIONS + 1) / _FRACTIONS
    weights = ndimage.map_coordinates(np.eye(n), np.meshgrid(np.arange(n), place, indexing="ij"), order=3)
    return torch.from_numpy(np.square(weights).sum(0).astype(np.float32))


def splined(values: Float[Tensor, "i j k"], index: Float[Tensor, "p 3"]) -> Float[np.ndarray, " p"]:
    """Cubic B-splines at voxel indices; 0 beyond half a voxel outside the outermost centres."""
    array = values.detach().cpu().to(torch.float32).numpy()
    at = index.cpu().numpy().T
    within = inside(index.cpu(), values.shape).numpy()
    out = np.zeros(at.shape[1], dtype=np.float32)
    out[within] = ndimage.map_coordinates(array, at[:, within], order=3, mode="nearest", output=np.float32)
    return out


def _with(values: Float[Tensor, "i j k"], slices: Mapping[int, Tensor], axis: int) -> Float[Tensor, "i j k"]:
    """A volume with some slices in place of its own."""
    if not slices:
        return values
    values = values.clone()
    for number, instead in slices.items():
        values.select(axis, number).copy_(instead)
    return values


def replaced(
    scan: DWI, estimate: MotionEstimate, place: Geometry
) -> tuple[dict[int, dict[int, Tensor]], Bool[Tensor, "n s"]]:
    """Lost slices as scanned (of volumes, by number), predicted by the other volumes; and the slices that none of them tells."""
    gtab, lost = estimate.rotated(scan.gtab), estimate.outliers
    found: dict[int, dict[int, Tensor]] = {}
    process, unreplaced = _process(scan, gtab, estimate, place), torch.zeros_like(estimate.outliers)
    for volume, number in lost.nonzero().tolist():
        row = _row(gtab, process, lost, volume, number)
        if row is None:
            unreplaced[volume, number] = True
        else:
            found.setdefault(volume, {})[number] = _replacement(scan, estimate, place, volume, number, row)
    return found, unreplaced


def _row(
    gtab: GradientTable, process: Process, lost: Bool[Tensor, "n s"], volume: int, number: int
) -> Float[Tensor, " n"] | None:
    """The weights of the volumes that have the slice; of those whose slices beside it are lost only if there are no others."""
    for near in (1, 0):
        present = ~lost[:, max(number - near, 0) : number + near + 1].any(-1)
        present[volume] = False
        row = left_out(gtab, process, present)[volume]
        row[~present] = 0  # without any other of its kind a volume's row is itself
        if float(row.abs().sum()) >= _LEAST_SHARE:
            return row
    return None


def _process(scan: DWI, gtab: GradientTable, estimate: MotionEstimate, place: Geometry) -> Process:
    """Of the volumes that lost nothing, at some voxels of the brain."""
    weighted = ~gtab.is_b0.cpu()
    whole = weighted & ~estimate.outliers.any(-1)
    whole = whole if int(whole.sum()) >= 6 else weighted
    if int(whole.sum()) < 2:
        return Process()
    index = scan.mask.nonzero()
    points = scan.grid.to_world(index[:: max(1, len(index) // _VOXELS)].double())
    values = torch.stack([_linear(scan.signal[v], place, estimate, v, points) for v in range(len(gtab))])
    level = values[~weighted].mean(0) if bool((~weighted).any()) else values.mean(0)
    shares = (values[whole] / level.clamp_min(0.05 * float(level.median()))).double()
    return fitted(gtab[whole], shares @ shares.mT / shares.shape[1])


def _replacement(
    scan: DWI, estimate: MotionEstimate, place: Geometry, volume: int, number: int, row: Tensor
) -> Float[Tensor, "p q"]:
    """The prediction of one slice, made of the other volumes where the slice's voxels lie in them."""
    shape, axis = scan.grid.shape, estimate.slice_axis
    ranges = [torch.arange(n, dtype=torch.float64) for n in shape]
    ranges[axis] = torch.tensor([float(number)], dtype=torch.float64)
    index = torch.cartesian_prod(*ranges)
    points = place.origin_of(index, estimate.rigid[volume].double(), estimate.eddy[volume].double())
    total = torch.zeros(len(points))
    for other in (row.abs() > 1e-6).nonzero()[:, 0].tolist():
        total += float(row[other]) * _linear(scan.signal[other], place, estimate, other, points)
    _, bright = _place_of(place, estimate, volume, points)
    flat = (total / bright.clamp_min(0.25)).clamp_min(0)
    return flat.reshape([n for which, n in enumerate(shape) if which != axis])


def _linear(
    values: Float[Tensor, "i j k"], place: Geometry, estimate: MotionEstimate, volume: int, points: Float[Tensor, "p 3"]
) -> Float[Tensor, " p"]:
    index, bright = _place_of(place, estimate, volume, points)
    return interpolate.sample(values[None].float(), index.float(), outside="nearest")[:, 0] * bright
