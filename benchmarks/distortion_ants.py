"""SyN of ANTs along one axis only, of a brain cut out of T1w or T2w against a b=0 image on one upright grid.

    PEERS/bin/python benchmarks/distortion_ants.py FIXED MOVING MASK AXIS METRIC OUTPUT.npy

Writes how far (mm along the axis of the array, RAS+ sense) every voxel of FIXED finds itself in MOVING.
"""

import sys

import ants
import numpy as np


def main() -> None:
    fixed, moving, mask = (ants.image_read(name) for name in sys.argv[1:4])
    axis, metric, output = int(sys.argv[4]), sys.argv[5], sys.argv[6]
    found = ants.registration(
        fixed,
        moving,
        type_of_transform="SyNOnly",
        initial_transform="Identity",
        mask=mask,
        syn_metric=metric,
        syn_sampling=32 if metric == "mattes" else 4,
        reg_iterations=(40, 20, 10),
        restrict_transformation=tuple(int(a == axis) for a in range(3)),
    )
    warp = [name for name in found["fwdtransforms"] if name.endswith(".nii.gz")]
    moved = ants.image_read(warp[0]).numpy()[..., axis]
    # ITK's axes are LPS+; the grid is upright in RAS+.
    np.save(output, moved * (1 if axis == 2 else -1))


if __name__ == "__main__":
    main()
