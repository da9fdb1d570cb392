"""The border of white matter is where it is, and a shift of the image shows as that shift."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import InputDataError
from tractode.evaluate.boundary import border, measure
from tractode.fields import Affine, Image, ImageGrid

SHAPE = (50, 46, 42)


@pytest.fixture
def brain(oblique_affine: torch.Tensor) -> tuple[Image, Image, torch.Tensor]:
    """Grey around white: a ball of 26 mm in one of 36 mm, and their middle."""
    grid = ImageGrid(SHAPE, oblique_affine, "anat")
    middle = grid.to_world((torch.tensor(SHAPE, dtype=torch.float64) - 1) / 2)
    radius = (grid.centres(torch.float64) - middle).norm(dim=-1)
    white = ((26 - radius) / 2.5 + 0.5).clamp(0, 1)
    grey = ((36 - radius) / 2.5 + 0.5).clamp(0, 1) - white
    return Image(grid, grey[None]), Image(grid, white[None]), middle


def pose(shift: tuple[float, float, float]) -> Affine:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    return Affine(matrix, "anat", "scan")


def b0_of(brain: tuple[Image, Image, torch.Tensor]) -> Image:
    grey, white, _ = brain
    return Image(grey.grid.renamed("scan"), 500 * grey.values + 380 * white.values)


def test_the_border_is_a_sphere(brain: tuple[Image, Image, torch.Tensor]) -> None:
    grey, white, middle = brain
    points, normals = border(grey, white)
    radius = (points - middle).norm(dim=-1)
    assert len(points) > 800
    assert float((radius - 26).abs().quantile(0.95)) < 0.5
    outward = (points - middle) / radius[:, None]
    assert float((normals * outward).sum(-1).quantile(0.05)) > 0.95


def test_a_shift_is_told(brain: tuple[Image, Image, torch.Tensor]) -> None:
    grey, white, _ = brain
    image = b0_of(brain)
    right = measure(image, grey, white, pose((0, 0, 0)))
    assert right.distance < 0.2
    assert right.crossed > 0.99
    assert right.contrast == pytest.approx(2 * 120 / 880, rel=0.15)
    assert right.cost < 0.1
    off = measure(image, grey, white, pose((2.0, -1.0, 0.0)))
    torch.testing.assert_close(torch.tensor(off.shift), torch.tensor([-2.0, 1.0, 0.0]), atol=0.6, rtol=0)
    assert off.cost > right.cost
    dark = measure(image, grey, white, pose((0, 0, 0)), grey_is_brighter=False)
    assert dark.cost > 1.9
    assert {"cost", "contrast", "crossed", "shift", "points", "distance"} == right.record().keys()


def test_an_image_elsewhere_is_refused(brain: tuple[Image, Image, torch.Tensor]) -> None:
    grey, white, _ = brain
    with pytest.raises(InputDataError, match="E-BOUNDARY-FEW"):
        measure(b0_of(brain), grey, white, pose((500.0, 0, 0)))
