"""Processor seconds and memory of one registration against the number of voxels: T1w → T2w of the template, 4 mm to 1 mm.

    python benchmarks/registration_scaling.py [--resolutions 4 3 2 1] [--output benchmarks/results/registration_scaling.json]

Every size runs in a process of its own (`registration_run.py`): ``COARSE`` down to 2 mm, ``FINE`` at 1 mm.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import measure
import nibabel
import numpy as np
import registration_pairs as pairs

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--resolutions", nargs="+", type=float, default=[4.0, 3.0, 2.0, 1.0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output")
    options = parser.parse_args()
    command = "python benchmarks/registration_scaling.py " + " ".join(sys.argv[1:])
    result: dict[str, object] = {
        "meta": {**measure.meta(command), "load": os.getloadavg()[2], "threads": options.threads}
    }
    for resolution in options.resolutions:
        pair = pairs.simulated(0, resolution)
        method = "tractode fine" if resolution < 1.5 else "tractode"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for kind in ("fixed", "moving", "fixed_mask", "moving_mask"):
                image = getattr(pair, kind)
                values = image.values[0].numpy().astype(np.float32)
                nibabel.save(nibabel.Nifti1Image(values, image.grid.affine.numpy()), folder / f"{kind}.nii.gz")
            threads = {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
            found = measure.watch([sys.executable, str(HERE / "registration_run.py"), method, name], threads)
            cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
        result[f"{resolution:g} mm"] = {
            "n": 1, "method": method, "voxels": pair.fixed.grid.n_voxels, "brain_voxels": int(pair.fixed_mask.mask.sum()),
            **{key: round(value, 2) for key, value in cost.items()}, "peak_rss_mb": found.peak_rss_mb,
        }  # fmt: skip
        print(json.dumps(result[f"{resolution:g} mm"]), file=sys.stderr, flush=True)
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
