"""Regions: closed forms, and MRtrix3's ``tckedit`` and ``tckgen`` on the same lines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from tractode.contracts import Rule
from tractode.errors import SpaceMismatchError
from tractode.fields import Image, ImageGrid, Streamlines
from tractode.io.nifti import write_image
from tractode.io.tractogram import read_tractogram, write_tractogram
from tractode.tracking.regions import Exclude, Include, OrderedInclude, Sphere, contains
from tractode.tracking.rules import apply_all

SHAPE = (14, 12, 10)


def walks(grid: ImageGrid, n: int = 400) -> Streamlines:
    """Smooth random walks through the middle of a grid, with the seed somewhere along each."""
    rng = np.random.default_rng(0)
    lines, seeds = [], []
    middle = grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2)
    for _ in range(n):
        count = int(rng.integers(5, 120))
        steps = ndimage.gaussian_filter1d(rng.standard_normal((count, 3)), 8, axis=0, mode="wrap")
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        start = middle + torch.from_numpy(rng.uniform(-6, 6, 3))
        lines.append((start + torch.from_numpy(0.7 * steps).cumsum(0)).float())
        seeds.append(int(rng.integers(0, count)))
    found = Streamlines.from_list(lines, grid.space)
    data = {"seed_point": torch.tensor(seeds), "seed": torch.arange(n)}
    return Streamlines(found.points, found.offsets, found.space, {}, data)


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid(SHAPE, oblique_affine, "w")


def slab(grid: ImageGrid, low: int, high: int) -> Image:
    values = torch.zeros(1, *grid.shape, dtype=torch.bool)
    values[0, low:high] = True
    return Image(grid, values)


def kept(rule: Rule, lines: Streamlines) -> list[int]:
    return rule.apply(lines).per_streamline["seed"].tolist()


def straight(grid: ImageGrid, path: list[float]) -> Streamlines:
    """One line along the first axis of the grid, through the given voxel coordinates; its seed is the first point."""
    vox = torch.tensor([[x, 5.0, 5.0] for x in path], dtype=torch.float64)
    lines = Streamlines.from_list([grid.to_world(vox)], grid.space)
    data = {"seed": torch.tensor([0]), "seed_point": torch.tensor([0])}
    return Streamlines(lines.points, lines.offsets, lines.space, {}, data)


def test_the_nearest_voxel_decides_and_balls_have_a_border(grid: ImageGrid) -> None:
    region = slab(grid, 3, 5)
    points = grid.to_world(torch.tensor([[2.51, 5, 5], [2.49, 5, 5], [4.49, 5, 5], [4.51, 5, 5]], dtype=torch.float64))
    assert contains(region, points, "w").tolist() == [True, False, True, False]
    ball = Sphere((1.0, 0.0, 0.0), 2.0)
    assert contains(ball, torch.tensor([[3.0, 0, 0], [3.01, 0, 0]]), "w").tolist() == [True, False]
    with pytest.raises(SpaceMismatchError, match="elsewhere"):
        contains(Image(grid.renamed("elsewhere"), region.values), points, "w")


@pytest.mark.parametrize(
    ("path", "is_right"),
    [
        ([0, 2, 3, 6, 7, 10], True),
        ([0, 2, 6, 2, 10], False),  # back to the first after the second
        ([10, 6, 2, 0], False),
        ([0, 2, 10], False),
        ([0, 2, 2, 4, 2, 6, 8, 10, 12, 10], True),  # back to the same region is no harm
    ],
)
def test_regions_in_order(grid: ImageGrid, path: list[float], is_right: bool) -> None:
    regions = (slab(grid, 2, 4), slab(grid, 6, 8), slab(grid, 10, 11))
    line = straight(grid, path)
    assert bool(kept(OrderedInclude(regions), line)) is is_right
    if is_right:
        backwards = straight(grid, path[::-1])
        assert not kept(OrderedInclude(regions), backwards)
        assert kept(OrderedInclude(regions, either_way=True), backwards)


def test_stopping_leaves_what_led_to_the_last_region(grid: ImageGrid) -> None:
    line = straight(grid, [5, 4, 3, 2, 1, 0])
    seeded = Streamlines(
        line.points, line.offsets, line.space, {}, {**line.per_streamline, "seed_point": torch.tensor([2])}
    )
    # From the seed at 3 the first half visits 4 and 5, the second 2 and on.
    found = Include((slab(grid, 2, 3),), stop=True).apply(seeded)
    assert grid.to_voxel(found.points)[:, 0].round().tolist() == [5, 4, 3, 2]
    assert found.per_streamline["seed_point"].tolist() == [2]
    found = Include((slab(grid, 4, 5),), stop=True).apply(seeded)
    assert grid.to_voxel(found.points)[:, 0].round().tolist() == [4, 3, 2]
    assert found.per_streamline["seed_point"].tolist() == [1]


def test_gradients_pass_and_pieces_change_nothing(grid: ImageGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = walks(grid, 60)
    rules = [Include((slab(grid, 3, 9),), stop=True), Exclude((Sphere((0.0, 0.0, 0.0), 3.0),))]
    points = lines.points.clone().requires_grad_()
    tracked = Streamlines(points, lines.offsets, lines.space, {}, lines.per_streamline)
    whole = apply_all(rules, tracked)
    whole.points.sum().backward()
    assert points.grad is not None
    assert float(points.grad.sum()) == whole.points.numel()
    monkeypatch.setattr("tractode.tracking.rules.LARGEST_PIECE", 100)
    again = apply_all(rules, lines)
    assert torch.equal(again.points, whole.points)
    assert torch.equal(again.per_streamline["seed_point"], whole.per_streamline["seed_point"])


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("tckedit") is None, reason="MRtrix3 is not installed")
def test_the_same_lines_pass_as_in_mrtrix(grid: ImageGrid, tmp_path: Path) -> None:
    # One line straight through all slabs: chance makes hardly one that visits three in their order.
    across = torch.tensor([[float(i), 5.3, 4.2] for i in range(grid.shape[0])], dtype=torch.float64)
    crossing = Streamlines.from_list([grid.to_world(across).float()], grid.space)
    extra = {"seed_point": torch.tensor([3]), "seed": torch.tensor([400])}
    crossing = Streamlines(crossing.points, crossing.offsets, crossing.space, {}, extra)
    lines = Streamlines.concatenate([walks(grid), crossing], grid.space)
    write_tractogram(tmp_path / "all.tck", lines, grid)
    regions = {"one": slab(grid, 4, 6), "two": slab(grid, 8, 9), "three": slab(grid, 1, 3)}
    for name, region in regions.items():
        write_image(tmp_path / f"{name}.nii", region)
    middle = tuple(float(x) for x in grid.to_world(torch.tensor([6.0, 5.0, 4.0], dtype=torch.float64)))
    ball = Sphere((middle[0], middle[1], middle[2]), 4.0)
    word = ",".join(f"{x:.6f}" for x in (*middle, 4.0))
    one, two, three = regions.values()
    cases: list[tuple[list[str], Rule]] = [
        (["-include", "one", "-include", "two"], Include((one, two))),
        (["-include", word], Include((ball,))),
        (["-exclude", "two", "-exclude", "three"], Exclude((two, three))),
        (["-exclude", word], Exclude((ball,))),
        (["-include_ordered", "three", "-include_ordered", "one"], OrderedInclude((three, one))),
        (["-include_ordered", "one", "-include_ordered", "two"], OrderedInclude((one, two))),
        (["-include_ordered", "three", "-include_ordered", "one", "-include_ordered", "two"],
         OrderedInclude((three, one, two))),
    ]  # fmt: skip
    counts: list[int] = []
    starts = {tuple(line[0].tolist()): i for i, line in enumerate(lines)}
    for words, rule in cases:
        spoken = [str(tmp_path / f"{w}.nii") if w in regions else w for w in words]
        subprocess.run(
            ["tckedit", str(tmp_path / "all.tck"), str(tmp_path / "some.tck"), *spoken, "-force", "-quiet", "-nthreads", "0"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        theirs, _ = read_tractogram(tmp_path / "some.tck", "w")
        found = sorted(starts[tuple(line[0].tolist())] for line in theirs)
        assert kept(rule, lines) == found, words
        assert len(found) < 390
        counts.append(len(found))
    assert min(counts) > 0
