"""DIPY's ordinary least-squares tensor from files to files, as one process: a peer of `models_fit.py`.

python benchmarks/models_fit_dipy.py DWI.nii BVAL BVEC MASK.nii OUT.nii
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402

import nibabel  # noqa: E402
import numpy as np  # noqa: E402
from dipy.core.gradients import gradient_table  # noqa: E402
from dipy.reconst.dti import TensorModel  # noqa: E402


def main() -> int:
    dwi, bval, bvec, mask, out = sys.argv[1:]
    image = nibabel.load(dwi)
    inside = np.asanyarray(nibabel.load(mask).dataobj) > 0
    table = gradient_table(np.loadtxt(bval), bvecs=np.loadtxt(bvec).T, b0_threshold=50)
    signal = np.asanyarray(image.dataobj)[inside].astype(np.float64)
    read = time.perf_counter()
    fit = TensorModel(table, fit_method="OLS").fit(signal)
    fitted = time.perf_counter()
    values = np.zeros((*inside.shape, 6), np.float32)
    values[inside] = fit.lower_triangular()
    nibabel.save(nibabel.Nifti1Image(values, image.affine), out)
    print(json.dumps({"n": len(signal), "seconds": {"import_read": read - STARTED, "fit": fitted - read}}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
