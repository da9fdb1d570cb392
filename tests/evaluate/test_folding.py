"""The folding certificate on maps whose folds are known."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.evaluate.folding import certificate, certify_positions, inverse_consistency
from tractode.evaluate.overlap import dice, dice_of_labels
from tractode.fields import Affine, Image, ImageGrid
from tractode.ops import finite_difference


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid((20, 7, 6), oblique_affine, "a")


def test_affine_has_its_determinant_everywhere(grid: ImageGrid) -> None:
    matrix = torch.diag(torch.tensor([1.5, 0.5, 0.8, 1.0], dtype=torch.float64))
    found = certificate(Affine(matrix, "a", "b"), grid)
    assert found.n_cells == 19 * 6 * 5
    assert found.is_diffeomorphic
    assert found.min_jacobian == pytest.approx(0.6)
    assert found.non_diffeomorphic_volume == 0


def test_mirror_turns_everything_over(grid: ImageGrid) -> None:
    matrix = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    found = certificate(Affine(matrix, "a", "b"), grid)
    assert found.n_folded == found.n_cells
    # Each of the two ways of cutting fills every cell once.
    assert found.non_diffeomorphic_volume == pytest.approx(1.0)
    assert not found.record()["is_diffeomorphic"]


def test_finds_a_fold_that_central_differences_miss(grid: ImageGrid) -> None:
    """One voxel pushed 1.2 voxels along an axis: its own central difference is 1, yet it passed its neighbour."""
    positions = grid.centres(torch.float64).clone()
    positions[9, 3, 3] += 1.2 * grid.affine[:3, 0]
    index = (positions - grid.affine[:3, 3]) @ torch.linalg.inv(grid.affine[:3, :3]).mT
    central = (index[10, 3, 3] - index[8, 3, 3]) / 2
    torch.testing.assert_close(central, torch.tensor([1.0, 0.0, 0.0]).double())
    found = certify_positions(positions, grid)
    assert 0 < found.n_folded <= 8
    assert found.min_jacobian == pytest.approx(-0.2)


def test_one_cell_by_hand(oblique_affine: torch.Tensor) -> None:
    """One corner of a cell pulled along the diagonal to t = 0.2 of it. Of the ten Jacobians (Liu et al. 2024, section 3), its own corner's is 3t − 2,
    the inner tetrahedron's that it belongs to (3t − 1)/2, those of its three neighbours t, and the other five stay 1."""
    cell = ImageGrid((2, 2, 2), oblique_affine, "a")
    t = 0.2
    index = torch.stack(torch.meshgrid(*[torch.arange(2.0, dtype=torch.float64)] * 3, indexing="ij"), dim=-1)
    index[1, 1, 1] = t
    dets = finite_difference.ten_jacobians(index).flatten()
    assert sorted(dets.tolist()) == pytest.approx(sorted([3 * t - 2, (3 * t - 1) / 2, t, t, t, 1, 1, 1, 1, 1]))
    found = certify_positions(cell.to_world(index), cell)
    assert found.n_folded == 1
    assert found.min_jacobian == pytest.approx(-1.4)
    assert found.max_jacobian == pytest.approx(1.0)
    # Volumes: a corner's tetrahedron is 1/6 of its determinant, the inner one 1/3; the mean over both cuttings.
    assert found.non_diffeomorphic_volume == pytest.approx((1.4 / 6 + 0.2 / 3) / 2)
    expected = cell.to_world(torch.full((3,), 0.5, dtype=torch.float64)).tolist()
    assert list(found.worst) == pytest.approx(expected)
    assert found.record()["worst"] == [round(x, 2) for x in expected]


def test_the_worst_cell_is_named(grid: ImageGrid) -> None:
    """Beyond the first slab of cells, so that the slabs' offsets are in it."""
    positions = grid.centres(torch.float64).clone()
    positions[18, 4, 2] += 1.2 * grid.affine[:3, 0]
    found = certify_positions(positions, grid)
    cell = grid.to_voxel(torch.tensor(found.worst, dtype=torch.float64)) - 0.5
    assert (cell - torch.tensor([18.0, 4.0, 2.0])).abs().max() <= 1 + 1e-9


def test_inverse_consistency_is_in_voxels(grid: ImageGrid) -> None:
    """A way back that misses by one voxel along the second axis, and one that does not miss."""
    there = Affine(torch.eye(4, dtype=torch.float64), "a", "b")
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = grid.affine[:3, 1]
    missing = Affine(matrix, "b", "a")
    found = inverse_consistency(there, missing, grid)
    assert [found[key] for key in ("p50", "p95", "p99", "max")] == pytest.approx([1.0] * 4)
    assert found["n"] == 20 * 7 * 6
    assert inverse_consistency(there, there.inverse(), grid)["max"] == pytest.approx(0, abs=1e-9)
    mask = torch.zeros(1, *grid.shape, dtype=torch.bool)
    assert inverse_consistency(there, missing, grid, Image(grid, mask))["n"] == 0
    with pytest.raises(SpaceMismatchError, match="There and back"):
        inverse_consistency(there, there, grid)


def test_dice() -> None:
    first = torch.tensor([1, 1, 1, 0, 2, 2])
    second = torch.tensor([1, 1, 0, 0, 2, 3])
    assert dice(first == 1, second == 1) == pytest.approx(0.8)
    assert dice_of_labels(first, second) == pytest.approx({1: 0.8, 2: 2 / 3, 3: 0.0})
    assert dice(torch.zeros(3).bool(), torch.zeros(3).bool()) == 1.0
