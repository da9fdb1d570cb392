"""How much memory the steps of a dwi run take at most, from the header and the models alone: told before the run starts.

The bounds are sums of what a step holds at a time, rounded up; ``benchmarks/models_memory.py`` measures that of fitting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tractode.contracts import OrientationModel, SignalModel
from tractode.interfaces.model import FEW_ENOUGH, SLAB
from tractode.io.masked_series import IN_MEMORY
from tractode.models import MODELS
from tractode.models.fixels import VOLUMES
from tractode.preprocess.motion import MotionSettings
from tractode.settings import Settings

_GIB = 2**30
_WORKER_GB = 0.7  # an idle worker with torch and the readers loaded
_REGISTRATION_GB = 1.8
_WORK_GB = 0.5  # tiles of a fit, compiled loops, a compressor: of fixed size
_SH_COMPONENTS = 45
_COMPONENTS = {"tensor": 6, "unit3vector": 3, "dec": 3, "sh": _SH_COMPONENTS}
_BRAIN = 0.6  # no mask of a brain fills more of the field of view
_DENOISING_GB = 2.2
_BOOTSTRAP = 24  # samples of a slab's maps that are held beside it


def step_memory_gb(
    shape: Sequence[int],
    models: Sequence[str],
    settings: Settings,
    *,
    voxel_sizes: Sequence[float] = (2.0, 2.0, 2.0),
    is_raw: bool = True,
    n_parts: int = 1,
) -> dict[str, float]:
    """GiB of each kind of step of a run of this shape ``(i, j, k[, n])``, at most; what is not raw is not preprocessed.

    ``n_parts``: of how many runs it is made; the shape is that of all together.
    """
    n_voxels, scan = math.prod(shape[:3]), math.prod(shape) * 4 / _GIB
    fods = n_voxels * _SH_COMPONENTS * 4 / _GIB
    steps = {
        # The series once, its b=0 volumes again; one more where distortion alone is corrected.
        "reading and checking": _WORKER_GB + (2.4 if is_raw and settings.motion == "none" else 1.4) * scan + 0.3,
    }
    if is_raw and (settings.denoise, settings.unring, settings.motion) != ("none", "none", "none"):
        steps["preprocessing"] = _WORKER_GB + _preprocessing_gb(scan, settings, voxel_sizes, n_parts) + 0.3
    elif n_parts > 1:
        # Every run, those put on the first one's grid, and the whole.
        steps["combining"] = _WORKER_GB + 3.2 * scan + 0.3
    if settings.output_spaces:
        steps["registration"] = _WORKER_GB + max(_REGISTRATION_GB, 2 * fods + 1.0)
    if settings.tracking:
        steps["tracking"] = _WORKER_GB + fods + 1.0
    if settings.refine_orientations or settings.sensitivity or settings.streamline_weights == "signal":
        steps["what looks at signal and streamlines together"] = _WORKER_GB + 2 * scan + 2 * fods + 1.0
    for name in models:
        steps[f"fitting {name}"] = fit_memory_gb(shape, MODELS[name], settings.uncertainty, settings.fixels)
    return steps


def _preprocessing_gb(scan: float, settings: Settings, voxel_sizes: Sequence[float], n_parts: int) -> float:
    """What cleaning, aligning and interpolating hold at most; ``scan`` is the size of the series."""
    # Denoising: two slabs of the series by voxels, and the sums of both.
    denoising = 0.0 if settings.denoise == "none" else min(3 * scan, _DENOISING_GB)
    # Motion: a prediction of every volume, in voxels of half the finest smoothing.
    coarser = math.prod(max(1.0, min(MotionSettings().smoothing) / 2 / size) for size in voxel_sizes)
    motion = 0.0 if settings.motion == "none" else scan / coarser + 0.5
    # Of runs that are joined, one that is nearly the whole is held beside what was read of all, as it is interpolated, and joined.
    return max(scan + denoising, scan + motion, (1.2 if n_parts == 1 else 3.2) * scan)


def fit_memory_gb(
    shape: Sequence[int], kind: type[SignalModel], uncertainty: str = "none", fixels: bool = False
) -> float:
    """GiB of fitting one model slab by slab: what is kept of the series, a slab at work, and the maps."""
    n_voxels, n_volumes = math.prod(shape[:3]), shape[3] if len(shape) > 3 else 1
    brain = _BRAIN * n_voxels
    series = min(brain * n_volumes * 4, IN_MEMORY) + n_voxels * 4 * 3
    # What must be known first is learned from a part of the voxels, in float64.
    learned = min(brain, FEW_ENOUGH) * n_volumes * 4 * 4 if _learns(kind) else 0
    components = components_of(kind)
    maps = brain * 4 * (sum(components) * (1 if uncertainty == "none" else 1.5)) + 2 * n_voxels * 4 * max(components)
    if fixels:
        components = [*components, *fixel_components_of(kind)]
        maps += brain * 4 * sum(fixel_components_of(kind))
    slab = min(brain, SLAB) * (n_volumes * 4 * 4 + sum(components) * 4 * 3)
    if uncertainty != "none":
        slab += min(brain, SLAB) * sum(components) * 4 * _BOOTSTRAP
    return _WORKER_GB + _WORK_GB + (series + max(learned, slab + maps)) / _GIB


def components_of(kind: type[SignalModel]) -> list[int]:
    """The number of volumes of each map of a model."""
    return [_COMPONENTS.get(spec.components, 1) for spec in kind.maps]


def fixel_components_of(kind: type[SignalModel]) -> list[int]:
    """The number of volumes of each map of its fixels, if it is a model of orientations."""
    return list(VOLUMES.values()) if issubclass(kind, OrientationModel) else []


def _learns(kind: type[SignalModel]) -> bool:
    """Whether the model must know something of the scan before it is fitted."""
    return kind.for_data.__func__ is not SignalModel.for_data.__func__  # type: ignore[attr-defined]
