"""A painted head as a scanner would store it: what the tests of preprocessing and of interpolation look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tractode.bids.found import DwiRun
from tractode.fields import DWI, GradientTable, Image, ImageGrid
from tractode.interfaces.preprocess import Part
from tractode.io.builtin_template import load_builtin
from tractode.ops import sphere

MOVED, LOST = 5, (8, 10)  # the volume that moved, and the volume and slice that lost signal
SHIFT = 4.0  # mm


class Head:
    """A painted head, oblique and left-handed: two b=0 volumes and twelve directions, one moved, one with a lost slice."""

    def __init__(self) -> None:
        turn = torch.tensor([[0.0, -0.15, 0.05], [0.15, 0.0, -0.1], [-0.05, 0.1, 0.0]], dtype=torch.float64)
        affine = torch.eye(4, dtype=torch.float64)
        affine[:3, :3] = torch.linalg.matrix_exp(turn) @ torch.diag(torch.tensor([-7.0, 7.0, 7.0], dtype=torch.float64))
        affine[:3, 3] = torch.tensor([0.0, -18.0, 12.0], dtype=torch.float64) - affine[:3, :3] @ torch.tensor(
            [13.5, 16.0, 11.5], dtype=torch.float64
        )
        self.grid = ImageGrid((28, 33, 24), affine, "scan")
        grey, white, t1w = (load_builtin(kind, 2.0) for kind in ("GM", "WM", "T1w"))
        brain = (t1w.values > 0.15 * t1w.values.amax()).float()
        fluid = (brain - grey.values - white.values).clamp(0, 1) * brain
        self.base = Image(t1w.grid, 0.6 * white.values + 0.85 * grey.values + 1.6 * fluid)
        self.decay = Image(t1w.grid, torch.cat([0.7 * white.values + 0.8 * grey.values + 3.0 * fluid, white.values]))
        directions = sphere.directions(12).double()
        bvecs = torch.cat([torch.zeros(1, 3), directions[:6], torch.zeros(1, 3), directions[6:]]).double()
        bvals = torch.where(bvecs.norm(dim=-1) > 0, 1000.0, 0.0).double()
        self.gtab = GradientTable(bvals, bvecs, bvals == 0)

    def series(self, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        volumes = []
        for volume in range(len(self.gtab)):
            points = self.grid.centres()
            points = points - torch.tensor([0.0, SHIFT, 0.0]) if volume == MOVED else points
            base, decay = self.base.sample(points)[..., 0], self.decay.sample(points)
            along = decay[..., 1] * (points[..., 0] > 0) * float(self.gtab.bvecs[volume, 0]) ** 2
            signal = 600 * base * torch.exp(-float(self.gtab.bvals[volume]) / 1000 * (decay[..., 0] + 0.4 * along))
            volumes.append((signal + 4 * torch.randn(signal.shape, generator=generator)).abs())
        volumes[LOST[0]][:, :, LOST[1]] *= 0.3
        return torch.stack(volumes)


def part_of(head: Head, n: int, **known: Any) -> Part:
    """Its first volumes as a run that was read."""
    series = head.series()[:n]
    run = DwiRun(Path("a"), Path("b"), Path("c"), {}, {}, None, "sub-01_run-2", done_by=known.pop("done_by", ""))
    scan = DWI(head.grid, series, head.gtab[:n], series[0] > 100)
    return Part(run, scan, Image(head.grid, series[:1]), {}, **known)
