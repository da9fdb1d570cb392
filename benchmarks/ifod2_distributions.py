"""iFOD2 and iFOD1 against MRtrix3's in distribution, beside MRtrix3 against itself with another random seed.

    python benchmarks/ifod2_distributions.py [--output FILE] [--lines 10000] [--only toshiba60 xa30 simulated] [--work FOLDER]

What is in FILE already stays, unless it is measured anew; each entry says at which commit it was measured. For each subject: streamlines of ours and of ``tckgen`` with two random seeds each, on the same FOD, mask and seed mask.
For ours against tckgen (``ours``), tckgen against tckgen (``tckgen_itself``) and ours against ours (``ours_itself``):

- ``length_ks``, ``turn_ks``: two-sample Kolmogorov–Smirnov statistics (and ``_p``) of length in mm and of mean turn in
  rad/mm (the sum of the angles between segments over the length);
- ``visits_correlation``: Pearson's correlation of the maps of how many lines pass through each voxel, over the mask;
  with so few lines it is mostly noise, and has to be read beside that of two runs of one program; ``visits_difference``: the sum of the absolute differences over that of the means.

`compare` does it for any two sets of lines, `subject` for any FOD and mask.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import meta
from scipy import stats
from tracking_subjects import call, real, simulated

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.io.nifti import read_image
from tractode.io.tractogram import read_tractogram
from tractode.tracking.ifod1 import IFOD1
from tractode.tracking.ifod2 import IFOD2
from tractode.tracking.method import StreamlineTracker
from tractode.tracking.propagate import track_until

ALGORITHMS: dict[str, type[StreamlineTracker]] = {"iFOD2": IFOD2, "iFOD1": IFOD1}
# tckgen's n-th thread takes its random seed plus n: seeds closer than the threads are many share lines, and would agree
# better than two independent runs do.
RANDOM_SEEDS = (1, 1001)
SPACING = 0.25  # of a voxel: lines are resampled so that no voxel they pass through is missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--lines-ifod1", type=int, default=2_000)
    parser.add_argument("--only", nargs="*", default=["toshiba60", "xa30", "simulated"])
    parser.add_argument("--work", type=Path, help="folder that keeps FODs between runs; a temporary one by default")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="distributions-"))
    command = " ".join(["python benchmarks/ifod2_distributions.py", *sys.argv[1:]])
    about = meta(f"TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA {command}")
    result: dict[str, Any] = {"meta": about}
    if arguments.output and arguments.output.exists():
        result = {**json.loads(arguments.output.read_text()), "meta": about}
    for name in arguments.only:
        fod, mask = simulated(work / name)[::2] if name == "simulated" else real(name, work / name)
        for algorithm, n in (("iFOD2", arguments.lines), ("iFOD1", arguments.lines_ifod1)):
            if n:
                found = subject(fod, mask, work / name, n, algorithm)
                result.setdefault(name, {})[algorithm] = {**found, "commit": about["commit"], "date": about["date"]}
                print(name, algorithm, json.dumps(found), file=sys.stderr)
                if arguments.output:
                    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


def subject(fod: Path, mask: Path, folder: Path, n: int, algorithm: str = "iFOD2") -> dict[str, Any]:
    """``n`` lines of each, seeded and kept in the mask, at the method's default settings."""
    image, _ = read_image(fod, "dwi")
    field = ShField(image.grid, image.values.float(), 8)
    inside, _ = read_image(mask, "dwi")
    inside = Image(inside.grid, inside.values > 0.5)
    theirs = [tckgen(fod, mask, folder, n, algorithm, random_seed) for random_seed in RANDOM_SEEDS]
    ours = [tracked(ALGORITHMS[algorithm](), field, inside, n, random_seed) for random_seed in RANDOM_SEEDS]
    return {
        "n": n,
        "ours": compare(ours[0], theirs[0], inside),
        "tckgen_itself": compare(theirs[1], theirs[0], inside),
        "ours_itself": compare(ours[1], ours[0], inside),
    }


def tracked(tracker: StreamlineTracker, field: ShField, mask: Image, n: int, random_seed: int) -> Streamlines:
    batches = track_until(tracker, field, mask, mask, n, torch.Generator().manual_seed(random_seed))
    return Streamlines.concatenate(list(batches), "dwi")


def tckgen(fod: Path, mask: Path, folder: Path, n: int, algorithm: str, random_seed: int) -> Streamlines:
    call("tckgen", fod, folder / "peer.tck", "-algorithm", algorithm, "-seed_image", mask, "-mask", mask, "-select", n,
         "-nthreads", 2, "-force", "-quiet", environment={"MRTRIX_RNG_SEED": str(random_seed)})  # fmt: skip
    return read_tractogram(folder / "peer.tck", "dwi")[0]


def compare(first: Streamlines, second: Streamlines, mask: Image) -> dict[str, float]:
    """The statistics of two sets of lines in a mask; see the head of this file."""
    found: dict[str, float] = {}
    both = [measures(lines) for lines in (first, second)]
    for name, values in zip(("length", "turn"), zip(*both, strict=True), strict=True):
        test = stats.ks_2samp(*values)
        found |= {f"{name}_ks": float(test.statistic), f"{name}_p": float(test.pvalue)}
    found |= {"length_mean_mm": float(both[0][0].mean()), "peer_length_mean_mm": float(both[1][0].mean())}
    a, b = (visits(lines, mask.grid) / len(lines) for lines in (first, second))
    seen = mask.mask.ravel().numpy()
    found["visits_correlation"] = float(np.corrcoef(a[seen], b[seen])[0, 1])
    found["visits_difference"] = float(2 * np.abs(a - b).sum() / (a + b).sum())
    return found


def measures(lines: Streamlines) -> tuple[np.ndarray, np.ndarray]:
    """Length (mm) and mean turn (rad/mm) of each line."""
    points, offsets = lines.points.double().numpy(), lines.offsets.numpy()
    segments = np.diff(points, axis=0)
    size = np.linalg.norm(segments, axis=1)
    unit = segments / np.maximum(size, 1e-9)[:, None]
    angle = np.arccos(np.clip((unit[1:] * unit[:-1]).sum(1), -1, 1))
    length = np.array([size[a : b - 1].sum() for a, b in pairwise(offsets)])
    turn = np.array([angle[a : max(b - 2, a)].sum() for a, b in pairwise(offsets)])
    return length, turn / np.maximum(length, 1e-9)


def visits(lines: Streamlines, grid: ImageGrid) -> np.ndarray:
    """How many lines pass through each voxel."""
    spacing = SPACING * min(grid.voxel_sizes)
    line = np.repeat(np.arange(len(lines)), np.diff(lines.offsets.numpy()))
    points = lines.points.double().numpy()
    segments = np.diff(points, axis=0)
    size = np.where(line[1:] == line[:-1], np.linalg.norm(segments, axis=1), 0.0)
    parts = max(1, math.ceil(float(size.max()) / spacing))
    counts = np.zeros(int(np.prod(grid.shape)))
    keys = []
    for part in range(parts):
        at = torch.from_numpy(points[:-1] + (part / parts) * segments * (size > 0)[:, None])
        index = (grid.to_voxel(at) + 0.5).floor().long().numpy()
        inside = ((index >= 0) & (index < np.array(grid.shape))).all(1)
        voxel = np.ravel_multi_index(tuple(index[inside].T), grid.shape)
        keys.append(np.unique(voxel * np.int64(len(lines)) + line[:-1][inside]))
    voxels = np.unique(np.concatenate(keys)) // len(lines)
    np.add.at(counts, voxels, 1)
    return counts


if __name__ == "__main__":
    sys.exit(main())
