"""Left is left: the pictures' sides come from the world, whatever the storage of the grid."""

from __future__ import annotations

import pytest
import torch

from tractode.fields import Image
from tractode.reports.planes import AXIAL, CORONAL, SAGITTAL, VIEWS, Box, Plane, View, box_of, cut, positions, signed

from .conftest import CENTRE, HALF, head_grid, lateralised

STORAGE = [("RAS", 0.0), ("LAS", 0.0), ("PSR", 0.0), ("LPI", 12.0), ("PSR", -17.0), ("RAS", 25.0)]


@pytest.mark.parametrize(("storage", "oblique"), STORAGE)
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_block_on_the_right_front_top_is_drawn_beside_those_letters(storage: str, oblique: float, view: View) -> None:
    image, mask = lateralised(head_grid(storage, oblique))
    box = box_of(image, mask)
    through = {AXIAL: 12.0, CORONAL: 14.0, SAGITTAL: 18.0}[view] + float(CENTRE[view.normal])
    picture = cut(image, Plane(view, through, box), 1.0)[..., 0]
    rows, columns = (picture > 0.8).nonzero().to(torch.float64).mean(0).tolist()
    toward = {"R": (18.0, 0), "A": (14.0, 1), "S": (12.0, 2)}
    distance, axis = toward[view.right]
    assert columns == pytest.approx(float(CENTRE[axis]) + distance - box.lower[axis], abs=2.5)
    distance, axis = toward[view.top]
    assert rows == pytest.approx(box.upper[axis] - (float(CENTRE[axis]) + distance), abs=2.5)


def test_the_letters_of_each_view_name_the_ends_of_its_axes() -> None:
    ends = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}
    for view in VIEWS:
        assert (ends[view.left], ends[view.right]) == ((view.across, -1), (view.across, 1))
        assert (ends[view.bottom], ends[view.top]) == ((view.up, -1), (view.up, 1))
        assert {view.across, view.up, view.normal} == {0, 1, 2}


def test_a_plane_reads_the_world_coordinate_of_each_of_its_pixels() -> None:
    grid = head_grid("PIL", 14.0)
    coordinates = Image(grid, grid.centres().permute(3, 0, 1, 2).contiguous())
    plane = Plane(SAGITTAL, 5.0, Box((0.0, -20.0, 10.0), (10.0, 5.0, 40.0)))
    assert torch.allclose(cut(coordinates, plane, 2.5), plane.points(2.5).to(torch.float32), atol=1e-3)


def test_the_box_holds_the_mask_and_no_more_than_its_margin() -> None:
    image, mask = lateralised(head_grid("LAS", 20.0))
    box = box_of(image, mask, margin=6.0)
    for axis in range(3):
        assert float(CENTRE[axis]) - HALF - 6.1 <= box.lower[axis] <= float(CENTRE[axis]) - HALF + 6.0
        assert float(CENTRE[axis]) + HALF - 6.0 <= box.upper[axis] <= float(CENTRE[axis]) + HALF + 6.1


def test_an_empty_mask_shows_the_whole_field_of_view() -> None:
    grid = head_grid("RAS")
    empty = Image(grid, torch.zeros(1, 24, 24, 24, dtype=torch.bool))
    assert box_of(empty, empty).size == pytest.approx((96.0, 108.0, 120.0))


def test_positions_are_inside_ascending_and_even() -> None:
    found = positions(Box((-10.0, -20.0, -30.0), (10.0, 20.0, 33.0)), AXIAL, 6)
    assert list(found) == [-21.0, -12.0, -3.0, 6.0, 15.0, 24.0]


def test_signed_numbers() -> None:
    assert [signed(value) for value in (-12.4, -0.3, 0.4, 7.6)] == ["−12", "0", "0", "+8"]
