"""Every run of a scan undone by one interpolation, and runs that belong together put on one grid; no arithmetic here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields import DWI, Affine, Image, ImageGrid
from tractode.interfaces.preprocess import Part, Steps, tell_unreplaced
from tractode.io.notes import Note, info, warning
from tractode.preprocess import merge
from tractode.preprocess.distortion import put_right, reach
from tractode.preprocess.mask import dwi_reference
from tractode.preprocess.resample import resampled

_NEAR = 0.25  # of a voxel; runs that lie nearer than that are left as they are
_LARGE_SHARE = 0.02  # of the brain
_HINT = 0.01  # of a voxel that is not shown


@dataclass(frozen=True, eq=False)
class Still:
    """A series that lies still and straight.

    Parameters
    ----------
    seen
        Voxels that lie in the field of view of every volume.
    noise
        Standard deviation of the noise of the signal as it was measured, and interpolated since; ``None`` where it is not known.
    """

    scan: DWI
    seen: Bool[Tensor, "i j k"]
    noise: Image | None = None


def interpolated(
    part: Part, hz: Float[Tensor, "i j k"] | None, device: str, out: Float[Tensor, "n i j k"] | None = None
) -> Still:
    """The scan with its motion and distortion undone on its own grid, by one interpolation; as it is where there is neither.

    ``out`` is where a series that moved may be written to: the scan's own memory.
    """
    scan = part.scan
    if part.estimate is not None:
        return _resampled(part, hz, out=out)
    shown = torch.ones(scan.grid.shape, dtype=torch.bool) if part.seen is None else part.seen
    if hz is None:
        return Still(scan, shown, part.noise)
    record = part.distortion
    way = (record["axis"], record["sign"], record["readout"])
    # Nothing moved: along the encoding only, so directions stay.
    signal = put_right(scan.signal.to(device), hz.to(device), *way).cpu()
    seen, gain = reach(hz.cpu(), *way)
    if part.seen is not None:
        seen &= put_right((~part.seen)[None].float(), hz.cpu(), *way)[0] < _HINT
    fixed = DWI(scan.grid, signal, scan.gtab, scan.mask & seen)
    return Still(fixed, seen, _noise(part, gain, scan.grid, None))


def _resampled(
    part: Part,
    hz: Float[Tensor, "i j k"] | None,
    grid: ImageGrid | None = None,
    way: Affine | None = None,
    out: Float[Tensor, "n i j k"] | None = None,
) -> Still:
    found = resampled(part.scan, part.estimate, hz, part.encoding, grid, way, out=out)
    tell_unreplaced(part, found.unreplaced)
    seen = found.seen if part.seen is None else found.seen & _carried(part.seen, part, found.scan.grid, way)
    return Still(found.scan, seen, _noise(part, found.gain, found.scan.grid, way))


def _carried(seen: Bool[Tensor, "i j k"], part: Part, grid: ImageGrid, way: Affine | None) -> Bool[Tensor, "i j k"]:
    """What every volume shows, where it lies in the reference; small motions are within the margin that it has."""
    if way is None:
        return seen
    hidden = Image(part.scan.grid, (~seen)[None].float()).sample(way.map(grid.centres(torch.float64)).float())
    return hidden[..., 0] < _HINT


def _noise(part: Part, gain: Float[Tensor, "i j k"], grid: ImageGrid, way: Affine | None) -> Image | None:
    """The noise of the measured signal where its voxels lie now; it is smooth, so that motion does not matter."""
    if part.noise is None:
        return None
    points = grid.centres()
    points = points if way is None else way.map(points.double()).float()
    known = part.noise.values if way is None else part.noise.sample(points, outside="nearest").movedim(-1, 0)
    return Image(grid, known * gain.sqrt())


def joined(
    parts: Sequence[Part],
    field_of: Callable[[Part], Float[Tensor, "i j k"] | None],
    start_of: Callable[[Part, Part], Affine | None],
    device: str,
) -> tuple[Still, Steps, list[Note]]:
    """Every part interpolated once, and all of them as one series; the parts hold no signal any more.

    ``field_of`` gives the field (Hz) on a part's grid, ``start_of`` where the search for the way between two references begins.
    """
    first = parts[0]
    still = interpolated(first, field_of(first), device, out=first.scan.signal)  # a large series does not fit twice
    if len(parts) == 1:
        _release(first)
        return still, Steps(dict(first.steps.records)), []
    series, notes = [still], []
    for part in parts[1:]:
        moved, found = _onto(first, still, part, field_of(part), start_of(first, part), device)
        _release(part)
        series.append(moved)
        notes += found
    _release(first)
    steps = Steps(dict(first.steps.records))
    whole, factors = merge.merged([one.scan for one in series])
    names, said = ", ".join(part.run.name for part in parts), ", ".join(f"{factor:.3f}" for factor in factors)
    steps.add_others([(part.run.name, part.steps) for part in parts[1:]])
    steps.did("combining", f"{names}; brightness multiplied by {said}", factors=[round(f, 5) for f in factors])
    seen = torch.stack([one.seen for one in series]).all(0)
    return Still(whole, seen, _common_noise(series, factors)), steps, notes


def _release(part: Part) -> None:
    """The scan as it was is not needed any more, or overwritten, and may be large; its table and grid are."""
    part.scan = replace(part.scan, signal=torch.zeros(()).expand(part.scan.signal.shape))


def _onto(
    first: Part,
    still: Still,
    part: Part,
    hz: Float[Tensor, "i j k"] | None,
    start: Affine | None,
    device: str,
) -> tuple[Still, list[Note]]:
    """A part on the first one's grid; one that lies there already, as it is if it was preprocessed elsewhere."""
    grid, mask = still.scan.grid, Image(still.scan.grid, still.scan.mask[None])
    own = interpolated(part, hz, device)
    way = merge.way_between(dwi_reference(still.scan), dwi_reference(own.scan), mask, start)
    done_by, name = part.run.done_by, part.run.name
    if done_by:
        apart = _apart(way, still.scan)
        if own.scan.grid.matches(grid) and apart < _NEAR * min(grid.voxel_sizes):
            return replace(own, scan=replace(own.scan, grid=grid)), []
        text = (
            f"{name}: preprocessed by {done_by}, it lies {apart:.1f} mm from {first.run.name}, or on another grid, and was "
            "interpolated once more to be combined with it; --combine-runs none leaves the runs as they are"
        )
        part.way = way
        return _resampled(part, hz, grid, way), [warning("W-COMBINE-AGAIN", text)]
    del own
    part.way = way
    return _resampled(part, hz, grid, way), []


def _apart(way: Affine, scan: DWI) -> float:
    """How far (mm) the two lie from one another in the brain, on average."""
    points = scan.grid.to_world(scan.mask.nonzero()[::97].double())
    return float((way.map(points) - points).norm(dim=-1).mean()) if len(points) else 0.0


def _common_noise(series: Sequence[Still], factors: Sequence[float]) -> Image | None:
    """Root mean square over the volumes; ``None`` where one part's is not known."""
    total, n = torch.zeros(1, *series[0].scan.grid.shape), 0
    for one, factor in zip(series, factors, strict=True):
        if one.noise is None:
            return None
        count = len(one.scan.gtab)
        total, n = total + count * (one.noise.values * factor).square(), n + count
    return Image(series[0].scan.grid, (total / n).sqrt())


def within_view(mask: Image, seen: Bool[Tensor, "i j k"], name: str) -> tuple[Image, list[Note]]:
    """The voxels of a mask that every volume sees, and how many of them were left out."""
    kept = mask.mask & seen
    lost, whole = int((mask.mask & ~seen).sum()), int(mask.mask.sum())
    if not lost:
        return mask, []
    text = (
        f"{name}: {lost} of {whole} voxels of the brain mask left the field of view of a volume and are not in the mask"
    )
    kind = warning if lost > _LARGE_SHARE * whole else info
    return Image(mask.grid, kept[None]), [kind("W-FIELD-OF-VIEW" if kind is warning else "N-FIELD-OF-VIEW", text)]
