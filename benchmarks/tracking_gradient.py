"""Gradients of streamlines: are they right, what do they keep, what do they cost; beside an unrolled search.

    python benchmarks/tracking_gradient.py [--data $TRACTODE_TEST_DATA] [--output benchmarks/results/tracking_gradient.json]

- ``gradcheck``: torch's own check in float64 of each path, field coefficients, seeds, step and diffusion signal, by Euler
  and by Runge-Kutta steps.
- ``fd_relative_error``: the largest relative difference between the slope of a whole bundle's loss and that of central
  finite differences, over the same paths (``finite_differences``: each of them; lines that change their number of steps
  within the perturbation are left out of the loss and counted).
- ``backward_over_forward``: (forward + backward) / forward in processor time, gradients to the coefficients, the
  conversion of the field included in both; ``wall`` is the same by the clock.
- ``mb_per_1000x1000``: what autograd keeps of the lines, their points included, for 1,000 lines of 1,000 steps (10⁶ bytes).
- ``real_slab``: d loss / d DWI through deconvolution and tracking.
- ``peer``: the way of Yoon et al. 2025 (arXiv:2511.14807) as far as it is described: every step and every iteration of the
  search under torch's autograd; the same field, seeds and steps as ``ours`` beside it. Smaller, since it keeps everything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from gradient_phantom import DOUBLE, along_fibres, rings, track
from measure import meta
from torch import Tensor

from tractode.fields import DWI, GradientTable, Image, ImageGrid, ShField, Streamlines
from tractode.io.dwi import read_dwi
from tractode.models.csd import CSD
from tractode.models.response import gaussian_response
from tractode.ops import sphere
from tractode.ops.peaks import ASCENT_TOLERANCE, MAX_ITERATIONS, ascend
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.sdstream import SDStream
from tractode.tracking.seeds import seeds_in_mask

Record = dict[str, Any]
SUBJECT = "sub-toshiba60"
PATHS = ("coefficients", "seeds", "step", "signal")


# --- correctness -------------------------------------------------------------------------------------------------------


class Small:
    """A bundle as a function of signal or coefficients, seeds and step."""

    def __init__(self, integration: str, n: int) -> None:
        self.field, self.mask, ring = rings((14, 14, 8), DOUBLE)
        self.seeds = seeds_in_mask(ring, n, torch.Generator().manual_seed(1)).double()
        self.start = along_fibres(self.field, self.seeds)
        self.tracker = SDStream(step_mm=0.4, min_length=0.5, max_length=6.1, integration=integration)  # type: ignore[arg-type]
        directions = torch.cat([torch.zeros(1, 3), sphere.directions(60)]).double()
        weighted = directions.norm(dim=-1) > 0.5
        self.gtab = GradientTable(weighted * 2500.0, directions, ~weighted)
        self.model = CSD(gaussian_response(2500.0, 1.7e-3, 0.2e-3, 1.0))
        with torch.no_grad():
            voxels = self.model.predict(self.field.coeffs.flatten(1).mT, self.gtab)
        noise = torch.randn(voxels.shape, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
        self.signal = (voxels + 0.02 * noise).mT.reshape(-1, *self.field.grid.shape)
        self.step = torch.tensor(0.4, dtype=DOUBLE)

    def inputs(self, path: str) -> Tensor:
        return {"coefficients": self.field.coeffs, "seeds": self.seeds, "step": self.step, "signal": self.signal}[path]

    def lines(self, path: str, value: Tensor) -> Streamlines:
        coeffs = value if path == "coefficients" else self.field.coeffs
        if path == "signal":
            coeffs = self.model.fit(value.flatten(1).mT, self.gtab).mT.reshape(-1, *self.field.grid.shape)
        tracker = replace(self.tracker, step_mm=value if path == "step" else 0.4)
        seeds = value if path == "seeds" else self.seeds
        return track(tracker, ShField(self.field.grid, coeffs, 8), seeds, self.mask, self.start)


def gradchecks(n: int) -> dict[str, bool]:
    found = {}
    for integration in ("euler", "rk4"):
        small = Small(integration, n)
        for path in PATHS:
            value = small.inputs(path).clone().requires_grad_()

            def points(x: Tensor, path: str = path, small: Small = small) -> Tensor:
                return small.lines(path, x).points

            found[f"{path} {integration}"] = bool(
                torch.autograd.gradcheck(points, (value,), fast_mode=True, atol=1e-5, rtol=1e-4, raise_exception=False)
            )
    return found


def finite_differences(n: int) -> list[Record]:
    """Slopes of a bundle's loss along one random direction of each path's variable."""
    sizes = {"coefficients": 1e-6, "seeds": 1e-5, "step": 1e-6, "signal": 1e-7}
    records = []
    for integration in ("euler", "rk4"):
        small = Small(integration, n)
        for path in PATHS:
            value = small.inputs(path)
            way = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
            at = torch.zeros((), dtype=DOUBLE, requires_grad=True)
            here = small.lines(path, value + at * way)
            with torch.no_grad():
                others = [small.lines(path, value + sign * sizes[path] * way) for sign in (1, -1)]
            kept = unchanged([here, *others], n)
            slope = float(torch.autograd.grad(bundle_loss(here, kept), at)[0])
            difference = float(bundle_loss(others[0], kept) - bundle_loss(others[1], kept)) / (2 * sizes[path])
            records.append(
                {
                    "path": f"{path} {integration}",
                    "relative_error": abs(slope - difference) / abs(difference),
                    "n": len(kept),
                    "left_out": len(here) - len(kept),
                }
            )
    return records


def unchanged(bundles: list[Streamlines], n_seeds: int) -> Tensor:
    """Seeds whose lines have as many points, on either side, in all bundles."""
    shapes = torch.full((len(bundles), n_seeds, 2), -1)
    for shape, lines in zip(shapes, bundles, strict=True):
        shape[lines.per_streamline["seed"]] = torch.stack((lines.n_points, lines.per_streamline["seed_point"]), dim=1)
    is_same = (shapes == shapes[0]).all(-1).all(0) & (shapes[0, :, 0] > 0)
    return is_same.nonzero().ravel()


def bundle_loss(lines: Streamlines, seeds: Tensor) -> Tensor:
    """A smooth loss that weighs every point differently, over the lines of some seeds."""
    index = torch.isin(lines.per_streamline["seed"], seeds).nonzero().ravel()
    points = lines.select(index).points
    weights = torch.randn(points.shape, generator=torch.Generator().manual_seed(4), dtype=DOUBLE).to(points)
    return (0.3 * points * weights).sin().mean()


def real_slab(data: Path, n: int) -> Record:
    """d loss / d DWI of a slab of a real scan, and its slope against finite differences."""
    folder = data / "bids_real" / SUBJECT / "dwi"
    dwi, _ = read_dwi(*(folder / f"{SUBJECT}_dwi{end}" for end in (".nii.gz", ".bval", ".bvec")), "slab")
    shape = dwi.grid.shape
    low = [size // 2 - half for size, half in zip(shape, (22, 22, 3), strict=True)]
    cut = tuple(slice(a, a + 2 * half) for a, half in zip(low, (22, 22, 3), strict=True))
    affine = dwi.grid.affine.clone()
    affine[:3, 3] = dwi.grid.to_world(torch.tensor(low, dtype=DOUBLE))
    signal = dwi.signal[(slice(None), *cut)].double()
    head = signal[dwi.gtab.is_b0].mean(0)
    slab = DWI(ImageGrid((44, 44, 6), affine, "slab"), signal, dwi.gtab, head > 0.3 * head.quantile(0.9))
    model = CSD.for_data(slab.voxels(), slab.gtab)
    mask = Image(slab.grid, slab.mask[None])
    seeds = seeds_in_mask(mask, n, torch.Generator().manual_seed(0)).double()
    tracker = SDStream(step_mm=0.5, min_length=4.0, max_length=20.0)

    def lines(values: Tensor) -> Streamlines:
        coeffs = slab.unravel(model.fit(values[:, slab.mask].mT, slab.gtab)).values
        return next(tracker.track(ShField(slab.grid, coeffs, model.order), seeds, mask))

    size = 1e-9
    way = signal * torch.randn(signal.shape, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    with torch.no_grad():
        others = [lines(signal + sign * size * way) for sign in (1, -1)]
    values = signal.clone().requires_grad_()
    here = lines(values)
    kept = unchanged([here, *others], n)
    (grad,) = torch.autograd.grad(bundle_loss(here, kept), values)
    slope = float((grad * way).sum())
    difference = float(bundle_loss(others[0], kept) - bundle_loss(others[1], kept)) / (2 * size)
    weighted = grad[~slab.gtab.is_b0]
    return {
        "scan": SUBJECT,
        "voxels": int(slab.mask.sum()),
        "is_finite": bool(torch.isfinite(grad).all()),
        "share_of_voxels_with_gradient": round(float((weighted.abs().amax(0) > 0)[slab.mask].double().mean()), 4),
        "largest": float(grad.abs().max()),
        "fd_relative_error": abs(slope - difference) / abs(difference),
        "left_out": len(here) - len(kept),
        "n": len(kept),
    }


# --- cost --------------------------------------------------------------------------------------------------------------


def cost(n: int) -> Record:
    """Time and memory of the compiled loops in float32, gradients to the coefficients."""
    field, mask, ring = rings((50, 50, 20), torch.float32)
    seeds = seeds_in_mask(ring, n, torch.Generator().manual_seed(0))
    start = along_fibres(field, seeds)
    tracker = SDStream(step_mm=0.2, min_length=10.0, max_length=200.0, cutoff=0.05)
    coeffs = field.coeffs.clone().requires_grad_()
    kept = Kept(3)

    def forward() -> Streamlines:
        return track(tracker, ShField(field.grid, coeffs, 8), seeds, mask, start)

    def backward(lines: Streamlines) -> None:
        torch.autograd.grad(lines.points.square().mean(), coeffs)

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
        lines = forward()
    backward(lines)  # compiles
    one, two = best(forward, backward, repeats=3)
    return {
        "forward_s": one,
        "backward_s": two,
        "backward_over_forward": {key: round((one[key] + two[key]) / one[key], 3) for key in one},
        "mb_per_1000x1000": round(kept.bytes / len(lines.points), 3),
        "points": len(lines.points),
        "n": len(lines),
    }


class Kept:
    """Counts what autograd saves: each storage once; with ``width``, only tensors of so many columns."""

    def __init__(self, width: int | None = None) -> None:
        self.width, self.seen = width, {}

    def __call__(self, x: Tensor) -> Tensor:
        if self.width is None or x.shape[-1:] == (self.width,):
            # The tensor itself is held: a storage that is freed could be counted again under the same address.
            self.seen[x.untyped_storage().data_ptr()] = x
        return x

    @property
    def bytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in self.seen.values())


def best(
    forward: Callable[[], Any], backward: Callable[[Any], None], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The least processor and wall seconds of each over some repeats."""
    runs = []
    for _ in range(repeats):
        marks = [(time.process_time(), time.perf_counter())]
        result = forward()
        marks.append((time.process_time(), time.perf_counter()))
        backward(result)
        marks.append((time.process_time(), time.perf_counter()))
        runs.append([[b[k] - a[k] for k in (0, 1)] for a, b in pairwise(marks)])
    least = torch.tensor(runs, dtype=DOUBLE).amin(0).tolist()
    one, two = ({"cpu": round(cpu, 4), "wall": round(wall, 4)} for cpu, wall in least)
    return one, two


def unrolled(n: int, steps: int) -> Record:
    """Everything under autograd: interpolation, each iteration of the search, each step; one direction from the seed."""
    field, mask, ring = rings((20, 20, 12), torch.float32)
    seeds = seeds_in_mask(ring, n, torch.Generator().manual_seed(0))
    start = along_fibres(field, seeds)
    coeffs = field.coeffs.clone().requires_grad_()
    used: list[int] = []

    def theirs() -> Tensor:
        table = ComponentTable.of(ShField(field.grid, coeffs, 8))
        position, direction = seeds.mT, peak(table, seeds.mT, start.mT)
        points = [position]
        for _ in range(steps):
            direction = peak(table, position, direction)
            position = position + 0.2 * direction
            points.append(position)
        return torch.stack(points)

    def peak(table: ComponentTable, position: Tensor, direction: Tensor) -> Tensor:
        components = interpolated(table, position)
        for _ in range(MAX_ITERATIONS):
            used.append(1)
            moved, _, _ = ascend(components, direction)
            is_over = bool(((moved - direction).detach().norm(dim=0) < ASCENT_TOLERANCE).all())
            direction = moved
            if is_over:
                break
        return direction

    tracker = SDStream(step_mm=0.2, min_length=0.5, max_length=0.2 * (steps - 2) - 0.1, one_way=True, cutoff=0.0)

    def ours() -> Tensor:
        return track(tracker, ShField(field.grid, coeffs, 8), seeds, mask, start).points

    def backward(points: Tensor) -> None:
        torch.autograd.grad(points.square().mean(), coeffs)

    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
        points = theirs()
    iterations = len(used) / (steps + 1)
    mb = kept.bytes / (points.numel() / 3)
    del kept
    backward(points)
    ours_kept = Kept(3)
    with torch.autograd.graph.saved_tensors_hooks(ours_kept, lambda x: x):
        mine = ours()
    backward(mine)
    our_mb = round(ours_kept.bytes / len(mine), 3)
    (their_one, their_two), (one, two) = best(theirs, backward, 1), best(ours, backward, 3)
    return {
        "n": n,
        "steps": steps,
        "iterations_per_step": round(iterations, 2),
        "mb_per_1000x1000": round(mb, 1),
        "forward_s": their_one,
        "backward_s": their_two,
        "ours": {"forward_s": one, "backward_s": two, "points": len(mine), "mb_per_1000x1000": our_mb},
        "ratio_cpu": round((their_one["cpu"] + their_two["cpu"]) / (one["cpu"] + two["cpu"]), 1),
        "largest_difference_mm": float(
            (points.detach().flip(0).permute(2, 0, 1).reshape(-1, 3) - mine.detach()).abs().max()
        )
        if len(mine) == n * (steps + 1)
        else None,
    }


def interpolated(table: ComponentTable, position: Tensor) -> Tensor:
    """Trilinear, differentiable in values and position by autograd."""
    vox = to_voxel(table.grid, position)
    rows, _, _ = table.corners(vox.detach())
    x, y, z = vox - vox.detach().floor()
    weights = torch.stack([a * b * c for a in (1 - x, x) for b in (1 - y, y) for c in (1 - z, z)], dim=1)
    return torch.einsum("mcn,mc->nm", table.values[rows.long()], weights)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("TRACTODE_TEST_DATA"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--lines", type=int, default=1000)
    arguments = parser.parse_args()
    costs = cost(arguments.lines)
    say("cost", costs)
    checked = gradchecks(6)
    say("gradcheck", checked)
    differences = finite_differences(100)
    say("finite differences", differences)
    peer = unrolled(100, 20)
    say("peer", peer)
    slab = real_slab(arguments.data, 300) if arguments.data else None
    say("slab", slab)
    errors = [record["relative_error"] for record in differences] + ([slab["fd_relative_error"]] if slab else [])
    result = {
        "gradcheck": checked,
        "fd_relative_error": max(errors),
        "backward_over_forward": costs["backward_over_forward"]["cpu"],
        "mb_per_1000x1000": costs["mb_per_1000x1000"],
        "n": costs["n"],
        "finite_differences": differences,
        "cost": costs,
        "real_slab": slab,
        "peer": {"what": "steps and search unrolled under torch's autograd", **peer},
        "meta": meta("python benchmarks/tracking_gradient.py --data $TRACTODE_TEST_DATA"),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


def say(what: str, found: Any) -> None:
    print(what, found, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
