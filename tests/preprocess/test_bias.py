"""Bias field: a known shading of a head with three tissues is found; a head without one is left alone."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid
from tractode.preprocess.bias import bias_field, unshaded
from tractode.simulate.bias import BiasSettings, coil_shading

SHAPE = (36, 34, 30)


def _head(affine: torch.Tensor, generator: torch.Generator) -> tuple[Image, Image]:
    """Blobs of three brightnesses with noise of 4 %, and its mask."""
    larger = affine.clone()
    larger[:3, :3] *= 1.8
    grid = ImageGrid(SHAPE, larger, "sub-01_dwi")
    middle = grid.to_world((torch.tensor(SHAPE).double() - 1) / 2)
    x = grid.centres(torch.float64) - middle
    mask = (x / torch.tensor([58.0, 62.0, 50.0]).double()).norm(dim=-1) < 1
    pattern = torch.sin(x[..., 0] / 6) + torch.sin(x[..., 1] / 7) + torch.sin(x[..., 2] / 5)
    tissue = torch.where(pattern > 0.8, 1300.0, torch.where(pattern < -1.2, 3000.0, 1000.0))
    noise = 1 + 0.04 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return Image(grid, (tissue * noise * mask)[None].float()), Image(grid, mask[None])


def test_a_known_shading_is_found(oblique_affine: torch.Tensor, generator: torch.Generator) -> None:
    image, mask = _head(oblique_affine, generator)
    truth = coil_shading(image.grid, mask.mask, generator, BiasSettings(strength=0.25))
    found = bias_field(Image(image.grid, image.values * truth.float()), mask).values[0].double()
    left = (truth / found)[mask.mask].log()
    assert float(truth[mask.mask].log().std()) == pytest.approx(0.25, abs=0.01)
    assert float(left.std()) < 0.06
    assert float(found[mask.mask].log().mean()) == pytest.approx(0.0, abs=1e-4)


def test_a_head_without_shading_is_left_alone(oblique_affine: torch.Tensor, generator: torch.Generator) -> None:
    image, mask = _head(oblique_affine, generator)
    found = bias_field(image, mask).values[0]
    assert float(found[mask.mask].log().std()) < 0.04


def test_brightness_does_not_matter(oblique_affine: torch.Tensor, generator: torch.Generator) -> None:
    image, mask = _head(oblique_affine, generator)
    truth = coil_shading(image.grid, mask.mask, generator, BiasSettings()).float()
    first = bias_field(Image(image.grid, image.values * truth), mask)
    second = bias_field(Image(image.grid, image.values * truth * 0.01), mask)
    assert torch.allclose(first.values, second.values, rtol=5e-3)


def test_dividing_takes_it_away_in_the_mask_only(oblique_affine: torch.Tensor, generator: torch.Generator) -> None:
    image, mask = _head(oblique_affine, generator)
    field = Image(image.grid, torch.full((1, *SHAPE), 2.0))
    out = unshaded(image.values + 1, field, mask.mask)
    assert torch.allclose(out[0][mask.mask] * 2, image.values[0][mask.mask] + 1)
    assert torch.equal(out[0][~mask.mask], (image.values[0] + 1)[~mask.mask])


def test_an_empty_mask_is_refused(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((8, 8, 8), oblique_affine, "x")
    with pytest.raises(InputDataError, match="E-BIAS-EMPTY"):
        bias_field(Image(grid, torch.ones(1, 8, 8, 8)), Image(grid, torch.zeros(1, 8, 8, 8, dtype=torch.bool)))
