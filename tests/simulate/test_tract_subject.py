"""Subjects to learn from: the field shows the streamlines, on the side where they are, and a number gives one subject."""

from __future__ import annotations

import pytest
import torch

from tractode.fields import Image, ImageGrid, Streamlines
from tractode.generative.space import SPACE, training_grid
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.simulate.bundle_library import BundleLibrary, library
from tractode.simulate.bundle_variation import NO_VARIATION
from tractode.simulate.tissues import WHITE, Anatomy
from tractode.simulate.tract_subject import TractSubjectSettings, finer, synthesise, visible

EASY = TractSubjectSettings(
    variation=NO_VARIATION, voxel_mm=(3.0, 3.0), thick=0.0, directions=(45, 45), b=(2000.0, 2000.0), snr=(40.0, 40.0)
)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    """Two balls of white matter, 22 mm in radius, 60 mm apart, in grey matter."""
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-64.0, -50.0, -32.0])
    grid = ImageGrid((65, 36, 36), affine, SPACE)
    centres = grid.centres()
    centres[..., 0] = centres[..., 0].abs() - 30
    distance = (centres - torch.tensor([0.0, -16.0, 2.0])).norm(dim=-1)
    tissues = torch.zeros(3, *grid.shape)
    tissues[WHITE] = (distance < 22).float()
    tissues[0] = (distance < 30).float() - tissues[WHITE]
    return Anatomy(Image(grid, tissues[WHITE : WHITE + 1]), Image(grid, tissues))


@pytest.fixture(scope="module")
def bundles() -> BundleLibrary:
    """Along y on the left, along z on the right."""
    along = torch.linspace(-18, 18, 31)
    places = [(1.5 * a, 1.5 * b) for a in range(-3, 4) for b in range(-3, 4)]
    left = [torch.stack([-30 + a + 0 * along, along - 16, 2 + b + 0 * along], -1) for a, b in places]
    right = [torch.stack([30 + a + 0 * along, b - 16 + 0 * along, 2 + along], -1) for a, b in places]
    return library({"One_L": Streamlines.from_list(left, SPACE), "Other_R": Streamlines.from_list(right, SPACE)})


def test_peaks_lie_along_the_lines_on_each_side(anatomy: Anatomy, bundles: BundleLibrary) -> None:
    made = synthesise(bundles, anatomy, 3, EASY)
    grid, directions = training_grid(), sphere.directions(800)
    for place, axis in (((-30.0, -16.0, 2.0), 1), ((30.0, -16.0, 2.0), 2)):
        i, j, k = grid.to_voxel(torch.tensor(place)).round().long().tolist()
        peak = directions[(sh.basis(directions, 6) @ made.coeffs[:, i, j, k].double()).argmax()]
        assert abs(float(peak[axis])) > 0.98


def test_only_white_matter_of_the_template_is_seen(anatomy: Anatomy, bundles: BundleLibrary) -> None:
    made, shown = synthesise(bundles, anatomy, 0, EASY), visible(anatomy)
    assert not bool(made.coeffs[:, ~shown].any())
    assert float((made.coeffs[0][shown] > 0).float().mean()) > 0.9
    expected = 2 * 4 / 3 * torch.pi * 22**3 / 27
    assert 0.9 * expected < int(shown.sum()) < 1.6 * expected


def test_a_number_gives_one_subject(anatomy: Anatomy, bundles: BundleLibrary) -> None:
    settings = TractSubjectSettings(seed=2, directions=(12, 15))
    one, again, other = (synthesise(bundles, anatomy, n, settings) for n in (4, 4, 5))
    assert torch.equal(one.coeffs, again.coeffs)
    assert torch.equal(one.kept, again.kept)
    assert not torch.equal(one.coeffs, other.coeffs)
    assert not bool((one.kept & bundles.is_held_out).any())
    assert torch.isfinite(one.coeffs).all()


def test_finer_lines_go_through_their_points() -> None:
    angle = torch.linspace(0, 1.5, 31)
    circle = torch.stack([40 * angle.cos(), 40 * angle.sin(), 0 * angle], -1)[None]
    fine = finer(circle, SPACE, 0.5)
    radius = fine.points.norm(dim=-1)
    assert (radius - 40).abs().max() < 0.02
    assert (fine.lengths() - 60).abs().max() < 0.1
    assert torch.allclose(fine.points[[0, -1]], circle[0, [0, -1]], atol=1e-4)
