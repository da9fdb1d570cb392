"""A head of closed form, so that a moved copy of it is exact: no interpolation stands between the truth and the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tractode.fields import Image, ImageGrid
from tractode.fields.transform import Transform

CENTRE = torch.tensor([3.0, -8.0, 12.0], dtype=torch.float64)


def brain_at(points: torch.Tensor) -> torch.Tensor:
    """Whether points lie in the brain: an egg, so that no axis can be swapped for another."""
    x, y, z = (points.double() - CENTRE).unbind(-1)
    return (x / 62) ** 2 + (y / (80 - 0.1 * y)) ** 2 + (z / 58) ** 2 < 1


def head_at(points: torch.Tensor) -> torch.Tensor:
    """Intensity of the head: two tissues folded into one another, dark ventricles, and a skull."""
    x, y, z = (points.double() - CENTRE).unbind(-1)
    radius = ((x / 62) ** 2 + (y / (80 - 0.1 * y)) ** 2 + (z / 58) ** 2).sqrt()
    folds = torch.sin(x / 9 + y / 21) + torch.sin(y / 11 - z / 17) + torch.sin(z / 8 + x / 19)
    brain = torch.sigmoid((1 - radius) * 40)
    white = torch.sigmoid((0.8 - radius) * 12 + 1.2 * folds)
    ventricle = torch.exp(-(((x - 12) / 9) ** 2 + ((y + 10) / 26) ** 2 + ((z - 6) / 9) ** 2))
    ventricle = ventricle + torch.exp(-(((x + 12) / 9) ** 2 + ((y + 6) / 22) ** 2 + ((z - 6) / 12) ** 2))
    skull = torch.exp(-(((radius - 1.13) / 0.05) ** 2))
    return brain * (0.45 + 0.4 * white) * (1 - 0.85 * ventricle.clamp(max=1)) + 0.7 * skull


@pytest.fixture(scope="session")
def grid() -> ImageGrid:
    """4 mm, left-handed, 10° oblique, over the whole head."""
    angle = torch.tensor(0.17, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn @ torch.diag(torch.tensor([-4.0, 4.0, 4.0], dtype=torch.float64))
    affine[:3, 3] = CENTRE - affine[:3, :3] @ torch.tensor([21.0, 26.0, 20.0], dtype=torch.float64)
    return ImageGrid((43, 53, 41), affine, "fixed")


@pytest.fixture(scope="session")
def fixed(grid: ImageGrid) -> Image:
    return Image(grid, head_at(grid.centres(torch.float64))[None].float())


@pytest.fixture(scope="session")
def fixed_mask(grid: ImageGrid) -> Image:
    return Image(grid, brain_at(grid.centres(torch.float64))[None])


@pytest.fixture(scope="session")
def moved() -> Callable[..., Image]:
    """``moved(truth, grid, contrast)``: the head as seen on a grid of the target space of ``truth`` (fixed → moving)."""

    def make(truth: Transform, target: ImageGrid, contrast: str = "inverted") -> Image:
        values = head_at(truth.inverse().map(target.centres(torch.float64)))
        # Another contrast: neither monotone nor linear in the first.
        values = values if contrast == "same" else torch.sin(3.1 * values).clamp_min(0) * 300 + 40 * (values > 0.02)
        return Image(target, values[None].float())

    return make


@pytest.fixture(scope="session")
def moved_mask() -> Callable[[Transform, ImageGrid], Image]:
    return lambda truth, target: Image(target, brain_at(truth.inverse().map(target.centres(torch.float64)))[None])
