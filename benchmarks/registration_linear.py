"""Linear registration from afar: how often the right pose is found, T1w → T2w, beside ANTs' affine on the same pairs.

The built-in template is painted as T2w under a random affine (turned by up to 40° about any axis, moved by up to 60 mm, sizes
0.88–1.12), whole, cut off (a third of the head is missing), or as a slab of 48 mm. No method is given masks or a start. A pose is right if it is within
2 mm of the truth, on average over the brain that both images show.

    python benchmarks/registration_linear.py --peers PEERS/bin/python --output benchmarks/results/registration_linear.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import nibabel as nib
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from tractode.fields import Affine, Image, ImageGrid
from tractode.io.builtin_template import load_builtin
from tractode.ops import smooth
from tractode.registration.affine import register_affine

RIGHT_MM = 2.0
T2W = (1.0, 0.52, 0.33)  # CSF, grey, white
VIEWS = ("whole", "cut", "slab")

# Run by the interpreter that has ANTs: its affine's centre-of-mass start and its own default settings.
_ANTS = """
import sys, time, ants
fixed, moving = ants.image_read(sys.argv[1]), ants.image_read(sys.argv[2])
start = time.perf_counter()
found = ants.registration(fixed, moving, type_of_transform=sys.argv[3], random_seed=1)
transform = ants.read_transform(found["fwdtransforms"][0])
corners = [[0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]]
print(time.perf_counter() - start, *[x for c in corners for x in transform.apply_to_point([-c[0], -c[1], c[2]])])
"""


def truth_of(generator: np.random.Generator, centre: torch.Tensor) -> Affine:
    """Fixed → moving: a turn of up to 40°, sizes, and a shift of up to 60 mm, about the brain's centre."""
    axis = generator.normal(size=3)
    turn = Rotation.from_rotvec(np.deg2rad(generator.uniform(0, 40)) * axis / np.linalg.norm(axis)).as_matrix()
    linear = torch.from_numpy(turn @ np.diag(generator.uniform(0.88, 1.12, 3)))
    shift = generator.normal(size=3)
    shift = torch.from_numpy(generator.uniform(0, 60) * shift / np.linalg.norm(shift))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre - linear @ centre + shift
    return Affine(matrix, "fixed", "moving")


def pair(number: int, view: str, resolution: float) -> tuple[Image, Image, Affine, torch.Tensor]:
    """The fixed image, the moving one, the truth, and points of the brain that both show."""
    generator = np.random.default_rng(1000 + number)
    maps = torch.cat([load_builtin(name, resolution).values.float() for name in ("T1w", "GM", "WM", "mask")])
    grid = load_builtin("T1w", resolution).grid.renamed("fixed")
    points = grid.centres(torch.float64)[maps[3] > 0.5]
    truth = truth_of(generator, points.mean(0))
    size = 2.2  # not the fixed image's voxels
    shape = (112, 124, 112)
    affine = torch.diag(torch.tensor([-size, size, size, 1.0], dtype=torch.float64))
    affine[:3, 3] = truth.map(points.mean(0)) - affine[:3, :3] @ (torch.tensor(shape).double() / 2)
    first, last = _slices(view, truth.map(points)[:, 2], affine, size, shape[2], generator)
    affine[2, 3] += size * first
    moving_grid = ImageGrid((shape[0], shape[1], last - first), affine, "moving")
    here = Image(grid, maps).sample(truth.inverse().map(moving_grid.centres(torch.float64)).float()).movedim(-1, 0)
    grey, white, brain = here[1], torch.minimum(here[2], 1 - here[1]).clamp_min(0), here[3]
    ideal = T2W[0] * (1 - grey - white).clamp_min(0) * brain + T2W[1] * grey + T2W[2] * white
    noise = torch.Generator().manual_seed(number)
    knots = torch.randn(1, 1, 3, 3, 3, generator=noise)
    bias = torch.nn.functional.interpolate(knots, size=moving_grid.shape, mode="trilinear", align_corners=True)[0, 0]
    image = (ideal * torch.exp(0.2 * bias) + 0.02 * torch.randn(moving_grid.shape, generator=noise)).clamp_min(0)
    moving = Image(moving_grid, smooth.gaussian(image[None], (0.4, 0.4, 0.4)))
    inside = moving_grid.to_voxel(truth.map(points))[:, 2]
    return Image(grid, maps[:1]), moving, truth, points[(inside > 0) & (inside < last - first - 1)]


def _slices(
    view: str, z: torch.Tensor, affine: torch.Tensor, size: float, n: int, generator: np.random.Generator
) -> tuple[int, int]:
    """First and last slice that the moving image has."""
    low, high = ((torch.stack([z.min(), z.max()]) - affine[2, 3]) / size).tolist()
    if view == "whole":
        return 0, n
    if view == "cut":
        cut = (high - low) / 3
        return (int(low + cut), n) if generator.random() < 0.5 else (0, int(high - cut))
    start = int(generator.uniform(low + 0.2 * (high - low), high - 0.2 * (high - low) - 48 / size))
    return start, start + round(48 / size)


def error_mm(found: Affine, truth: Affine, points: torch.Tensor) -> float:
    return float((found.map(points) - truth.map(points)).norm(dim=-1).mean())


def ants(fixed: Image, moving: Image, python: str, kind: str) -> tuple[Affine, float]:
    """ANTs' answer as fixed → moving, from where it takes four points (ITK's axes point left and back)."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, image in (("fixed", fixed), ("moving", moving)):
            paths.append(str(Path(folder) / f"{name}.nii.gz"))
            nib.save(nib.Nifti1Image(image.values[0].numpy(), image.grid.affine.numpy()), paths[-1])
        command = [python, "-c", _ANTS, *paths, kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, *numbers = map(float, done.stdout.split()[-13:])
    ends = torch.tensor(numbers, dtype=torch.float64).reshape(4, 3) * torch.tensor([-1.0, -1.0, 1.0]).double()
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = ends[0]
    matrix[:3, :3] = ((ends[1:] - ends[0]) / 100).mT
    return Affine(matrix, "fixed", "moving"), seconds


def summary(errors: list[float], seconds: list[float]) -> dict[str, Any]:
    return {
        "success": round(sum(e < RIGHT_MM for e in errors) / len(errors), 4),
        "median_mm": round(statistics.median(errors), 3),
        "median_right_mm": round(statistics.median([e for e in errors if e < RIGHT_MM] or [float("nan")]), 3),
        "seconds": round(statistics.mean(seconds), 1),
        "errors_mm": [round(e, 3) for e in errors],
        "n": len(errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="a Python with antspyx")
    parser.add_argument("--n", type=int, default=10, help="pairs of each view")
    parser.add_argument("--symmetry", type=int, default=3, help="pairs of each view that are also registered backwards")
    parser.add_argument("--resolution", type=float, default=2.0)
    parser.add_argument("--views", nargs="+", default=list(VIEWS), choices=VIEWS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    meta = measure.meta(f"python benchmarks/registration_linear.py --peers PYTHON --n {options.n}")
    text = ""
    views: dict[str, _Tally] = {view: _Tally({}, {}, []) for view in options.views}
    for number, view in itertools.product(range(options.n), options.views):
        fixed, moving, truth, points = pair(number, view, options.resolution)
        tally, start = views[view], time.perf_counter()
        runs = {"tractode": (register_affine(fixed, moving), time.perf_counter() - start)}
        if options.peers:
            runs["ants_affine"] = ants(fixed, moving, options.peers, "Affine")
        if number < options.symmetry:
            back = register_affine(moving, fixed)
            there = runs["tractode"][0].map(points)
            tally.exchanged.append(float((back.map(there) - points).norm(dim=-1).max()))
        for name, (found, took) in runs.items():
            tally.errors.setdefault(name, []).append(error_mm(found, truth, points))
            tally.seconds.setdefault(name, []).append(took)
        print(view, number, {k: round(v[-1], 2) for k, v in tally.errors.items()}, tally.exchanged, file=sys.stderr)
        text = json.dumps({"views": {v: t.record() for v, t in views.items()}, "meta": meta}, indent=2)
        if options.output:
            options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


@dataclass
class _Tally:
    errors: dict[str, list[float]]
    seconds: dict[str, list[float]]
    exchanged: list[float]

    def record(self) -> dict[str, Any]:
        """A of B against the inverse of B of A, beside each method's scores."""
        scores = {name: summary(self.errors[name], self.seconds[name]) for name in self.errors}
        largest = round(max(self.exchanged), 4) if self.exchanged else None
        return {**scores, "exchanged": {"largest_mm": largest, "n": len(self.exchanged)}}


if __name__ == "__main__":
    main()
