"""The mask covers a bright ball, keeps a slab whole, sheds what touches it, and refuses an empty image."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid
from tractode.preprocess.mask import brain_mask


def _head(affine: torch.Tensor, shape: tuple[int, int, int] = (60, 60, 50)) -> tuple[Image, torch.Tensor]:
    """A brain of 55 mm radius with bright ventricles, an eye on a stalk, noise and a shading of 40 %."""
    grid = ImageGrid(shape, affine, "phantom")
    middle = grid.to_world((torch.tensor(shape, dtype=torch.float64) - 1) / 2)
    x = grid.centres(torch.float64) - middle
    radius = x.norm(dim=-1)
    brain = radius < 45
    eye = (x - torch.tensor([0.0, 58.0, 0.0])).norm(dim=-1) < 9
    stalk = (x[..., 1] > 40) & (x[..., 1] < 52) & (x[..., [0, 2]].norm(dim=-1) < 3)
    values = 400.0 * brain + 500 * ((eye | stalk) & ~brain) + 700 * (radius < 10)
    values = values * (1 - 0.004 * x[..., 2])
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Image(grid, (values + 20 * noise).abs()[None].float()), brain


def _dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_brain_is_found_and_the_eye_is_not(oblique_affine: torch.Tensor) -> None:
    image, brain = _head(oblique_affine)
    assert _dice(brain_mask(image).mask, brain) > 0.95


def test_a_slab_is_kept_to_its_faces(oblique_affine: torch.Tensor) -> None:
    image, brain = _head(oblique_affine, (60, 60, 12))
    mask = brain_mask(image).mask
    assert _dice(mask, brain) > 0.95
    for face in (0, -1):
        assert _dice(mask[:, :, face], brain[:, :, face]) > 0.9


def test_storage_order_does_not_matter(oblique_affine: torch.Tensor) -> None:
    image, _ = _head(oblique_affine)
    swapped = oblique_affine[:, [2, 0, 1, 3]]
    other = Image(ImageGrid((50, 60, 60), swapped, "phantom"), image.values.permute(0, 3, 1, 2))
    assert torch.equal(brain_mask(other).mask, brain_mask(image).mask.permute(2, 0, 1))


def test_an_empty_image_is_refused(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((20, 20, 20), oblique_affine, "phantom")
    with pytest.raises(InputDataError, match="E-MASK-EMPTY"):
        brain_mask(Image(grid, torch.zeros(1, 20, 20, 20)))
