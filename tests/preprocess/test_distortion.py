"""A distorted scan put right: exact where it can be, the right way round, and only where that helps."""

from __future__ import annotations

import pytest
import torch

from tractode.fields import Affine, Image, ImageGrid
from tractode.ops import epi, smooth
from tractode.preprocess import distortion
from tractode.registration.reverse_encoding import EncodedScan, FieldEstimate

SHAPE = (20, 24, 18)


def smooth_noise(generator: torch.Generator, sigma: float, *shape: int) -> torch.Tensor:
    found = smooth.gaussian(torch.randn(*shape, generator=generator), (sigma, sigma, sigma))
    return found / found.std()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_a_field_moved_is_fetched_back(axis: int, sign: int, generator: torch.Generator) -> None:
    truth = 10 + smooth_noise(generator, 2.5, 3, *SHAPE)
    hz = 12 * smooth_noise(generator, 4.0, 1, *SHAPE)[0]
    moved = epi.distorted(truth, epi.shift_vox(hz, sign, 0.05), axis)
    back = distortion.put_right(moved, hz, axis, sign, 0.05)
    inner = (slice(None), *(slice(3, -3),) * 3)
    off = [float((image - truth)[inner].square().mean().sqrt()) for image in (moved, back)]
    assert off[1] < 0.15 * off[0]
    wrong = distortion.put_right(moved, hz, axis, -sign, 0.05)
    assert float((wrong - truth)[inner].square().mean().sqrt()) > off[0]


def test_no_field_changes_nothing(generator: torch.Generator) -> None:
    signal = torch.rand(2, *SHAPE, generator=generator)
    assert torch.equal(distortion.put_right(signal, torch.zeros(SHAPE), 1, 1, 0.05), signal)


def test_parabolas_are_interpolated_exactly_along_the_axis_and_nothing_across_it() -> None:
    along = torch.arange(SHAPE[1], dtype=torch.float32)[None, None, :, None]
    across = torch.rand(1, SHAPE[0], 1, SHAPE[2], generator=torch.Generator().manual_seed(0))
    signal = across * (0.3 * along**2 - 2 * along + 50)
    moved = distortion.put_right(signal, torch.full(SHAPE, 7.0), 1, 1, 0.05)
    exact = across * (0.3 * (along + 0.35) ** 2 - 2 * (along + 0.35) + 50)
    torch.testing.assert_close(moved[:, :, 2:-3], exact[:, :, 2:-3], rtol=1e-5, atol=1e-4)


def test_a_line_that_folds_gives_no_negative_signal(generator: torch.Generator) -> None:
    hz = torch.zeros(SHAPE)
    hz[:, 10:14] = 400.0
    assert float(distortion.put_right(torch.rand(1, *SHAPE, generator=generator), hz, 1, 1, 0.05).min()) >= 0


def test_a_field_is_brought_to_the_scan_through_the_pose(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid(SHAPE, oblique_affine, "scan")
    field = Image(ImageGrid(SHAPE, oblique_affine, "map"), torch.rand(1, *SHAPE))
    step = torch.eye(4, dtype=torch.float64)
    step[:3, 3] = oblique_affine[:3, 1]  # a voxel along j
    hz = distortion.field_on(field, grid, Affine(step, "scan", "map"))
    torch.testing.assert_close(hz[:, :-1], field.values[0][:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("before", "after", "turned", "helped", "said"),
    [
        (0.11, 0.10, 0.12, True, "agrees better"),
        (0.11, 0.115, 0.10, False, "opposite phase encoding"),
        (0.10, 0.11, 0.12, False, "no better"),
        (0.11, 0.10, 0.09, False, "opposite phase encoding"),
    ],
)
def test_a_field_map_is_used_only_if_it_helps_and_its_opposite_does_not(
    before: float, after: float, turned: float, helped: bool, said: str
) -> None:
    found, reason = distortion.map_helped(before, after, turned)
    assert found is helped
    assert said in reason


def test_m05_a_pair_that_agrees_no_better_is_not_corrected(
    oblique_affine: torch.Tensor, generator: torch.Generator
) -> None:
    grid = ImageGrid(SHAPE, oblique_affine, "scan")
    mask = Image(grid, torch.ones(1, *SHAPE))
    truth, hz = 10 + smooth_noise(generator, 2.5, 1, *SHAPE), 12 * smooth_noise(generator, 4.0, 1, *SHAPE)
    still = Affine(torch.eye(4, dtype=torch.float64), "scan", "scan")
    scans = [
        EncodedScan(Image(grid, epi.distorted(truth, epi.shift_vox(hz[0], sign, 0.05), 1)), 1, sign, 0.05)
        for sign in (1, -1)
    ]
    for factor, helped in ((1.0, True), (-1.0, False), (0.0, False)):
        estimate = FieldEstimate(Image(grid, factor * hz), (still, still), 0.0, 0.0)
        judged = distortion.judge_pair(scans, estimate, mask, 1)
        assert judged.applied is helped
        assert (judged.after < judged.before) is helped
    assert "may be wrong" in judged.reason
