"""iFOD1: its calibration, its rules, and the distribution of its directions."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.cones import calibrated, grid_axes, sharpest, side_axes
from tractode.tracking.ifod1 import IFOD1

DOUBLE = torch.float64


def fibre_field(affine: Tensor, fibre: Tensor) -> tuple[ShField, Image]:
    """The same single fibre everywhere."""
    grid = ImageGrid((9, 9, 9), affine, "phantom")
    degree = sh.degrees(8).double()
    harmonics = sh.basis(fibre[None], 8)[0] * torch.exp(-0.02 * degree * (degree + 1))
    field = ShField(grid, harmonics[:, None, None, None].expand(-1, 9, 9, 9).clone(), 8)
    return field, Image(grid, torch.ones(1, 9, 9, 9, dtype=torch.bool))


FIBRE = torch.tensor([0.3, -0.5, 0.8], dtype=DOUBLE) / math.sqrt(0.98)


@pytest.mark.parametrize(
    ("angle", "power", "n", "ratio"), [(15, 1, 7, 1.21581328), (30, 1, 7, 2.44004416), (45, 1, 13, 4.48054934)]
)
def test_probes_are_as_many_and_as_good_as_mrtrix_reports(angle: float, power: float, n: int, ratio: float) -> None:
    """``tckgen -info`` of MRtrix3 3.0.3."""
    curve = sharpest(8)
    probes = calibrated(lambda turn: max(curve(math.cos(turn)), 0.0) ** power, math.radians(angle))
    assert len(probes.turns) == n
    assert probes.ratio == pytest.approx(ratio, rel=1e-4)


def test_one_step_has_the_distribution_that_is_asked_for(oblique_affine: Tensor) -> None:
    field, mask = fibre_field(oblique_affine, FIBRE)
    n = 4000
    tilt = torch.linalg.cross(FIBRE, torch.tensor([1.0, 0, 0], dtype=DOUBLE))
    towards = FIBRE + math.tan(0.3) * tilt / tilt.norm()
    towards = towards / towards.norm()
    tracker = IFOD1(step_mm=0.5, angle=math.radians(30), min_length=0.4, max_length=0.5, one_way=True)
    seeds = field.grid.to_world(torch.full((n, 3), 4.0, dtype=DOUBLE))
    lines = next(tracker.track(field, seeds, mask, directions=towards.expand(n, 3)))
    assert len(lines) == n
    at_seed = lines.offsets[:-1] + lines.per_streamline["seed_point"]
    drawn = (lines.points[at_seed - 1] - lines.points[at_seed]) / 0.5
    u = torch.rand(200_000, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    turn, azimuth = torch.arccos(1 - u[:, 0] * (1 - math.cos(math.pi / 6))), 2 * math.pi * u[:, 1]
    first, second = side_axes(grid_axes(field.grid), towards[:, None])
    side = azimuth.cos()[:, None] * first.mT + azimuth.sin()[:, None] * second.mT
    around = turn.cos()[:, None] * towards + turn.sin()[:, None] * side
    amplitude = sh.basis(around, 8) @ field.coeffs[:, 0, 0, 0]
    weight = torch.where(amplitude < 0.1, 0.0, amplitude)
    picked = around[torch.multinomial(weight, 40_000, True, generator=torch.Generator().manual_seed(6))]
    for axis in (towards, FIBRE, first[:, 0], second[:, 0]):
        assert stats.ks_2samp((drawn @ axis).numpy(), (picked @ axis).numpy()).pvalue > 1e-3


def test_lines_stay_in_the_mask_and_do_not_depend_on_batches(oblique_affine: Tensor) -> None:
    field, mask = fibre_field(oblique_affine, FIBRE)
    seeds = field.grid.to_world(mask.mask.nonzero().double()[::97])
    runs = []
    for size in (32768, 5):
        tracker = IFOD1(step_mm=0.5, min_length=2.0, batch_size=size)
        batches = list(tracker.track(field, seeds, mask, torch.Generator().manual_seed(1)))
        runs.append(Streamlines.concatenate(batches, "phantom"))
    assert len(runs[0]) > 3
    assert torch.equal(runs[0].points, runs[1].points)
    nearest = (field.grid.to_voxel(runs[0].points) + 0.5).floor().long()
    assert mask.mask[tuple(nearest.mT)].all()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="trial"):
        IFOD1(max_trials=0)
