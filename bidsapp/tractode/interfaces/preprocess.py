"""What is done to a raw scan before anything is modelled, step by step, and what is told of it; no arithmetic here.

Noise, then ringing (both want the signal as it was measured), then motion with eddy currents and lost slices, then one interpolation
that undoes these and the susceptibility, then the coils' shading. Every step can be left out; each says what became of it, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.bids.found import DwiRun
from tractode.bids.phase_encoding import encoding_of
from tractode.errors import InputDataError
from tractode.fields import DWI, Affine, Image
from tractode.io.notes import Note, warning
from tractode.preprocess import denoise, motion
from tractode.preprocess.bias import bias_field
from tractode.preprocess.eddy import PhaseEncoding
from tractode.preprocess.morphology import within
from tractode.preprocess.motion import MotionEstimate, MotionSettings, correct_motion
from tractode.preprocess.unring import fraction_of, unring, zero_filled_axes

OFF = "none"
AROUND_MM = 15.0  # around the brain is denoised too: what motion is found by, and what it may bring in


@dataclass(frozen=True)
class PreprocessPlan:
    """Which steps: ``none``, ``auto`` (where the scan supports it) or ``on`` (or the run fails); the default does nothing."""

    denoise: str = OFF
    unring: str = OFF
    motion: str = OFF
    outliers: str = OFF
    bias: str = OFF
    sloppy: bool = False


@dataclass
class Steps:
    """What became of each step: ``done``, ``why`` and its numbers, under the step's name; plain data, in order."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def did(self, name: str, what: str, **facts: Any) -> None:
        self.records[name] = {"done": True, "why": what, **facts}

    def left(self, name: str, why: str) -> None:
        self.records[name] = {"done": False, "why": why}

    def add_others(self, others: Sequence[tuple[str, Steps]]) -> None:
        """What became of the steps of runs that are joined with this one, where it differs: in words, and not done if in any it was not."""
        for name, record in list(self.records.items()):
            apart = [(run, steps.records[name]) for run, steps in others if name in steps.records]
            apart = [(run, one) for run, one in apart if (one["done"], one["why"]) != (record["done"], record["why"])]
            if apart:
                said = "; ".join([record["why"], *(f"{run}: {one['why']}" for run, one in apart)])
                done = record["done"] and all(one["done"] for _, one in apart)
                self.records[name] = {**record, "done": done, "why": said}

    def wants(self, name: str, answer: str, done_by: str, why_not: str | None) -> bool:
        """Whether to go on with a step; what it lacks is an error if it was asked for outright."""
        if done_by:
            self.left(name, f"the scan came preprocessed by {done_by}")
        elif answer == OFF:
            self.left(name, "switched off")
        elif why_not is not None and answer != "auto":
            raise InputDataError(
                f"{name.capitalize()} was asked for and cannot be done: {why_not}",
                id="E-PREPROCESS-CANNOT",
                needed="a scan that supports it",
                fix="leave the option at auto, or switch the step off",
            )
        elif why_not is not None:
            self.left(name, why_not)
        else:
            return True
        return False

    def tried(self, name: str, answer: str, act: Callable[[], Any]) -> Any:
        """What a step gives; where it fails and was not asked for outright, nothing, and the reason is kept."""
        try:
            return act()
        except (InputDataError, torch.linalg.LinAlgError) as error:
            if answer != "auto":
                raise
            why = f"it failed: {error.found if isinstance(error, InputDataError) else error}"
            self.records[name] = {"done": False, "why": why, "failed": True}
            return None


@dataclass
class Part:
    """A run on its way: the scan as it is so far, and what was found on the way.

    Parameters
    ----------
    reference
        Mean b=0 image as acquired.
    distortion
        What was decided about its distortion; empty where nothing was.
    noise
        Standard deviation of the noise.
    way
        From the reference of the run that it is joined with to its own; ``None`` where that is its own.
    seen
        Voxels that every volume shows as stored; ``None``: all.
    unreplaced
        Lost slices that no other volume could replace, once it was tried.
    """

    run: DwiRun
    scan: DWI
    reference: Image
    distortion: Mapping[str, Any]
    steps: Steps = field(default_factory=Steps)
    noise: Image | None = None
    estimate: MotionEstimate | None = None
    way: Affine | None = None
    seen: Bool[Tensor, "i j k"] | None = None
    unreplaced: Bool[Tensor, "n s"] | None = None

    @property
    def encoding(self) -> PhaseEncoding | None:
        """Axis, sign and readout time: those that the correction of distortion settled on, else the sidecar's."""
        if self.distortion.get("applied"):
            return PhaseEncoding(self.distortion["axis"], self.distortion["sign"], self.distortion["readout"])
        found = encoding_of(self.run.metadata)
        return None if found is None else PhaseEncoding(found.axis, found.sign or 1, found.readout or 0.0)

    @property
    def slice_axis(self) -> int:
        return slice_axis_of(self.run.metadata)


def slice_axis_of(metadata: Mapping[str, Any]) -> int:
    """The stored axis across the slices: the sidecar's, else the third, else the axis that is not the phase encoding's."""
    stated = str(metadata.get("SliceEncodingDirection", ""))[:1]
    if stated in ("i", "j", "k"):
        return "ijk".index(stated)
    encoding = encoding_of(metadata)
    return 2 if encoding is None or encoding.axis != 2 else 0


# --- noise and ringing -----------------------------------------------------------------------------------------------------


def clean(part: Part, plan: PreprocessPlan, device: str) -> None:
    """Noise and ringing removed, where they are to be."""
    wanted = (plan.unring != OFF or plan.denoise != OFF) and not part.run.done_by
    filled = zero_filled_axes(part.scan.signal, part.slice_axis) if wanted else ()
    _denoise(part, plan, device, filled)
    _unring(part, plan, device, filled)


def _denoise(part: Part, plan: PreprocessPlan, device: str, filled: tuple[int, ...]) -> None:
    steps, scan = part.steps, part.scan
    lack = denoise.why_not(len(scan.gtab))
    if lack is None and min(scan.grid.shape) < 5:
        lack = "an axis of the image has fewer than 5 voxels"
    if not steps.wants("denoising", plan.denoise, part.run.done_by, lack):
        return
    settings = denoise.DenoiseSettings(stride=4 if plan.sloppy else 2)
    around = torch.from_numpy(within(scan.mask.cpu().numpy(), AROUND_MM, scan.grid.voxel_sizes)).to(device)
    signal = scan.signal.to(device)  # overwritten: a large series does not fit twice
    found = steps.tried("denoising", plan.denoise, lambda: denoise.denoise(signal, around, settings, out=signal))
    if found is None:
        return
    part.noise = Image(scan.grid, found.noise.cpu()[None])
    part.scan = replace(scan, signal=found.signal.clamp_min_(0).cpu())
    inside = part.noise.values[0][scan.mask]
    level = float(part.reference.values[0][scan.mask].median())
    sigma, rank = float(inside.median()), float(found.rank.cpu()[scan.mask].median())
    snr = level / sigma if sigma > 0 else 0.0
    steps.did(
        "denoising",
        f"MP-PCA; noise of {sigma:.4g} (median in the brain), b=0 signal {snr:.1f} times that, {rank:.0f} components kept of "
        f"{len(scan.gtab)}"
        + ("; the slices were interpolated, so that neighbours share their noise: it is more than this" if filled else ""),
        method="MP-PCA", noise_median=_plain(sigma), snr_b0=_plain(snr), components_median=_plain(rank),
    )  # fmt: skip


def _unring(part: Part, plan: PreprocessPlan, device: str, filled: tuple[int, ...]) -> None:
    """``filled``: axes of the slices that were made finer by zero-filling, as the noise of the raw signal tells."""
    steps, scan, metadata = part.steps, part.scan, part.run.metadata
    plane = [axis for axis in range(3) if axis != part.slice_axis]
    axes = tuple(axis for axis in plane if axis not in filled)
    lack = (
        "slices of fewer than 16 voxels along an axis"
        if min(scan.grid.shape[axis] for axis in plane) < 16
        else "its slices were interpolated by zero-filling, so that shifts of less than a voxel do not show the ringing"
        if not axes
        else None
    )
    if not steps.wants("unringing", plan.unring, part.run.done_by, lack):
        return
    encoding, share = encoding_of(metadata), fraction_of(metadata)
    along = None if encoding is None or encoding.axis not in axes else encoding.axis
    signal, said, partial = scan.signal.to(device), "shifts of less than a voxel", share if along is not None else 1.0
    ways: dict[str, Any] = {"slice_axis": part.slice_axis, "axes": axes, "out": signal}
    try:
        found = unring(signal, fraction=partial, encoding_axis=along, **ways)
        said += f", for partial Fourier {share:g}" if partial < 1 else ""
    except InputDataError as error:
        said += f", as if all lines had been measured ({error.found})"
        partial = 1.0
        found = steps.tried("unringing", plan.unring, lambda: unring(signal, **ways))
    if found is None:
        return
    if len(axes) < 2:
        said += f"; along {'ijk'[axes[0]]} only, the other axis was interpolated by zero-filling"
    part.scan = replace(scan, signal=found.clamp_min_(0).cpu())
    steps.did("unringing", said, method="sub-voxel shifts", partial_fourier=partial)


# --- motion, eddy currents, lost slices, distortion --------------------------------------------------------------------------


def find_motion(part: Part, plan: PreprocessPlan, device: str, hz: Float[Tensor, "i j k"] | None = None) -> None:
    """Where the head lay in each volume; ``hz`` is the field on the scan's grid, where it is known."""
    steps, scan = part.steps, part.scan
    thin = min(scan.grid.shape)
    lack = motion.why_not(scan.gtab) or (
        f"an axis of the image has only {thin} voxels; 4 are needed" if thin < 4 else None
    )
    if not steps.wants("motion", plan.motion, part.run.done_by, lack):
        _no_outliers(part, plan)
        return
    settings = MotionSettings(slice_axis=part.slice_axis)
    settings = settings if plan.outliers != OFF else replace(settings, outliers=None)
    settings = settings.sloppy() if plan.sloppy else settings
    # A slice that lies beyond a volume's field of view did not lose its signal.
    brain = scan.mask if part.seen is None else scan.mask & part.seen
    moved = DWI(scan.grid, scan.signal.to(device), scan.gtab, brain.to(device))
    field_hz = None if hz is None else hz.to(device)
    with _one_thread():
        estimate = steps.tried(
            "motion", plan.motion, lambda: correct_motion(moved, part.encoding, settings, hz=field_hz)
        )
    if estimate is None:
        _no_outliers(part, plan)
        return
    part.estimate = on_cpu(estimate)
    displacement = part.estimate.framewise_displacement()
    head = part.estimate.head()
    shift, turn = head[:, :3].norm(dim=-1), head[:, 3:].norm(dim=-1).rad2deg()
    steps.did(
        "motion",
        f"every volume registered to its prediction from the others; mean step {float(displacement[1:].mean()):.2f} mm, "
        f"farthest {float(shift.max()):.2f} mm and {float(turn.max()):.2f}° from the reference"
        + "".join(f"; {note}" for note in estimate.notes),
        method="leave-one-out prediction",
    )  # fmt: skip
    if plan.outliers == OFF:
        steps.left("outliers", "switched off")
    else:
        _tell_outliers(part)


def _no_outliers(part: Part, plan: PreprocessPlan) -> None:
    why_not = "lost slices are found together with motion, which was not corrected"
    part.steps.wants("outliers", plan.outliers, part.run.done_by, why_not)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Long float32 sums round differently for other numbers of threads, and a search goes on from what it found."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n)


def _tell_outliers(part: Part) -> None:
    estimate = part.estimate
    if estimate is None:
        return
    n, total = int(estimate.outliers.sum()), estimate.outliers.numel()
    left = 0 if part.unreplaced is None else int(part.unreplaced.sum())
    volumes = int(estimate.outliers.any(-1).sum())
    said = f"{n} of {total} slices, in {volumes} volume{'' if volumes == 1 else 's'}, had lost signal"
    if not n:
        said += ": none was replaced"
    elif not left:
        said += " and were replaced by their prediction"
    else:
        said += (
            f"; {n - left} of them were replaced by their prediction, {left} not: no other volume shows what was there"
        )
    part.steps.did("outliers", said, slices=n - left, **({"slices_left": left} if left else {}))


def tell_unreplaced(part: Part, unreplaced: Bool[Tensor, "n s"]) -> None:
    """What became of the lost slices, after the series was interpolated."""
    part.unreplaced = unreplaced
    if bool(unreplaced.any()):
        _tell_outliers(part)


def on_cpu(estimate: MotionEstimate) -> MotionEstimate:
    """The same numbers where the rest of the work is done."""
    moved = {
        name: getattr(estimate, name).cpu() for name in ("centre", "rigid", "eddy", "outliers", "scores", "correlation")
    }
    constant = estimate.eddy_constant
    return replace(estimate, eddy_constant=None if constant is None else constant.cpu(), **moved)


# --- shading ------------------------------------------------------------------------------------------------------------


def even(scan: DWI, reference: Image, plan: PreprocessPlan, steps: Steps, done_by: str) -> tuple[DWI, Image | None]:
    """The scan divided by the coils' sensitivity, and that sensitivity."""
    if not steps.wants("bias", plan.bias, done_by, None):
        return scan, None
    mask = Image(scan.grid, scan.mask[None])
    found = steps.tried("bias", plan.bias, lambda: bias_field(reference, mask))
    if found is None:
        return scan, None
    inside = found.values[0][scan.mask]
    low, high = (float(torch.quantile(inside[:: max(1, len(inside) // 500_000)], q)) for q in (0.02, 0.98))
    steps.did("bias", f"divided by a smooth field of {low:.2f} to {high:.2f} (2nd to 98th percentile in the brain)",
              percentiles=[_plain(low), _plain(high)])  # fmt: skip
    # In place: the series is this step's own, and may be all that fits.
    return replace(scan, signal=scan.signal.div_(_factor(found).to(scan.signal))), found


def divided(noise: Image, shading: Image) -> Image:
    """The noise as `even` scaled the series."""
    return Image(noise.grid, noise.values / _factor(shading))


def _factor(shading: Image) -> Float[Tensor, "i j k"]:
    return shading.values[0].clamp_min(0.05)


def failures(parts: Sequence[Part], steps: Steps) -> list[Note]:
    """A warning for each step that failed, and for lost slices that stayed as they were: more than a row of a table."""
    said: dict[str, Note] = {}
    for part in parts:
        for name, record in (part.steps.records | ({} if len(parts) > 1 else steps.records)).items():
            if record.get("failed"):
                text = f"{part.run.name}: no {name}: {record['why']}"
                said[text] = warning("W-PREPROCESS-FAILED", text)
            if left := record.get("slices_left"):
                text = f"{part.run.name}: {left} slices that had lost signal are as they were: no other volume shows what was there"
                said[text] = warning("W-SLICES-LOST", text)
    if len(parts) > 1 and (record := steps.records.get("bias", {})).get("failed"):
        said["bias"] = warning("W-PREPROCESS-FAILED", f"no bias: {record['why']}")
    return list(said.values())


def _plain(value: float) -> float:
    return float(f"{value:.5g}")
