"""The local trackers of `gentract.py`: ours and MRtrix3's, on one FOD, one tracking mask and one mask of seeds.

All at their defaults, the same in both programs: SD_STREAM steps of 0.1 voxel, 60°; iFOD2 steps of 0.5 voxel, 45°; cutoff 0.1;
lengths of 5 to 100 voxels. The true bundles are 10 to 290 mm long. ``…_20mm`` keeps lines of 20 to 250 mm only: more precise,
without the shortest bundles. Seeds are uniform in the true white matter (fraction above 0.5) and lines stay where it is
above 0.2: neither mask has noise, which a real scan's would have.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from tractode.fields import Image, ShField, Streamlines
from tractode.io.nifti import write_image
from tractode.io.tractogram import read_tractogram
from tractode.tracking import TRACKERS
from tractode.tracking.propagate import track_until

CUTOFF = 0.1


@dataclass(frozen=True)
class Local:
    """Which program's method; ``lengths`` in mm, ``None`` for the default of 5 to 100 voxels."""

    method: str
    is_mrtrix3: bool = False
    lengths: tuple[float, float] | None = None


_LONG = (20.0, 250.0)
LOCAL = {
    "sdstream": Local("sdstream"),
    "ifod2": Local("ifod2"),
    "mrtrix3_sdstream": Local("SD_STREAM", True),
    "mrtrix3_ifod2": Local("iFOD2", True),
    "sdstream_20mm": Local("sdstream", lengths=_LONG),
    "ifod2_20mm": Local("ifod2", lengths=_LONG),
    "mrtrix3_sdstream_20mm": Local("SD_STREAM", True, _LONG),
    "mrtrix3_ifod2_20mm": Local("iFOD2", True, _LONG),
}


def available() -> tuple[str, ...]:
    """The trackers that can run here."""
    return tuple(name for name, one in LOCAL.items() if not one.is_mrtrix3 or shutil.which("tckgen"))


def track(name: str, fod: ShField, white: Image, n: int, seed: int) -> Streamlines:
    """``n`` accepted streamlines (fewer where 100 seeds a line do not suffice). ``white`` is the white-matter fraction."""
    mask, seeds = Image(white.grid, white.values[:1] > 0.2), Image(white.grid, white.values[:1] > 0.5)
    run = _mrtrix3 if LOCAL[name].is_mrtrix3 else _ours
    return run(LOCAL[name], fod, mask, seeds, n, seed)


def _ours(local: Local, fod: ShField, mask: Image, seeds: Image, n: int, seed: int) -> Streamlines:
    least, most = local.lengths or (None, None)
    tracker = TRACKERS[local.method](cutoff=CUTOFF, min_length=least, max_length=most, batch_size=4096)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        Streamlines(part.points, part.offsets, part.space)
        for part in track_until(tracker, fod, mask, seeds, n, generator)
    ]
    return Streamlines.concatenate(parts, fod.grid.space)


def _mrtrix3(local: Local, fod: ShField, mask: Image, seeds: Image, n: int, seed: int) -> Streamlines:
    with tempfile.TemporaryDirectory(prefix="tckgen-") as temporary:
        folder = Path(temporary)
        write_image(folder / "fod.nii", Image(fod.grid, fod.coeffs.float()))
        for stem, image in (("mask", mask), ("seeds", seeds)):
            write_image(folder / f"{stem}.nii", Image(image.grid, image.values.float()))
        least, most = local.lengths or (None, None)
        command = [
            "tckgen", str(folder / "fod.nii"), str(folder / "lines.tck"), "-algorithm", local.method,
            "-seed_image", str(folder / "seeds.nii"), "-mask", str(folder / "mask.nii"),
            "-select", str(n), "-seeds", str(100 * n), "-cutoff", str(CUTOFF), "-nthreads", "1", "-quiet",
            *(() if least is None else ("-minlength", str(least), "-maxlength", str(most))),
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "MRTRIX_RNG_SEED": str(seed)})
        return read_tractogram(folder / "lines.tck", fod.grid.space)[0]
