"""How shells lie to the b=0 volumes: by time from the neighbours, by contrast from the images."""

from __future__ import annotations

import math

import torch
from tests.preprocess import phantom_series as phantom

from tractode.ops import interpolate
from tractode.ops import volume_pose as pose
from tractode.preprocess.joining import between, in_time
from tractode.preprocess.level import Level


def test_neighbours_in_time_tell_how_a_shell_lies(generator: torch.Generator) -> None:
    """A slow walk whose weighted volumes are all displaced by one motion; two jumps change nothing."""
    steps = 0.02 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    steps[[11, 25]] += 2.0
    steps[:, 3:] /= 50
    truth = steps.cumsum(0)
    known = torch.zeros(40, dtype=torch.bool)
    known[::8] = True
    wrong = torch.tensor([[0.8, -0.5, 1.2, 0.01, -0.02, 0.015]], dtype=torch.float64)
    motion = truth.clone()
    motion[~known] = pose.then(pose.inverse(wrong).expand(int((~known).sum()), -1), truth[~known])
    found, deviation = in_time(motion, known, ~known)
    assert torch.allclose(found[0, :3], wrong[0, :3], atol=0.06)
    assert torch.allclose(found[0, 3:], wrong[0, 3:], atol=0.002)
    assert float(deviation[:3].max()) < 0.1


def test_without_neighbours_time_tells_nothing() -> None:
    known = torch.tensor([True, False, False, False])
    own = torch.tensor([False, False, True, True])
    _, deviation = in_time(torch.zeros(4, 6, dtype=torch.float64), known, own)
    assert all(math.isinf(value) for value in deviation.tolist())


def test_contrasts_of_one_head_are_brought_together(oblique_affine: torch.Tensor) -> None:
    gtab, grid = phantom.table(6, 1), phantom.grid_of(oblique_affine)
    rigid = torch.zeros(len(gtab), 6, dtype=torch.float64)
    rigid[1:] = torch.tensor([1.5, -1.0, 2.0, 0.03, -0.02, 0.02])
    scan = phantom.scan(grid, gtab, rigid, torch.zeros(len(gtab), 9).double(), sigma=10.0)
    level = Level(grid, scan.mask, 4.0, 8000)
    at = grid.to_voxel(level.grid.centres()) / torch.tensor(level.strides)
    soft = [level.smoothed(scan.signal[part].mean(0, keepdim=True)) for part in (slice(0, 1), slice(1, None))]
    means = [interpolate.sample(values, at, outside="nearest")[..., 0] for values in soft]
    found = between(level, means[0], means[1], phantom.middle(grid))[0]
    assert torch.allclose(found[:3], rigid[1, :3], atol=0.4)
    assert torch.allclose(found[3:], rigid[1, 3:], atol=0.02)
