"""Tissues of a painted brain are found as they were painted: fractions, shading, any contrast; what cannot be told apart is refused."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import Affine, Image, ImageGrid
from tractode.ops import smooth
from tractode.preprocess import gaussian_mixture
from tractode.preprocess.tissue_segmentation import SegmentationSettings, carried, segment, template_priors

SHAPE = (56, 52, 46)
T1W, T2W = (0.65, 0.95, 0.25), (0.55, 0.35, 1.0)


def brain(affine: torch.Tensor) -> tuple[ImageGrid, torch.Tensor]:
    """Grey, white, CSF fractions: a white ball with a ventricle in a wavy grey shell in fluid, voxels at its borders mixed."""
    grid = ImageGrid(SHAPE, affine, "painted")
    middle = grid.to_world((torch.tensor(SHAPE, dtype=torch.float64) - 1) / 2)
    away = grid.centres(torch.float64) - middle
    radius = away.norm(dim=-1) * (1 + 0.07 * torch.sin(away[..., 0] / 6) * torch.cos(away[..., 1] / 7))

    def inside(of: float) -> torch.Tensor:
        return ((of - radius) / 2.4 + 0.5).clamp(0, 1)

    fluid_in, white, grey, all_ = inside(10), inside(30), inside(40), inside(44)
    return grid, torch.stack((grey - white, white - fluid_in, all_ - grey + fluid_in)).float()


def scan(grid: ImageGrid, tissues: torch.Tensor, levels: tuple[float, ...], noise: float = 0.03) -> Image:
    """Skull and skin around it, shading of a factor of two, noise."""
    generator = torch.Generator().manual_seed(4)
    middle = grid.to_world((torch.tensor(SHAPE, dtype=torch.float64) - 1) / 2)
    away = grid.centres(torch.float64) - middle
    skin = (away.norm(dim=-1) > 50) & (away.norm(dim=-1) < 55)
    clean = torch.einsum("t,tijk->ijk", torch.tensor(levels), tissues) + 0.6 * skin
    shaded = clean * (0.35 * torch.sin(away[..., 2] / 40) + 0.006 * away[..., 0] * 0.5).exp()
    noises = [noise * torch.randn(SHAPE, generator=generator) for _ in range(2)]
    return Image(grid, (700 * (shaded + noises[0]).hypot(noises[1]))[None].float())


def wrong_priors(grid: ImageGrid, tissues: torch.Tensor) -> Image:
    """The truth blurred, and moved by half a voxel or more: about what a registration leaves."""
    blurred = smooth.gaussian(tissues, (1.2, 1.2, 1.2))
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([1.2, -1.0, 0.8])
    return carried(Image(grid.renamed("MNI"), blurred), grid, Affine(shift, "painted", "MNI"))


def dice(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("levels", [T1W, T2W], ids=["T1w", "T2w"])
def test_painted_tissues_are_found_again(oblique_affine: torch.Tensor, levels: tuple[float, ...]) -> None:
    grid, tissues = brain(oblique_affine)
    priors = wrong_priors(grid, tissues)
    found = segment(scan(grid, tissues, levels), priors, SegmentationSettings(iterations=12, sweeps=2))
    inside = tissues.sum(0) > 0.5
    assert dice(found.mask, inside) > 0.96
    truth = (tissues.argmax(0) + 1) * inside
    given = (priors.values.argmax(0) + 1) * (priors.values.sum(0) > 0.5)
    for label in (1, 2):
        assert dice(found.labels == label, truth == label) > 0.91
        assert dice(found.labels == label, truth == label) > dice(given == label, truth == label) + 0.01
    # Fractions, not labels: mixed voxels are near what was mixed.
    mixed = (tissues[1] > 0.2) & (tissues[1] < 0.8) & (tissues[0] > 0.2)
    assert float((found.tissues[1] - tissues[1])[mixed].abs().mean()) < (0.13 if levels == T1W else 0.21)
    total = found.tissues.sum(0)
    torch.testing.assert_close(total, found.mask.float())
    ratio = found.means[0] / found.means[1]
    assert ratio == pytest.approx(levels[0] / levels[1], rel=0.06)


def test_the_shading_is_found(oblique_affine: torch.Tensor) -> None:
    grid, tissues = brain(oblique_affine)
    shaded, even = scan(grid, tissues, T1W), torch.einsum("t,tijk->ijk", torch.tensor(T1W), tissues)
    found = segment(shaded, wrong_priors(grid, tissues), SegmentationSettings(iterations=12, sweeps=0))
    sure = found.mask & (even > 0.5)
    true = (shaded.values[0] / even.clamp_min(0.1))[sure].log()
    left = true - found.field[sure].log()
    assert float(true.std()) > 0.15
    assert float((left - left.median()).abs().median()) < 0.25 * float((true - true.median()).abs().median())


def test_storage_order_does_not_matter(oblique_affine: torch.Tensor) -> None:
    grid, tissues = brain(oblique_affine)
    image, priors = scan(grid, tissues, T1W), wrong_priors(grid, tissues)
    turned = ImageGrid((SHAPE[2], SHAPE[0], SHAPE[1]), oblique_affine[:, [2, 0, 1, 3]], "painted")
    again = [Image(turned, one.values.permute(0, 3, 1, 2).contiguous()) for one in (image, priors)]
    quick = SegmentationSettings(iterations=3, sweeps=1, order=2)
    first, second = segment(image, priors, quick), segment(again[0], again[1], quick)
    assert float((second.tissues - first.tissues.permute(0, 3, 1, 2)).abs().max()) < 1e-3


def test_a_brain_alone_is_segmented_too(oblique_affine: torch.Tensor) -> None:
    grid, tissues = brain(oblique_affine)
    whole = scan(grid, tissues, T1W)
    inside = tissues.sum(0) > 0.5
    found = segment(Image(grid, whole.values * inside), wrong_priors(grid, tissues), SegmentationSettings(iterations=6))
    assert dice(found.mask, inside) > 0.98


def test_what_cannot_be_segmented_is_refused(oblique_affine: torch.Tensor) -> None:
    grid, tissues = brain(oblique_affine)
    priors = wrong_priors(grid, tissues)
    with pytest.raises(InputDataError, match="E-SEG-PRIORS"):
        segment(scan(grid, tissues, T1W), Image(grid, torch.zeros(3, *SHAPE)))
    with pytest.raises(InputDataError, match="E-SEG-PRIORS"):
        segment(Image(grid, torch.zeros(1, *SHAPE)), priors)
    flat = scan(grid, tissues, (0.6, 0.6, 0.6), noise=0.2)
    with pytest.raises(InputDataError, match="E-SEG-CONTRAST"):
        segment(flat, priors)


def test_a_mixture_of_two_tissues_has_the_spread_of_its_range() -> None:
    values = torch.linspace(0, 1, 5, dtype=torch.float64).repeat(20)
    mixture = gaussian_mixture.start(values, torch.full((100, 4), 0.25, dtype=torch.float64), 1)
    apart = gaussian_mixture.Mixture(
        torch.tensor([0.0, 0.9, 2.0, 5.0], dtype=torch.float64), torch.zeros(4, dtype=torch.float64),
        mixture.weight, mixture.loads,
    )  # fmt: skip
    # Grey and white at shares of 5/6 to 1/6: uniform over 0.3 each, of variance 0.3² / 12.
    torch.testing.assert_close(apart.variances[4:7], torch.full((3,), 0.3**2 / 12, dtype=torch.float64))
    torch.testing.assert_close(apart.means[4:7], torch.tensor([0.75, 0.45, 0.15], dtype=torch.float64))
    assert float(apart.variances[:4].abs().max()) == 0


def test_priors_of_a_template_sum_to_one_in_its_mask(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((2, 2, 1), oblique_affine, "MNI")
    grey, white = torch.tensor([0.2, 0.8, 0.9, 0.5]), torch.tensor([0.3, 0.7, 0.0, 0.5])
    mask = torch.tensor([True, True, True, False])
    one, two, three = (Image(grid, v.reshape(1, 2, 2, 1)) for v in (grey, white, mask))
    made = template_priors(one, two, three).values.reshape(3, 4)
    torch.testing.assert_close(made.sum(0), torch.tensor([1.0, 1, 1, 0]))
    assert made[2, 0] == pytest.approx(0.5)
