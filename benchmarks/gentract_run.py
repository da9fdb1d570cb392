"""One process that generates: a field on the training grid in, a tractogram of 64 points a line out; what `gentract.py` times.

    python benchmarks/gentract_run.py FIELD.nii OUT.tck --weights FOLDER --select 10000

Prints one JSON object: streamlines, points, and seconds since the process started at which each part was done.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import psutil

STARTED = psutil.Process().create_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("field", type=Path, help="SH coefficients on the training grid")
    parser.add_argument("output", type=Path, help=".tck or .trx")
    parser.add_argument("--weights", type=Path, help="folder; those shipped by default")
    parser.add_argument("--select", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    print(json.dumps(generate(parser.parse_args())))


def generate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything is imported here, so that the imports are timed too."""
    import torch

    from tractode.fields import ShField
    from tractode.fields.sh import order_of
    from tractode.generative.gentract import GenTract
    from tractode.io.nifti import read_image
    from tractode.io.tractogram_stream import stream_to
    from tractode.io.weights import read_weights, shipped

    clock = {"imports": elapsed()}
    torch.set_num_threads(arguments.threads)
    model = GenTract.from_weights(*read_weights(arguments.weights or shipped("gentract"))).to(arguments.device)
    clock["weights"] = elapsed()
    image, _ = read_image(arguments.field, model.space)
    coeffs = image.values.float()
    seen = model.context(ShField(image.grid, coeffs, order_of(len(coeffs))))
    clock["encoded"] = elapsed()
    with stream_to(arguments.output, image.grid) as stream:
        for lines in model.sample(seen, arguments.select, torch.Generator().manual_seed(0)):
            clock.setdefault("first_batch", elapsed())
            stream.append(lines)
    clock["end"] = elapsed()
    return {
        "n": stream.n_streamlines,
        "n_points": stream.n_points,
        "seconds": clock,
        "processor_s": round(time.process_time(), 1),
    }


def elapsed() -> float:
    return round(time.time() - STARTED, 2)


if __name__ == "__main__":
    main()
