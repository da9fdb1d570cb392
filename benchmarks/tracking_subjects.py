"""FODs and masks for the benchmarks of tracking: MRtrix3's CSD on real scans and on a simulated participant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tractode.io.nifti import read_image, write_image

SCANS = {"toshiba60": "sub-toshiba60/dwi/sub-toshiba60_dwi", "xa30": "sub-xa30/dwi/sub-xa30_dir-AP_dwi"}
SIMULATE = ("--participants", "1", "--seed", "1", "--resolution", "2", "--shells", "3000:60", "--no-t1w")


def call(*arguments: object, environment: dict[str, str] | None = None) -> str:
    """A command's output; its complaint, if it fails."""
    done = subprocess.run(
        [str(a) for a in arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))} exited with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def real(name: str, folder: Path) -> tuple[Path, Path]:
    """FOD (order 8, tournier response) and brain mask of a scan of the test data; made once a folder."""
    fod, mask, dwi, response = (folder / n for n in ("fod.nii", "mask.nii", "dwi.mif", "response.txt"))
    if not fod.exists():
        folder.mkdir(parents=True, exist_ok=True)
        stem = Path(os.environ["TRACTODE_TEST_DATA"]) / "bids_real" / SCANS[name]
        call("mrconvert", f"{stem}.nii.gz", dwi, "-fslgrad", f"{stem}.bvec", f"{stem}.bval", "-force")
        call("dwi2mask", dwi, mask, "-force")
        call("dwi2response", "tournier", dwi, response, "-mask", mask, "-scratch", folder, "-force")
        call("dwi2fod", "csd", dwi, response, fod, "-mask", mask, "-lmax", "8", "-force")
    return fod, mask


def simulated(folder: Path) -> tuple[Path, Path, Path]:
    """FOD (order 8), brain mask and white matter of a participant simulated with 2 mm voxels; made once a folder."""
    fod, white = folder / "fod.nii", folder / "white.nii"
    raw = folder / "raw"
    truth = raw / "derivatives" / "truth" / "sub-01" / "dwi"
    mask = truth / "sub-01_desc-brain_mask.nii.gz"
    if not fod.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not (raw / "sub-01" / "dwi" / "sub-01_dwi.nii.gz").exists():
            call(Path(sys.executable).parent / "tractode-simulate", raw, *SIMULATE)
        stem, dwi, response = raw / "sub-01" / "dwi" / "sub-01_dwi", folder / "dwi.mif", folder / "response.txt"
        call("mrconvert", f"{stem}.nii.gz", dwi, "-fslgrad", f"{stem}.bvec", f"{stem}.bval", "-force")
        call("dwi2response", "fa", dwi, response, "-mask", mask, "-scratch", folder, "-force")
        call("dwi2fod", "csd", dwi, response, fod, "-mask", mask, "-lmax", "8", "-force")
        share, _ = read_image(truth / "sub-01_label-WM_probseg.nii.gz", "dwi")
        half = type(share)(share.grid, share.values > 0.5)
        write_image(white, half, dtype=np.uint8)
    return fod, mask, white
