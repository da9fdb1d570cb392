"""One process that tracks: an FOD (or peak) image and masks in, a tractogram out; what `tracking_speed.py` times.

    python benchmarks/track_file.py FOD MASK OUT.tck --tracker sdstream --select 100000 --step 1 --seed-mask WHITE

Prints one JSON object: streamlines, points, and seconds since the process started at which each part was done.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import psutil

STARTED = psutil.Process().create_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "field", type=Path, help="SH coefficients; with --peaks, 3 numbers a peak, as long as its amplitude"
    )
    parser.add_argument("mask", type=Path)
    parser.add_argument("output", type=Path, help=".tck or .trx")
    parser.add_argument("--tracker", default="sdstream")
    parser.add_argument("--select", type=int, default=100_000)
    parser.add_argument("--seed-mask", type=Path)
    parser.add_argument("--step", type=float)
    parser.add_argument("--angle", type=float, help="degrees")
    parser.add_argument("--cutoff", type=float)
    parser.add_argument("--min-length", type=float)
    parser.add_argument("--max-length", type=float)
    parser.add_argument("--integration", choices=("euler", "rk4"))
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--random-seed", type=int, default=0)
    parser.add_argument("--peaks", action="store_true")
    parser.add_argument("--device", default="cpu")
    print(json.dumps(track(parser.parse_args())))


def track(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything is imported here, so that the imports are timed too."""
    import torch

    from tractode.fields import Image
    from tractode.io.nifti import read_image
    from tractode.io.tractogram_stream import stream_to
    from tractode.tracking import TRACKERS
    from tractode.tracking.propagate import track_until

    clock = {"imports": elapsed()}
    torch.set_num_threads(arguments.threads)
    image, _ = read_image(arguments.field, "dwi")
    mask, seed_mask = (read_image(path, "dwi")[0] for path in (arguments.mask, arguments.seed_mask or arguments.mask))
    mask, seed_mask = (Image(m.grid, m.values > 0.5) for m in (mask, seed_mask))
    field = as_peaks(image) if arguments.peaks else as_harmonics(image)
    if arguments.device != "cpu":
        field = field.to(arguments.device)
    del image
    clock["read"] = elapsed()
    names = ("cutoff", "min_length", "max_length", "integration", "batch_size")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.step is not None:
        options["step_mm"] = arguments.step
    if arguments.angle is not None:
        options["angle"] = math.radians(arguments.angle)
    tracker = TRACKERS[arguments.tracker](**options)
    generator = torch.Generator().manual_seed(arguments.random_seed)
    with stream_to(arguments.output, mask.grid) as stream:
        for lines in track_until(tracker, field, mask, seed_mask, arguments.select, generator, 2**62):
            clock.setdefault("first_batch", elapsed())
            stream.append(lines)
    clock["end"] = elapsed()
    return {"n": stream.n_streamlines, "n_points": stream.n_points, "seconds": clock}


def elapsed() -> float:
    return round(time.time() - STARTED, 2)


def as_harmonics(image: Any) -> Any:
    from tractode.fields import ShField

    coeffs = image.values.float()
    return ShField(image.grid, coeffs, (math.isqrt(8 * len(coeffs) + 1) - 3) // 2)


def as_peaks(image: Any) -> Any:
    from tractode.fields import PeakField

    vectors = image.values.float().nan_to_num(0.0).unflatten(0, (-1, 3))
    amplitudes = vectors.norm(dim=1)
    return PeakField(image.grid, vectors / amplitudes.clamp_min(1e-12)[:, None], amplitudes)


if __name__ == "__main__":
    main()
