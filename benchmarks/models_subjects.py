"""Scans for the benchmarks of models: a simulated brain with two shells, its parts, and real scans, as plain files."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from tracking_subjects import SCANS, call

SIMULATE = ("--participants", "1", "--seed", "7", "--shells", "1000:64,2500:64", "--b0s", "6", "--no-t1w")


@dataclass(frozen=True)
class Scan:
    """Uncompressed image, gradients and masks; ``white`` is where fibres are compared."""

    dwi: Path
    bval: Path
    bvec: Path
    mask: Path
    white: Path

    @property
    def mrtrix(self) -> list[str]:
        """What every command of MRtrix3 needs to know the table."""
        return ["-fslgrad", str(self.bvec), str(self.bval)]


def simulated(folder: Path, resolution: float = 2.0) -> Scan:
    """A whole brain with 6 b=0 and 64 directions at b=1000 and at b=2500, SNR 30; made once a folder."""
    scan = _named(folder, "multi")
    if not scan.white.exists():
        folder.mkdir(parents=True, exist_ok=True)
        raw = folder / "raw"
        if not (raw / "sub-01" / "dwi" / "sub-01_dwi.nii.gz").exists():
            call(Path(sys.executable).parent / "tractode-simulate", raw, *SIMULATE, "--resolution", resolution)
        stem = raw / "sub-01" / "dwi" / "sub-01_dwi"
        truth = raw / "derivatives" / "truth" / "sub-01" / "dwi"
        _plain(Path(f"{stem}.nii.gz"), scan.dwi, np.int16)
        for suffix, path in (("bval", scan.bval), ("bvec", scan.bvec)):
            path.write_text(Path(f"{stem}.{suffix}").read_text())
        _plain(truth / "sub-01_desc-brain_mask.nii.gz", scan.mask, np.uint8)
        white = nibabel.load(truth / "sub-01_label-WM_probseg.nii.gz")
        half = (np.asanyarray(white.dataobj) > 0.5).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(half, white.affine), scan.white)
    return scan


def shell_of(scan: Scan, folder: Path, b: int) -> Scan:
    """The b=0 volumes and one shell of a scan."""
    part = _named(folder, f"b{b}")
    if not part.bvec.exists():
        bvals = np.loadtxt(scan.bval)
        chosen = (bvals < 50) | (np.abs(bvals - b) < 50)
        image = nibabel.load(scan.dwi)
        values = np.asanyarray(image.dataobj)[..., chosen]
        nibabel.save(nibabel.Nifti1Image(values, image.affine), part.dwi)
        np.savetxt(part.bval, bvals[None, chosen], fmt="%g")
        np.savetxt(part.bvec, np.loadtxt(scan.bvec)[:, chosen], fmt="%.8f")
    return Scan(part.dwi, part.bval, part.bvec, scan.mask, scan.white)


def slab_of(scan: Scan, folder: Path, name: str, n_slices: int) -> Scan:
    """The middle slices of a scan, for peers that take long."""
    part = _named(folder, name)
    if not part.white.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in ((scan.dwi, part.dwi), (scan.mask, part.mask), (scan.white, part.white)):
            image = nibabel.load(source)
            first = (image.shape[2] - n_slices) // 2
            sliced = image.slicer[:, :, first : first + n_slices]
            nibabel.save(nibabel.Nifti1Image(np.asanyarray(sliced.dataobj), sliced.affine), target)
        part.bval.write_text(scan.bval.read_text())
        part.bvec.write_text(scan.bvec.read_text())
    return part


def real(name: str, folder: Path) -> Scan:
    """A scan of the test data; ``white`` is FA above 0.3 by MRtrix3 inside its mask."""
    scan = _named(folder, name)
    if not scan.white.exists():
        folder.mkdir(parents=True, exist_ok=True)
        stem = Path(os.environ["TRACTODE_TEST_DATA"]) / "bids_real" / SCANS[name]
        _plain(Path(f"{stem}.nii.gz"), scan.dwi, np.float32)
        for suffix, path in (("bval", scan.bval), ("bvec", scan.bvec)):
            path.write_text(Path(f"{stem}.{suffix}").read_text())
        tensor, fa = folder / "tensor.mif", folder / "fa.mif"
        call("dwi2mask", scan.dwi, scan.mask, *scan.mrtrix, "-force", "-quiet")
        call("dwi2tensor", scan.dwi, tensor, "-mask", scan.mask, *scan.mrtrix, "-force", "-quiet")
        call("tensor2metric", tensor, "-fa", fa, "-mask", scan.mask, "-force", "-quiet")
        call("mrcalc", fa, 0.3, "-gt", fa, 1, "-le", "-mult", scan.mask, "-mult", scan.white, "-datatype", "uint8", "-force", "-quiet")  # fmt: skip
    return scan


def _named(folder: Path, name: str) -> Scan:
    return Scan(*(folder / f"{name}{end}" for end in (".nii", ".bval", ".bvec", "_mask.nii", "_white.nii")))


def _plain(source: Path, target: Path, kind: type) -> None:
    image = nibabel.load(source)
    header = image.header.copy()
    header.set_data_dtype(kind)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj).astype(kind), image.affine, header), target)
