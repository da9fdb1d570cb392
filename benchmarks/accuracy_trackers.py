"""Every tracker that `tracking_accuracy.py` scores, run on one scene: ours, MRtrix3's and DIPY's.

The same FODs, masks and seed masks; step, angle, cutoff and lengths are the same wherever a tracker has them.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_scenes import Scene

from tractode.fields import Streamlines
from tractode.io.tractogram import read_tractogram
from tractode.tracking import TRACKERS
from tractode.tracking.propagate import track_until
from tractode.tracking.seeds import seeds_in_mask

CUTOFF = 0.1
# Step in voxels and largest angle of a step in degrees, for ours and MRtrix3's tracker of the same method.
STEPS: dict[str, tuple[float, float]] = {
    "sdstream": (0.5, 30),
    "tensordet": (0.5, 30),
    "eudx": (0.5, 30),
    "ifod1": (0.5, 30),
    "ifod2": (0.5, 45),
    "ptt": (0.25, 20),
}
MRTRIX = {"sdstream": "SD_STREAM", "tensordet": "Tensor_Det", "ifod1": "iFOD1", "ifod2": "iFOD2"}
DIPY = ("deterministic", "probabilistic", "ptt", "eudx")
# Which peer does the same as ours, and so is compared with it.
PEER_OF = {
    **{name: f"mrtrix3 {algorithm}" for name, algorithm in MRTRIX.items()},
    "ptt": "dipy ptt",
    "eudx": "dipy eudx",
}

Run = Callable[[Scene, int, int], Streamlines]


def runs() -> dict[str, Run]:
    """Every tracker that is there, by its name in the results."""
    found: dict[str, Run] = {f"tractode {name}": _ours(name) for name in STEPS if name in TRACKERS}
    if shutil.which("tckgen"):
        found |= {f"mrtrix3 {algorithm}": _mrtrix(name, algorithm) for name, algorithm in MRTRIX.items()}
    return found | {f"dipy {name}": _dipy(name) for name in DIPY}


def _ours(name: str) -> Run:
    def run(scene: Scene, n: int, seed: int) -> Streamlines:
        step, angle = STEPS[name]
        tracker = TRACKERS[name](
            step_mm=step * scene.voxel,
            angle=math.radians(angle),
            cutoff=CUTOFF,
            min_length=scene.lengths[0],
            max_length=scene.lengths[1],
            batch_size=4096,
        )
        field = {"tensordet": scene.tensor, "eudx": scene.peaks}.get(name, scene.fod)
        generator = torch.Generator().manual_seed(seed)
        parts = [_bare(part) for part in track_until(tracker, field, scene.mask, scene.seeds, n, generator)]
        return Streamlines.concatenate(parts, scene.mask.grid.space)

    return run


def _bare(lines: Streamlines) -> Streamlines:
    return Streamlines(lines.points, lines.offsets, lines.space)


def _mrtrix(name: str, algorithm: str) -> Run:
    def run(scene: Scene, n: int, seed: int) -> Streamlines:
        step, angle = STEPS[name]
        folder = scene.folder
        source = [str(folder / "fod.nii.gz")]
        if algorithm == "Tensor_Det":
            source = [str(folder / "dwi.nii.gz"), "-fslgrad", str(folder / "dwi.bvec"), str(folder / "dwi.bval")]
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            out = Path(temporary) / "lines.tck"
            command = [
                "tckgen", source[0], str(out), *source[1:], "-algorithm", algorithm,
                "-seed_image", str(folder / "seeds.nii.gz"), "-mask", str(folder / "mask.nii.gz"),
                "-select", str(n), "-seeds", str(100 * n), "-step", str(step * scene.voxel), "-angle", str(angle), "-cutoff", str(CUTOFF),
                "-minlength", str(scene.lengths[0]), "-maxlength", str(scene.lengths[1]), "-nthreads", "2", "-quiet",
            ]  # fmt: skip
            subprocess.run(command, check=True, env={**os.environ, "MRTRIX_RNG_SEED": str(seed)})
            return read_tractogram(out, scene.mask.grid.space)[0]

    return run


def _dipy(name: str) -> Run:
    def run(scene: Scene, n: int, seed: int) -> Streamlines:
        from dipy.tracking import tracker
        from dipy.tracking.stopping_criterion import BinaryStoppingCriterion

        track = getattr(tracker, f"{name}_tracking")
        inside = scene.mask.mask & (scene.peaks.amplitudes[0] >= CUTOFF)
        where = BinaryStoppingCriterion(inside.numpy())
        affine = scene.mask.grid.affine.numpy()
        generator = torch.Generator().manual_seed(seed)
        options = _dipy_options(name, scene)
        lines: list[torch.Tensor] = []
        draw = 2 * n
        for _ in range(20):
            if len(lines) >= n:
                break
            seeds = seeds_in_mask(scene.seeds, draw, generator).double().numpy()
            made = track(seeds, where, affine, random_seed=seed, nbr_threads=2, min_len=scene.lengths[0], max_len=scene.lengths[1], **options)  # fmt: skip
            lines += [torch.from_numpy(np.array(line, dtype=np.float32)) for line in made]
        # The first in order of seeds would be right too; they are in random places already.
        return Streamlines.from_list(lines[:n], scene.mask.grid.space)

    return run


def _dipy_options(name: str, scene: Scene) -> dict[str, Any]:
    same = {"ptt": "ptt", "eudx": "eudx"}.get(name, "sdstream")
    step, angle = STEPS[same]
    options: dict[str, Any] = {"step_size": step * scene.voxel, "max_angle": angle}
    if name == "eudx":
        return {**options, "pam": _peaks(scene), "pmf_threshold": CUTOFF}
    if name == "ptt":
        # DIPY divides the step by the voxel size when it turns the angle into a curvature: half the angle for 2 mm
        # voxels means what ours means, and so on; the probe is 0.75 voxel.
        options = {
            "step_size": step * scene.voxel,
            "max_angle": angle / scene.voxel,
            "probe_length": 0.75 * scene.voxel,
        }
    coefficients = np.ascontiguousarray(scene.fod.coeffs.movedim(0, -1).double().numpy())
    return {**options, "sh": coefficients, "basis_type": "tournier07", "legacy": False}


class _Peaks:
    """Our peaks as DIPY reads them: each one a vertex of its own."""

    def __init__(self, indices: np.ndarray, values: np.ndarray, vertices: np.ndarray) -> None:
        self.peak_indices, self.peak_values, self.odf_vertices = indices, values, vertices


def _peaks(scene: Scene) -> _Peaks:
    amplitudes = scene.peaks.amplitudes.movedim(0, -1).double().numpy()
    directions = scene.peaks.directions.permute(2, 3, 4, 0, 1).double().numpy()
    there = amplitudes > 0
    indices = np.full(amplitudes.shape, -1, dtype=np.int32)
    indices[there] = np.arange(int(there.sum()), dtype=np.int32)
    return _Peaks(indices, amplitudes, np.ascontiguousarray(directions[there]))
