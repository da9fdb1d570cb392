"""Fibre populations on a grid, from phantoms with a known answer."""

from __future__ import annotations

import pytest
import torch

from tractode.fields import ImageGrid, Streamlines
from tractode.ops import smooth, sphere, symmetric
from tractode.ops import spherical_harmonics as sh
from tractode.simulate.fibres import FibreSettings, dyadics, fibre_field, splat


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid((20, 18, 16), oblique_affine, "sub-01_dwi")


def sheet(grid: ImageGrid, axis: torch.Tensor, other: torch.Tensor) -> Streamlines:
    """Parallel lines 1 mm apart along ``axis`` through the middle of the grid, 8 mm thick, 24 mm wide."""
    middle = grid.to_world(torch.tensor(grid.shape, dtype=torch.float64) / 2)
    third = torch.linalg.cross(axis, other)
    t = torch.arange(-16, 17, dtype=torch.float64)[:, None]
    lines = [middle + t * axis + u * other + v * third for u in range(-12, 13) for v in range(-4, 5)]
    return Streamlines.from_list(lines, grid.space)


def peak(coeffs: torch.Tensor) -> torch.Tensor:
    directions = sphere.directions(2000)
    return directions[(sh.basis(directions, 8) @ coeffs.double()).argmax(0)]


def test_splat_keeps_totals_and_centres(grid: ImageGrid, generator: torch.Generator) -> None:
    points = grid.to_world(torch.rand(200, 3, generator=generator, dtype=torch.float64) * 10 + 3)
    image = splat(grid, points, torch.ones(200, 1, dtype=torch.float64))[0]
    assert torch.isclose(image.sum(), torch.tensor(200.0, dtype=torch.float64))
    centre = (image[..., None] * grid.centres(torch.float64)).sum((0, 1, 2)) / 200
    assert torch.allclose(centre, points.mean(0), atol=1e-6)


def test_dyadics_measure_mm_of_fibre_per_mm3(grid: ImageGrid) -> None:
    axis, other = (
        torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64),
        torch.tensor([-0.8, 0.6, 0.0], dtype=torch.float64),
    )
    tensor = dyadics(grid, sheet(grid, axis, other), 1.0)
    i, j, k = (n // 2 for n in grid.shape)
    assert torch.isclose(tensor[[0, 3, 5], i, j, k].sum(), torch.tensor(1.0, dtype=torch.float64), atol=0.05)


@pytest.mark.parametrize("shift", [0.0, 14.0, 60.0, 400.0])
def test_dyadics_in_a_box_are_those_of_the_whole_grid(grid: ImageGrid, shift: float) -> None:
    """Also for a bundle that leaves the grid, or misses it."""
    axis = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    lines = sheet(grid, axis, torch.tensor([-0.8, 0.6, 0.0], dtype=torch.float64))
    lines = Streamlines(lines.points + shift, lines.offsets, lines.space)
    step = lines.points.diff(dim=0)
    within = lines.streamline_of_point[1:] == lines.streamline_of_point[:-1]
    middle = ((lines.points[1:] + lines.points[:-1]) / 2)[within]
    outer = symmetric.from_matrix((step / step.norm(dim=-1, keepdim=True))[:, :, None] * step[:, None, :])[within]
    sigma = tuple(1.5 / edge for edge in grid.voxel_sizes)
    volume = torch.tensor(grid.voxel_sizes).prod()
    whole = smooth.gaussian(splat(grid, middle, outer) / volume, (sigma[0], sigma[1], sigma[2]), border="zero")
    assert torch.allclose(dyadics(grid, lines, 1.5), whole, atol=1e-7)


def test_crossing_bundles_give_two_lobes_and_the_right_integral(grid: ImageGrid) -> None:
    a, b = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64), torch.tensor([-0.8, 0.6, 0.0], dtype=torch.float64)
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    bundles = {"one": sheet(grid, a, b), "two": sheet(grid, b, a)}
    tissues = torch.zeros(3, *grid.shape, dtype=torch.float64)
    tissues[1] = 1
    field = fibre_field(grid, tissues, bundles)
    i, j, k = (n // 2 for n in grid.shape)
    coeffs = field.fod.coeffs[:, i, j, k].double()
    assert torch.isclose(coeffs[0] * (4 * torch.pi) ** 0.5, torch.tensor(1.0, dtype=torch.float64), atol=1e-3)
    along_a, along_b, across = (sh.basis(torch.stack([a, b, up]), 8) @ coeffs).tolist()
    assert abs(along_a - along_b) < 0.1 * along_a
    assert across < 0.1 * along_a
    assert not field.single[i, j, k]


def test_one_bundle_is_single_fibre_and_makes_room_in_grey_matter(grid: ImageGrid) -> None:
    a, b = torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64), torch.tensor([-0.8, 0.6, 0.0], dtype=torch.float64)
    b = b - (b @ a) * a
    tissues = torch.zeros(3, *grid.shape, dtype=torch.float64)
    tissues[0], tissues[1] = 0.9, 0.1
    settings = FibreSettings(raised=0.95)
    field = fibre_field(grid, tissues, {"one": sheet(grid, a, b / b.norm())}, settings)
    i, j, k = (n // 2 for n in grid.shape)
    assert field.single[i, j, k]
    assert field.tissues[1, i, j, k] > 0.85
    assert torch.allclose(field.tissues.sum(0), torch.ones_like(tissues[0]))
    assert torch.rad2deg(sphere.angle(peak(field.fod.coeffs[:, i, j, k]), a)) < 4
    assert torch.rad2deg(sphere.angle(field.main_direction[:, i, j, k], a)) < 1
