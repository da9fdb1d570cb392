"""One model fitted from files to files, as one process: what `models_speed.py` times.

    python benchmarks/models_fit.py MODEL DWI.nii BVAL BVEC MASK.nii OUT.nii [--responses FILE …]

Reads and fits the voxels of the mask block by block with the package's own reader, as the app does, writes the parameters as
one float32 image and prints the seconds of each part as JSON. Where a model has a response, it is read from files of MRtrix3's format.
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
    from tractode.cli.environment import lasting_imports

    with lasting_imports():  # as the app does
        import numpy as np
        import torch

        from tractode.io.gradients import GradientPolicy, parse_gradients, to_table
        from tractode.io.masked_series import masked_series
        from tractode.io.nifti import read_image, write_volumes
        from tractode.models import MODELS

        kind = MODELS[arguments.model]
    at = lap(parts, "import", STARTED)
    mask, _ = read_image(arguments.mask, "dwi")
    with masked_series(arguments.dwi, mask.mask) as series, torch.inference_mode():
        stored, _ = parse_gradients(arguments.bval, arguments.bvec, series.n_volumes, policy=GradientPolicy())
        gtab = to_table(stored, mask.grid.affine)
        model = configured(kind, arguments.responses, gtab, arguments.fit_method)
        fitted: np.ndarray | None = None
        for which, signal in series.blocks():
            at = lap(parts, "read", at)
            params = model.fit(signal, gtab)
            at = lap(parts, "fit", at)
            if fitted is None:
                fitted = np.empty((params.shape[1], len(series)), np.float32)
            fitted[:, which] = params.mT.numpy()
            at = lap(parts, "arrange", at)
        assert fitted is not None
        volume = np.zeros(mask.grid.shape, np.float32, order="F")

        def volumes():
            for row in fitted:
                volume.T.reshape(-1)[series.index] = row
                yield volume

        write_volumes(arguments.out, mask.grid, volumes(), len(fitted))
    lap(parts, "write", at)
    print(
        json.dumps(
            {
                "n": len(series),
                "threads": torch.get_num_threads(),
                "seconds": {k: round(v, 3) for k, v in parts.items()},
            }
        )
    )
    return 0


def lap(parts: dict[str, float], name: str, since: float) -> float:
    now = time.perf_counter()
    parts[name] = parts.get(name, 0.0) + now - since
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
