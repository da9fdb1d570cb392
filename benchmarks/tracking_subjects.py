"""FODs, masks and tissues for the benchmarks of tracking: MRtrix3's CSD on real scans and on a simulated participant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np

from tractode.bids.templates import BUILT_IN, find_template, load_tissues
from tractode.fields import Image
from tractode.fields.transform import resample
from tractode.io.nifti import read_image, write_image
from tractode.io.transforms import read_itk
from tractode.preprocess import five_tissue

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
    fod, mask, white = folder / "fod.nii", folder / "mask.nii", folder / "white.nii"
    raw = folder / "raw"
    truth = raw / "derivatives" / "truth" / "sub-01" / "dwi"
    if not fod.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not (raw / "sub-01" / "dwi" / "sub-01_dwi.nii.gz").exists():
            call(Path(sys.executable).parent / "tractode-simulate", raw, *SIMULATE)
        stem, dwi, response = raw / "sub-01" / "dwi" / "sub-01_dwi", folder / "dwi.mif", folder / "response.txt"
        write_plain(truth / "sub-01_desc-brain_mask.nii.gz", mask, np.uint8)
        call("mrconvert", f"{stem}.nii.gz", dwi, "-fslgrad", f"{stem}.bvec", f"{stem}.bval", "-force")
        call("dwi2response", "fa", dwi, response, "-mask", mask, "-scratch", folder, "-force")
        call("dwi2fod", "csd", dwi, response, fod, "-mask", mask, "-lmax", "8", "-force")
        write_plain(fod, fod, np.float32)
        share, _ = read_image(truth / "sub-01_label-WM_probseg.nii.gz", "dwi")
        half = type(share)(share.grid, share.values > 0.5)
        write_image(white, half, dtype=np.uint8)
        write_plain(white, white, np.uint8)
    return fod, mask, white


def write_plain(image: Path, out: Path, kind: type) -> None:
    """A copy in right–anterior–superior storage order, without a negative zero in the affine.

    tckgen 3.0.3 never sets its pointer to tabulated Legendre functions under ``-noprecomputed``: it is what the stack
    held before, here an entry of the transform of the image opened last. 0 is no table, as meant; −0, which MRtrix3 makes
    when it turns an axis of an image, is an address, and it crashes.
    """
    plain = nibabel.as_closest_canonical(nibabel.load(image))
    nibabel.save(nibabel.Nifti1Image(np.array(plain.dataobj, dtype=kind), plain.affine + 0.0), out)


def tissues(name: str, folder: Path) -> Path:
    """Five-tissue maps of the template in a scan, at 1 mm, as ``--act template`` makes them; once a folder.

    In a real scan they are the app's own, through its registrations; in the simulated participant the template goes
    through the warp that the participant was made with.
    """
    out = folder / "5tt.nii"
    if not out.exists():
        found = _simulated_tissues(folder) if name == "simulated" else _real_tissues(name, folder)
        write_image(out, found)
    return out


def _real_tissues(name: str, folder: Path) -> Image:
    """Those of the app, run on this one scan."""
    subject, direction = SCANS[name].split("/")[0], SCANS[name].partition("_dir-")[2].partition("_")[0]
    chosen, made = folder / "filter.json", folder / "app"
    chosen.write_text(json.dumps({"dwi": {"direction": direction}} if direction else {}))
    call(Path(sys.executable).parent / "tractode", Path(os.environ["TRACTODE_TEST_DATA"]) / "bids_real", made, "participant",
         "--participant-label", subject, "--act", "template", "--n-streamlines", 100, "--skip-bids-validation",
         "--bids-filter-file", chosen, "-w", folder / "app-work")  # fmt: skip
    (path,) = (made / subject / "dwi").glob("*_desc-5tt_probseg.nii.gz")
    return read_image(path, "dwi")[0]


def _simulated_tissues(folder: Path) -> Image:
    truth = folder / "raw" / "derivatives" / "truth" / "sub-01"
    scan, _ = read_image(truth / "dwi" / "sub-01_desc-brain_mask.nii.gz", "T1w")
    warp = read_itk(truth / "anat" / f"sub-01_from-{BUILT_IN}_to-T1w_mode-image_xfm.h5", "T1w", BUILT_IN)
    maps = resample(load_tissues(find_template(BUILT_IN)), scan.grid.resampled(1.0), warp)
    return five_tissue.filled(maps)
