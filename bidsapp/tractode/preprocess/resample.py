"""A series with its motion, eddy currents and susceptibility undone by one interpolation.

Interpolation by cubic B-splines: M. Unser, *Splines: a perfect fit for signal and image processing*, IEEE SPM 16:22 (1999),
doi:10.1109/79.799930. Geometry and brightness: `eddy`. Lost slices are replaced by their prediction before anything is interpolated
(`outliers`).
"""

from __future__ import annotations

from collections.abc import Callable

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


def resample_series(
    scan: DWI,
    estimate: MotionEstimate | None,
    hz: Float[Tensor, "i j k"] | None = None,
    encoding: PhaseEncoding | None = None,
    target: ImageGrid | None = None,
    to_scan: Affine | None = None,
    progress: Progress | None = None,
    *,
    replace_outliers: bool = True,
) -> DWI:
    """The series in the space of the reference, its directions turned with the head; never negative.

    Parameters
    ----------
    estimate
        ``None``: no motion (for the field alone).
    hz
        Field of the head on the scan's grid, where things are in the reference; it needs an ``encoding`` with sign and readout time.
    target
        Grid of the result; ``None``: the scan's own. The mask is carried to it as it is.
    to_scan
        From the target's space to the scan's (of the reference), where they differ: a run merged with another one. The directions are
        turned by it too.
    """
    device = scan.signal.device
    scan = DWI(scan.grid, scan.signal.cpu(), scan.gtab, scan.mask.cpu())  # splines are SciPy's
    still = estimate or _nothing(scan, encoding)
    check_same_grid(scan.grid, still.grid, "A series and its motion estimate")
    place = geometry(scan.grid, still.centre, encoding or still.encoding, None if hz is None else hz.cpu())
    lost = replace_outliers and bool(still.outliers.any())
    signal = replaced(scan, still, place) if lost else scan.signal
    grid = target or scan.grid
    points = grid.centres(torch.float64).reshape(-1, 3)
    points = points if to_scan is None else to_scan.map(points)
    out = torch.empty(len(signal), *grid.shape, dtype=torch.float32)
    for volume in range(len(signal)):
        out[volume] = _read(signal[volume], place, still, volume, points).reshape(grid.shape)
        if progress is not None:
            progress(volume + 1, len(signal))
    gtab = still.rotated(scan.gtab)
    gtab = gtab if to_scan is None else gtab.rotated(rotation_part(to_scan.matrix).mT)
    mask = scan.mask if target is None else _carried(scan, points, grid)
    return DWI(grid, out.to(device, scan.signal.dtype), gtab, mask.to(device))


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


def _read(
    values: Float[Tensor, "i j k"], place: Geometry, estimate: MotionEstimate, volume: int, points: Float[Tensor, "p 3"]
) -> Float[Tensor, " p"]:
    """One volume at points of the reference, brightness included."""
    one = slice(volume, volume + 1)
    index, bright = place.read_at(points, estimate.rigid[one].double(), estimate.eddy[one].double())
    return (torch.from_numpy(splined(values, index[0])) * bright[0].to(torch.float32)).clamp_min(0)


def splined(values: Float[Tensor, "i j k"], index: Float[Tensor, "p 3"]) -> Float[np.ndarray, " p"]:
    """Cubic B-splines at voxel indices; 0 beyond half a voxel outside the outermost centres."""
    array = values.detach().cpu().to(torch.float32).numpy()
    at = index.cpu().numpy().T
    upper = np.array(array.shape)[:, None] - 1
    inside = ((at >= -0.5) & (at <= upper + 0.5)).all(0)
    out = np.zeros(at.shape[1], dtype=np.float32)
    out[inside] = ndimage.map_coordinates(array, at[:, inside], order=3, mode="nearest", output=np.float32)
    return out


def replaced(scan: DWI, estimate: MotionEstimate, place: Geometry) -> Float[Tensor, "n i j k"]:
    """The series as scanned, with lost slices taken from the prediction by the other volumes."""
    out, gtab, lost = scan.signal.clone(), estimate.rotated(scan.gtab), estimate.outliers
    process = _process(scan, gtab, estimate, place)
    for volume in lost.any(-1).nonzero()[:, 0].tolist():
        for number in lost[volume].nonzero()[:, 0].tolist():
            present = ~_lost_near(lost, number)
            present[volume] = False
            row = left_out(gtab, process, present)[volume]
            _replace(out, scan, estimate, place, volume, number, row)
    return out


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


def _lost_near(lost: Tensor, number: int) -> Tensor:
    """Volumes whose slice of that number, or one beside it, lost signal too."""
    return lost[:, max(number - 1, 0) : number + 2].any(-1)


def _replace(
    out: Tensor, scan: DWI, estimate: MotionEstimate, place: Geometry, volume: int, number: int, row: Tensor
) -> None:
    """Writes the prediction of one slice, made of the other volumes where the slice's voxels lie in them."""
    shape, axis = scan.grid.shape, estimate.slice_axis
    ranges = [torch.arange(n, dtype=torch.float64) for n in shape]
    ranges[axis] = torch.tensor([float(number)], dtype=torch.float64)
    index = torch.cartesian_prod(*ranges)
    points = place.origin_of(index, estimate.rigid[volume].double(), estimate.eddy[volume].double())
    total = torch.zeros(len(points))
    for other in (row.abs() > 1e-6).nonzero()[:, 0].tolist():
        total += float(row[other]) * _linear(scan.signal[other], place, estimate, other, points)
    one = slice(volume, volume + 1)
    _, bright = place.read_at(points, estimate.rigid[one].double(), estimate.eddy[one].double())
    flat = (total / bright[0].float().clamp_min(0.25)).clamp_min(0)
    shape_there = [n for which, n in enumerate(shape) if which != axis]
    out[volume].select(axis, number).copy_(flat.reshape(shape_there))


def _linear(
    values: Float[Tensor, "i j k"], place: Geometry, estimate: MotionEstimate, volume: int, points: Float[Tensor, "p 3"]
) -> Float[Tensor, " p"]:
    one = slice(volume, volume + 1)
    index, bright = place.read_at(points, estimate.rigid[one].double(), estimate.eddy[one].double())
    read = interpolate.sample(values[None].float(), index[0].float(), outside="nearest")[:, 0]
    return read * bright[0].float()
