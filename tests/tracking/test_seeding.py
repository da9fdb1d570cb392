"""Seeding mechanisms: where their seeds lie, that they are the same again, and that they end."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.dynamic_seeding import DynamicSeeding
from tractode.tracking.interface_seeding import InterfaceSeeding
from tractode.tracking.seeding import (
    GridSeeding,
    ImageSeeding,
    ListSeeding,
    MaskSeeding,
    RandomPerVoxelSeeding,
    Seeding,
    SphereSeeding,
)
from tractode.tracking.tissues import TissueMaps

SHAPE = (7, 6, 5)


def fresh() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.fixture
def mask(oblique_affine: torch.Tensor) -> Image:
    values = torch.zeros(1, *SHAPE, dtype=torch.bool)
    values[0, 2:5, 1:5, 1:4] = True
    return Image(ImageGrid(SHAPE, oblique_affine, "w"), values)


def nearest(image: Image, points: torch.Tensor) -> torch.Tensor:
    return (image.grid.to_voxel(points.double()) + 0.5).floor().long()


def ball_tissues(grid: ImageGrid) -> TissueMaps:
    """White matter of 6 mm around the middle, a shell of cortex, CSF outside, with soft borders."""
    middle = grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2)
    radius = (grid.centres(torch.float64) - middle).norm(dim=-1)
    white = torch.sigmoid(2 * (6 - radius))
    csf = torch.sigmoid(2 * (radius - 9.5))
    grey = (1 - white - csf).clamp_min(0)
    none = torch.zeros_like(grey)
    return TissueMaps(Image(grid, torch.stack((grey, none, white, csf, none)).float()))


def test_image_weights_are_densities(mask: Image) -> None:
    weights = torch.zeros(1, *SHAPE)
    weights[0, 2, 3, 1], weights[0, 5, 0, 4] = 1.0, 3.0
    seeds = ImageSeeding(Image(mask.grid, weights)).draw(4000, fresh(), 0).points
    voxels, counts = torch.unique(nearest(mask, seeds), dim=0, return_counts=True)
    assert voxels.tolist() == [[2, 3, 1], [5, 0, 4]]
    assert float(counts[1]) / 4000 == pytest.approx(0.75, abs=0.03)
    with pytest.raises(InputDataError, match="negative"):
        ImageSeeding(Image(mask.grid, -weights)).draw(1, fresh(), 0)


def test_grids_fill_every_voxel_and_end(mask: Image) -> None:
    seeding = GridSeeding(mask, 2)
    assert seeding.total == 8 * 36
    parts = [seeding.draw(100, fresh(), after).points for after in (0, 100, 200)]
    assert [len(part) for part in parts] == [100, 100, 88]
    vox = mask.grid.to_voxel(torch.cat(parts).double())
    counts = torch.unique(nearest(mask, torch.cat(parts)), dim=0, return_counts=True)[1]
    assert counts.tolist() == [8] * 36
    torch.testing.assert_close((vox - vox.round()).abs(), torch.full_like(vox, 0.25), atol=1e-5, rtol=0)


def test_random_seeds_per_voxel_are_so_many_in_each(mask: Image) -> None:
    seeding = RandomPerVoxelSeeding(mask, 5)
    counts = torch.unique(nearest(mask, seeding.draw(1000, fresh(), 0).points), dim=0, return_counts=True)[1]
    assert counts.tolist() == [5] * 36


def test_balls_and_lists(mask: Image) -> None:
    seeds = SphereSeeding((1.0, 2.0, 3.0), 4.0).draw(3000, fresh(), 0).points
    radius = (seeds - torch.tensor([1.0, 2, 3])).norm(dim=-1)
    assert float(radius.max()) <= 4.0
    assert float((radius < 4 * 0.5 ** (1 / 3)).float().mean()) == pytest.approx(0.5, abs=0.04)
    points, directions = torch.rand(5, 3), torch.nn.functional.normalize(torch.rand(5, 3), dim=-1)
    drawn = ListSeeding(points, directions).draw(3, fresh(), 3)
    assert torch.equal(drawn.points, points[3:])
    assert drawn.directions is not None
    assert torch.equal(drawn.directions, directions[3:])
    with pytest.raises(ValueError, match="direction"):
        ListSeeding(points, directions[:2])


def test_interface_seeds_lie_between_grey_and_white_matter(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((16, 14, 12), oblique_affine, "w")
    tissues = ball_tissues(grid)
    seeds = InterfaceSeeding(tissues).draw(800, fresh(), 0).points
    at = tissues.at(seeds)
    assert len(seeds) == 800
    assert bool((at.excess > 0).all())
    assert float(at.excess.max()) < 0.01
    middle = grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2)
    away = seeds.double() - middle
    assert float((away.norm(dim=-1) - 6).abs().max()) < 0.6
    # On all sides alike.
    assert float((away / away.norm(dim=-1, keepdim=True)).mean(0).norm()) < 0.15
    flat = torch.zeros(5, *grid.shape)
    flat[2] = 1
    with pytest.raises(InputDataError, match="empty"):
        InterfaceSeeding(TissueMaps(Image(grid, flat))).draw(5, fresh(), 0)


def crossing(grid: ImageGrid) -> ShField:
    """A strong fibre along the world's x everywhere, and a weaker one along z in half of the grid."""
    degree = sh.degrees(8).double()
    kernel = torch.exp(-0.03 * degree * (degree + 1))
    x, z = (sh.basis(torch.tensor(d, dtype=torch.float64), 8) * kernel for d in ([1.0, 0, 0], [0, 0, 1.0]))
    coeffs = x[:, None, None, None].repeat(1, *grid.shape)
    coeffs[:, grid.shape[0] // 2 :] += 0.5 * z[:, None, None, None]
    return ShField(grid, coeffs.float(), 8)


def test_dynamic_seeds_go_where_streamlines_are_missing(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((8, 6, 6), oblique_affine, "w")
    source, generator = DynamicSeeding(crossing(grid)).begun(), fresh()
    first = source.draw(3000, generator, 0)
    assert first.directions is not None
    along_z = first.directions[:, 2].abs() > 0.9
    assert float(along_z.double().mean()) == pytest.approx(1 / 3, abs=0.05)
    # Lines along x are found everywhere, none along z: the fixels of z, and only they, lag behind.
    ends = grid.to_world(torch.tensor([[0.0, j, k] for j in range(6) for k in range(6)], dtype=torch.float64))
    steps = torch.arange(0, 30, 0.5, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0, 0], dtype=torch.float64)
    lines = Streamlines.from_list([end + sign * steps for end in ends for sign in (1, -1)], "w")
    source.observe(lines)
    later = source.draw(3000, generator, 3000).directions
    assert later is not None
    assert float((later[:, 2].abs() > 0.9).double().mean()) > 0.45


@pytest.mark.parametrize("name", ["mask", "image", "grid", "random", "ball", "interface", "dynamic"])
def test_the_same_generator_gives_the_same_seeds(name: str, oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((10, 9, 8), oblique_affine, "w")
    whole = Image(grid, torch.ones(1, *grid.shape))
    made: dict[str, Seeding] = {
        "mask": MaskSeeding(whole),
        "image": ImageSeeding(whole),
        "grid": GridSeeding(whole, 1),
        "random": RandomPerVoxelSeeding(whole, 1),
        "ball": SphereSeeding((0.0, 0.0, 0.0), 1.0),
        "interface": InterfaceSeeding(ball_tissues(grid)),
        "dynamic": DynamicSeeding(crossing(grid)),
    }
    seeding = made[name].begun()
    one, two = (made[name].begun().draw(64, fresh(), 0) for _ in range(2))
    assert len(one) == 64
    assert torch.equal(one.points, two.points)
    assert seeding.draw_size(10, 0) == seeding.draw_size(10, 0)
