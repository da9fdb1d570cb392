"""The folding certificate on maps whose folds are known."""

from __future__ import annotations

import pytest
import torch

from tractode.evaluate.folding import certificate, certify_positions
from tractode.evaluate.overlap import dice, dice_of_labels
from tractode.fields import Affine, ImageGrid


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


def test_dice() -> None:
    first = torch.tensor([1, 1, 1, 0, 2, 2])
    second = torch.tensor([1, 1, 0, 0, 2, 3])
    assert dice(first == 1, second == 1) == pytest.approx(0.8)
    assert dice_of_labels(first, second) == pytest.approx({1: 0.8, 2: 2 / 3, 3: 0.0})
    assert dice(torch.zeros(3).bool(), torch.zeros(3).bool()) == 1.0
