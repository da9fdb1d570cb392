"""One model fitted from files to files, as one process: what `models_speed.py` times.

    python benchmarks/models_fit.py MODEL DWI.nii BVAL BVEC MASK.nii OUT.nii [--responses FILE …]

Reads with the package's own readers, fits every voxel of the mask, writes the parameters as one float32 image and prints
the seconds of each part as JSON. Where a model has a response, it is read from files of MRtrix3's format.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name in ("dwi", "bval", "bvec", "mask", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--responses", type=Path, nargs="*", default=[])
    parser.add_argument("--fit-method")
    arguments = parser.parse_args()
    parts: dict[str, float] = {}
    import torch

    from tractode.fields import DWI
    from tractode.io.dwi import IngestPolicy, read_dwi
    from tractode.io.nifti import read_image, write_image
    from tractode.models import MODELS

    kind = MODELS[arguments.model]
    at = lap(parts, "import", STARTED)
    scan, _ = read_dwi(arguments.dwi, arguments.bval, arguments.bvec, "dwi", IngestPolicy(b0_threshold=10.0))
    mask, _ = read_image(arguments.mask, "dwi")
    scan = DWI(scan.grid, scan.signal, scan.gtab, mask.mask)
    at = lap(parts, "read", at)
    signal = scan.voxels()
    model = configured(kind, arguments.responses, scan.gtab, arguments.fit_method)
    at = lap(parts, "arrange", at)
    with torch.inference_mode():
        params = model.fit(signal, scan.gtab)
    at = lap(parts, "fit", at)
    write_image(arguments.out, scan.unravel(params))
    lap(parts, "write", at)
    print(json.dumps({"n": len(signal), "threads": torch.get_num_threads(), "seconds": parts}))
    return 0


def lap(parts: dict[str, float], name: str, since: float) -> float:
    now = time.perf_counter()
    parts[name] = round(now - since, 3)
    return now


def configured(kind: Any, responses: list[Path], gtab: Any, fit_method: str | None) -> Any:
    """The model with the responses given, none of them estimated."""
    if not responses:
        return kind(fit_method=fit_method) if fit_method else kind()
    from tractode.io.response import load_response

    tissues = ("wm", "gm", "csf") if len(responses) == 3 else ("wm", "csf")
    loaded = [load_response(path, tissue) for path, tissue in zip(responses, tissues, strict=False)]
    if len(loaded) == 1:
        return kind(loaded[0].single_shell(float(gtab.bvals.max())))
    return kind(tuple(loaded))


if __name__ == "__main__":
    raise SystemExit(main())
