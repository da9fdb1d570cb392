"""Tracking to a number of streamlines or of seeds: the lines depend on the request and the generator alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.dynamic_seeding import DynamicSeeding
from tractode.tracking.propagate import track_until
from tractode.tracking.regions import Exclude, Include, Sphere
from tractode.tracking.sdstream import SDStream
from tractode.tracking.seeding import GridSeeding, ListSeeding, MaskSeeding, RandomPerVoxelSeeding, Seeding

TRACKER = SDStream(min_length=3.0, step_mm=0.5)


@pytest.fixture
def world(oblique_affine: torch.Tensor) -> tuple[ShField, Image]:
    """Directions that fan out, on a small grid."""
    grid = ImageGrid((9, 8, 7), oblique_affine, "w")
    p = grid.centres(torch.float64) - grid.to_world(torch.tensor([4.0, 4, 3], dtype=torch.float64))
    main = torch.stack((torch.ones_like(p[..., 0]), 0.05 * p[..., 0] + 0.03 * p[..., 2], 0.04 * p[..., 1]), dim=-1)
    degree = sh.degrees(8).double()
    coeffs = sh.basis(main / main.norm(dim=-1, keepdim=True), 8) * torch.exp(-0.06 * degree * (degree + 1))
    field = ShField(grid, coeffs.permute(3, 0, 1, 2).float().contiguous(), 8)
    return field, Image(grid, torch.ones(1, 9, 8, 7, dtype=torch.bool))


def lines(
    world: tuple[ShField, Image], seeding: Seeding, n: int | None, batch: int = 4096, **options: Any
) -> Streamlines:
    field, mask = world
    tracker = replace(TRACKER, batch_size=batch)
    parts = list(track_until(tracker, field, mask, seeding, n, torch.Generator().manual_seed(2), **options))
    assert all(len(part) for part in parts)
    return Streamlines.concatenate(parts, "w")


def assert_same(one: Streamlines, two: Streamlines) -> None:
    assert torch.equal(one.points, two.points)
    assert torch.equal(one.offsets, two.offsets)
    assert torch.equal(one.per_streamline["seed"], two.per_streamline["seed"])


@pytest.mark.parametrize("kind", ["mask", "dynamic"])
def test_the_batch_size_changes_nothing(world: tuple[ShField, Image], kind: str) -> None:
    field, mask = world
    seeding = MaskSeeding(mask) if kind == "mask" else DynamicSeeding(field)
    centre = tuple(field.grid.to_world(torch.tensor([6.0, 4, 3], dtype=torch.float64)).tolist())
    rules = [Exclude((Sphere(centre, 2.5),)), Include((mask,), stop=False)]
    n = 1200
    first = lines(world, seeding, n, rules=rules)
    assert len(first) == n
    assert int(first.per_streamline["seed"].max()) > 1024
    assert_same(first, lines(world, seeding, n, batch=300, rules=rules))


def test_all_lines_of_so_many_seeds(world: tuple[ShField, Image]) -> None:
    _, mask = world
    found = lines(world, MaskSeeding(mask), None, n_seeds=500)
    assert 300 < len(found) <= 500
    assert int(found.per_streamline["seed"].max()) < 500
    assert bool((found.per_streamline["seed"].diff() > 0).all())
    with pytest.raises(ValueError, match="never ends"):
        lines(world, MaskSeeding(mask), None)


@pytest.mark.parametrize("kind", ["grid", "random", "list"])
def test_finite_seeds_are_used_up(world: tuple[ShField, Image], kind: str) -> None:
    field, mask = world
    points = field.grid.centres().reshape(-1, 3)
    made: dict[str, Seeding] = {
        "grid": GridSeeding(mask, 1),
        "random": RandomPerVoxelSeeding(mask, 2),
        "list": ListSeeding(points, torch.tensor([1.0, 0, 0]).expand(len(points), 3)),
    }
    seeding = made[kind]
    found = lines(world, seeding, None)
    assert seeding.total is not None
    assert 0.5 * seeding.total < len(found) <= seeding.total
    few = lines(world, seeding, 20)
    assert len(few) == 20
    assert torch.equal(few.per_streamline["seed"], found.per_streamline["seed"][:20])
    # Never more than there are.
    assert len(lines(world, seeding, 10**6)) == len(found)


def test_given_directions_are_followed(world: tuple[ShField, Image]) -> None:
    field, mask = world
    centre = field.grid.to_world(torch.tensor([[4.0, 4, 3]], dtype=torch.float64)).float()
    both = ListSeeding(centre.repeat(2, 1), torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
    parts = track_until(replace(TRACKER, one_way=True), field, mask, both, None, torch.Generator())
    ends = torch.cat([line[:1] for part in parts for line in part])
    assert float(ends[0, 0]) > float(centre[0, 0]) > float(ends[1, 0])


def test_seeds_are_spent_and_progress_is_told(world: tuple[ShField, Image]) -> None:
    _, mask = world
    nowhere = Image(mask.grid, torch.zeros_like(mask.values))
    told: list[tuple[int, int]] = []
    found = lines(
        world, MaskSeeding(mask), 10, rules=[Include((nowhere,))], max_seeds=3000,
        on_progress=lambda n, drawn: told.append((n, drawn)),
    )  # fmt: skip
    assert len(found) == 0
    assert told[-1][0] == 0
    assert 2900 < told[-1][1] <= 3000
    assert [drawn for _, drawn in told] == sorted(drawn for _, drawn in told)
