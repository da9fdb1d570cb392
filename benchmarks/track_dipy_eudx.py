"""DIPY's EuDX as one process, for `tracking_speed.py`, and the peak image that both programs start from.

    python benchmarks/track_dipy_eudx.py peaks FOD PEAKS.nii
    python benchmarks/track_dipy_eudx.py track PEAKS.nii MASK OUT.tck N

DIPY gets seeds drawn in the mask until N lines of 20–250 mm are found; it keeps a peak as the nearest of 724 vertices.
What turning our peaks into DIPY's takes is printed apart: a user of DIPY would have them, so it is not held against it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def make_peaks(fod: Path, out: Path) -> None:
    """Peaks of every voxel, 3 numbers each, as long as their amplitudes."""
    import math

    from tractode.fields import Image, ShField
    from tractode.io.nifti import read_image, write_image
    from tractode.tracking.peak_field import peak_field

    image, _ = read_image(fod, "dwi")
    coeffs = image.values.float()
    found = peak_field(ShField(image.grid, coeffs, (math.isqrt(8 * len(coeffs) + 1) - 3) // 2), n_peaks=3)
    write_image(out, Image(image.grid, (found.directions * found.amplitudes[:, None]).flatten(0, 1)))


def track(peaks: Path, mask: Path, out: Path, n: int) -> dict[str, float]:
    """Lines found and written, and the seconds spent on indices, tracking and writing."""
    import nibabel as nib
    import numpy as np
    from dipy.data import get_sphere
    from dipy.direction.peaks import PeaksAndMetrics
    from dipy.tracking.stopping_criterion import BinaryStoppingCriterion
    from dipy.tracking.streamline import Streamlines
    from dipy.tracking.tracker import eudx_tracking
    from dipy.tracking.utils import random_seeds_from_mask
    from nibabel.streamlines import Tractogram, save

    image = nib.load(peaks)
    vectors = np.nan_to_num(image.get_fdata(dtype=np.float32)).reshape(*image.shape[:3], -1, 3)
    values = np.linalg.norm(vectors, axis=-1)
    sphere = get_sphere(name="repulsion724")
    inside = np.asarray(nib.load(mask).dataobj) > 0
    began = time.perf_counter()
    indices = np.full(values.shape, -1, np.int32)
    present = (values > 0) & inside[..., None]
    # The vertex of DIPY's sphere nearest to each axis.
    axes = np.array_split(vectors[present], 100)
    indices[present] = np.concatenate([np.abs(part @ sphere.vertices.T.astype(np.float32)).argmax(-1) for part in axes])
    indexed = time.perf_counter()
    pam = PeaksAndMetrics()
    pam.sphere, pam.affine = sphere, image.affine
    pam.peak_dirs, pam.peak_values, pam.peak_indices = vectors, values.astype(np.float64), indices
    lines, random_seed = Streamlines(), 1
    while len(lines) < n:
        seeds = random_seeds_from_mask(inside, image.affine, seeds_count=n // 2, seed_count_per_voxel=False,
                                       random_seed=random_seed)  # fmt: skip
        found = eudx_tracking(
            seeds, BinaryStoppingCriterion(inside), image.affine, pam=pam, min_len=20, max_len=250, step_size=1.0,
            max_angle=30, pmf_threshold=0.1, sphere=sphere, nbr_threads=2, random_seed=random_seed,
        )  # fmt: skip
        lines.extend(Streamlines(found))
        random_seed += 1
    tracked = time.perf_counter()
    save(Tractogram(lines[:n], affine_to_rasmm=np.eye(4)), str(out))
    return {
        "n": min(n, len(lines)),
        "index_s": indexed - began,
        "track_s": tracked - indexed,
        "write_s": time.perf_counter() - tracked,
    }


if __name__ == "__main__":
    if sys.argv[1] == "peaks":
        make_peaks(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        print(json.dumps(track(*map(Path, sys.argv[2:5]), int(sys.argv[5]))))
