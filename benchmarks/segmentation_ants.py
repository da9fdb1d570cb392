"""ANTs' N4 and Atropos on one image, with the priors and the mask that ours had: the peer of ``segmentation.py``.

    PEERS/bin/python benchmarks/segmentation_ants.py FOLDER

Reads image, mask and the priors GM, WM, CSF (``.nii.gz``) of the folder; writes ``corrected`` and ``labels`` (1, 2, 3) there.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import ants


def main() -> None:
    folder = Path(sys.argv[1])
    image, mask = (ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("image", "mask"))
    priors = [ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("GM", "WM", "CSF")]
    start = time.process_time()
    corrected = ants.n4_bias_field_correction(image, mask=mask)
    ants.image_write(corrected, str(folder / "corrected.nii.gz"))
    # As antsAtroposN4.sh has it: a Markov field of 0.1 over the nearest voxels, priors weighing a quarter.
    found = ants.atropos(corrected, mask, i=priors, m="[0.1,1x1x1]", c="[5,0]", priorweight=0.25)
    ants.image_write(found["segmentation"], str(folder / "labels.nii.gz"))
    print(time.process_time() - start)


if __name__ == "__main__":
    main()
