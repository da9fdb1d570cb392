"""A person's template of three sessions with known motion and growth, against registering pairs of sessions directly.

    python benchmarks/within_subject.py --peers PYTHON [--output FILE]

A real T1w of a whole head is moved, widened or narrowed around a ventricle, shaded, scaled in brightness and given noise, three
times, with cubic interpolation of the same original. Error: of session → session points in the head (mm), against the known
transform; ``grown`` where that differs from the rigid motion by more than 1 mm. The peer is ANTs SyN (rigid, affine and SyN stages
of its own), pair by pair. ``bias_mm`` is the mean displacement to the sessions, rigid part aside; ``order_mm`` how far apart the
session → session transforms are when the sessions come in the opposite order (95th percentile).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from scipy.ndimage import map_coordinates, spline_filter

from tractode.fields import Affine, Chain, Flow, Image, ImageGrid, Transform, VelocityField
from tractode.io.nifti import read_volume, write_image
from tractode.registration.optimise import FAST, register
from tractode.registration.within_subject import WithinSubjectSettings, subject_template

AMOUNTS = (-1.5, 0.0, 1.5)
TURNS = ((0.0, 0.0, 0.0), (0.08, -0.05, 0.06), (-0.05, 0.07, 0.02))
SHIFTS = ((0.0, 0.0, 0.0), (5.0, -3.0, 6.0), (-6.0, 4.0, 2.0))
PAIRS = ((0, 2), (0, 1), (1, 2))
PEER = """
import sys, time, ants
fixed, moving, points, out = sys.argv[1:5]
import numpy as np, pandas as pd
f, m = ants.image_read(fixed), ants.image_read(moving)
start = time.process_time()
found = ants.registration(f, m, type_of_transform="SyN", random_seed=1)
spent = time.process_time() - start
p = np.load(points) * [-1, -1, 1]
# Points of the fixed image are carried as images are resampled: by the forward transforms.
moved = ants.apply_transforms_to_points(3, pd.DataFrame(p, columns=["x", "y", "z"]), found["fwdtransforms"])
np.save(out, moved[["x", "y", "z"]].to_numpy() * [-1, -1, 1])
print(spent)
"""


@dataclass(frozen=True)
class Head:
    """Three scans of one head, and what was done to it."""

    scans: tuple[Image, ...]
    poses: tuple[torch.Tensor, ...]
    growths: tuple[Flow, ...]
    points: torch.Tensor  # of the first session's space, in the head

    def truth(self, points: torch.Tensor, first: int, second: int, *, grown: bool = True) -> torch.Tensor:
        """Points of one session in another; without growth, what rigid motion says."""
        rest = Affine(torch.linalg.inv(self.poses[first]), "a", "b").map(points)
        if grown:
            rest = self.growths[second].map(self.growths[first].inverse().map(rest))
        return Affine(self.poses[second], "a", "b").map(rest)

    def points_of(self, session: int) -> torch.Tensor:
        return self.truth(self.points, 0, session)


def make(path: Path, voxel: float = 2.0, seed: int = 0) -> Head:
    """The three sessions on grids of ``voxel`` mm."""
    original, _ = read_volume(path, "rest")
    grid = original.grid
    centre = grid.to_world(torch.tensor([(n - 1) / 2 for n in grid.shape], dtype=torch.float64))
    coefficients = spline_filter(original.values[0].numpy().astype(np.float32), order=3)
    poses = tuple(_pose(turn, shift, centre) for turn, shift in zip(TURNS, SHIFTS, strict=True))
    ventricle = centre + torch.tensor([0.0, 0.0, 20.0], dtype=torch.float64)
    growths = tuple(_growth(grid.resampled(4.0), ventricle, amount) for amount in AMOUNTS)
    generator = torch.Generator().manual_seed(seed)
    scans = []
    for number, gain in enumerate((1.0, 1.3, 0.8)):
        here = ImageGrid(grid.shape, grid.affine, f"ses-{number + 1}").resampled(voxel)
        points = here.centres(torch.float64)
        rest = growths[number].inverse().map(Affine(torch.linalg.inv(poses[number]), here.space, "grown").map(points))
        at = grid.to_voxel(rest).movedim(-1, 0).numpy()
        values = torch.from_numpy(map_coordinates(coefficients, at, order=3, prefilter=False)).float()
        slope = (points - centre) / 100
        shading = torch.exp(0.15 * (slope[..., 0] * (number - 1) + slope[..., 1] * (1 - 0.7 * number))).float()
        noise = 0.02 * float(values.flatten()[::7].quantile(0.98)) * torch.randn(values.shape, generator=generator)
        scans.append(Image(here, ((values * shading + noise).abs() * gain)[None]))
    bright = scans[0].values[0] > 0.15 * scans[0].values.flatten()[::7].quantile(0.98)
    return Head(tuple(scans), poses, growths, scans[0].grid.to_world(bright.nonzero()[::23].double()))


def _pose(turn: tuple[float, float, float], shift: tuple[float, float, float], centre: torch.Tensor) -> torch.Tensor:
    x, y, z = turn
    matrix = torch.eye(4, dtype=torch.float64)
    generator = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    matrix[:3, :3] = torch.linalg.matrix_exp(generator)
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + torch.tensor(shift, dtype=torch.float64)
    return matrix


def _growth(nodes: ImageGrid, middle: torch.Tensor, amount: float, width: float = 25.0) -> Flow:
    """Everything moves away from the middle, by ``amount`` mm at 18 mm from it."""
    away = nodes.centres(torch.float64) - middle
    fall = torch.exp(-((away.norm(dim=-1, keepdim=True) / width) ** 2))
    values = amount * np.sqrt(2 * np.e) / width * away * fall
    return Flow(VelocityField(nodes, values.movedim(-1, 0)[None].float()), "rest", "grown")


def errors(head: Head, moved: dict[tuple[int, int], torch.Tensor]) -> dict[str, float | int]:
    """Over all pairs: median and 95th percentile in the head; where it grew, the root mean square, beside rigid motion's."""
    away, left, rigid = [], [], []
    for (first, second), found in moved.items():
        points = head.points_of(first)
        truth = head.truth(points, first, second)
        error = (found - truth).norm(dim=-1)
        change = (head.truth(points, first, second, grown=False) - truth).norm(dim=-1)
        away.append(error)
        left.append(error[change > 1])
        rigid.append(change[change > 1])
    whole = torch.cat(away)
    rms = [float(torch.cat(part).square().mean().sqrt()) for part in (left, rigid)]
    return {
        "median_mm": round(float(whole.median()), 3),
        "p95_mm": round(float(whole.quantile(0.95)), 3),
        "grown_rms_mm": round(rms[0], 3),
        "grown_rms_rigid_mm": round(rms[1], 3),
        "n": len(moved),
    }


def through_template(head: Head) -> tuple[dict[str, Any], dict[tuple[int, int], torch.Tensor]]:
    start = time.process_time()
    found = subject_template(head.scans, "template")
    spent = time.process_time() - start
    moved = {pair: _between(found.to_scans, pair).map(head.points_of(pair[0])) for pair in PAIRS}
    return {**errors(head, moved), "cpu_seconds": round(spent, 1), "bias_mm": round(found.bias, 3)}, moved


def _between(to_scans: tuple[Transform, ...], pair: tuple[int, int]) -> Chain:
    return to_scans[pair[0]].inverse().then(to_scans[pair[1]])


def order(head: Head, moved: dict[tuple[int, int], torch.Tensor]) -> float:
    """How far the answer is from that of the opposite order, 95th percentile (mm)."""
    found = subject_template(head.scans[::-1], "template")
    apart = [
        (_between(found.to_scans[::-1], pair).map(head.points_of(pair[0])) - there).norm(dim=-1)
        for pair, there in moved.items()
    ]
    return round(float(torch.cat(apart).quantile(0.95)), 3)


def rigid_only(head: Head) -> dict[str, Any]:
    start = time.process_time()
    found = subject_template(head.scans, "template", WithinSubjectSettings(schedule=None))
    spent = time.process_time() - start
    moved = {pair: _between(found.to_scans, pair).map(head.points_of(pair[0])) for pair in PAIRS}
    return {**errors(head, moved), "cpu_seconds": round(spent, 1)}


def pair_by_pair(head: Head) -> dict[str, Any]:
    """Our own registration of each pair, its affine included."""
    start, moved = time.process_time(), {}
    for first, second in PAIRS:
        found = register(head.scans[first], head.scans[second], schedule=FAST)
        moved[first, second] = found.map(head.points_of(first))
    spent = time.process_time() - start
    return {**errors(head, moved), "cpu_seconds": round(spent, 1)}


def ants(head: Head, python: str) -> dict[str, Any]:
    moved, spent = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for number, scan in enumerate(head.scans):
            write_image(work / f"{number}.nii.gz", scan)
        for first, second in PAIRS:
            np.save(work / "points.npy", head.points_of(first).numpy())
            names = [str(work / name) for name in (f"{first}.nii.gz", f"{second}.nii.gz", "points.npy", "moved.npy")]
            told = subprocess.run([python, "-c", PEER, *names], check=True, capture_output=True, text=True)
            spent += float(told.stdout.split()[-1])
            moved[first, second] = torch.from_numpy(np.load(work / "moved.npy"))
    return {**errors(head, moved), "cpu_seconds": round(spent, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", required=True, help="python of an environment with antspyx")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = make(Path(os.environ["TRACTODE_TEST_DATA"]) / "bids_real" / "sub-xa30" / "anat" / "sub-xa30_T1w.nii.gz")
    template, moved = through_template(head)
    result = {
        "tractode template": {**template, "order_mm": order(head, moved)},
        "tractode template, rigid": rigid_only(head),
        "tractode pair by pair": pair_by_pair(head),
        "ANTs SyN pair by pair": ants(head, options.peers),
        "meta": measure.meta(
            "python benchmarks/within_subject.py --peers PYTHON (data: $TRACTODE_TEST_DATA/bids_real)"
        ),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
