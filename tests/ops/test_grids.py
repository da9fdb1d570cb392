"""Smoothing and finite differences of grids against closed forms."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from tractode.ops import finite_difference, smooth


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_gaussian_is_scipys() -> None:
    values = noise(1, 14, 12, 10)
    ours = smooth.gaussian(values, (1.2, 0.0, 2.0))[0].numpy()
    theirs = ndimage.gaussian_filter(values[0].numpy(), (1.2, 0.0, 2.0), mode="nearest", radius=(4, 0, 6))
    assert abs(ours - theirs).max() < 1e-12


def test_box_is_the_mean_of_a_cube() -> None:
    values = noise(2, 7, 6, 5)
    assert float(smooth.box(values, 1)[1, 3, 2, 2]) == pytest.approx(float(values[1, 2:5, 1:4, 1:4].mean()))


def test_dilation_is_a_box() -> None:
    mask = torch.zeros(9, 9, 9, dtype=torch.bool)
    mask[4, 4, 4] = True
    expected = torch.zeros_like(mask)
    expected[2:7, 3:6, 4:5] = True
    assert torch.equal(smooth.dilate(mask, (2, 1, 0)), expected)


def test_reduction_keeps_world_positions(oblique_affine: torch.Tensor) -> None:
    """A linear ramp in world x reads the same x at every voxel that is left, away from the repeated border."""
    index = torch.stack(torch.meshgrid(*[torch.arange(n).double() for n in (40, 36, 32)], indexing="ij"), dim=-1)
    world = index @ oblique_affine[:3, :3].mT + oblique_affine[:3, 3]
    values, affine = smooth.reduce(world[..., 0][None], oblique_affine, 5.3)
    assert values.shape[1:] == (20, 18, 16)
    coarse = torch.stack(torch.meshgrid(*[torch.arange(n).double() for n in values.shape[1:]], indexing="ij"), dim=-1)
    expected = coarse @ affine[:3, :3].mT + affine[:3, 3]
    inner = (slice(3, -3),) * 3
    torch.testing.assert_close(values[0][inner], expected[..., 0][inner], atol=1e-9, rtol=0)


def test_gradient_of_a_linear_ramp() -> None:
    x = torch.arange(6).double()[:, None, None] * 2.0
    values = (0.3 * x).expand(6, 5, 4)[None]
    found = finite_difference.gradient(values, (2.0, 1.0, 1.0))
    torch.testing.assert_close(found[0, 0], torch.full((6, 5, 4), 0.3).double())
    assert float(found[0, 1:].abs().max()) < 1e-12


def test_determinants_are_torchs() -> None:
    matrices = noise(50, 3, 3) - 0.5
    torch.testing.assert_close(finite_difference.determinant(matrices), torch.linalg.det(matrices))
