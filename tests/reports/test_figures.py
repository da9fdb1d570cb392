"""Figures show what they claim: sides, colours, positions and borders by known answers."""

from __future__ import annotations

import base64
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.fields import GradientTable, Image, Streamlines
from tractode.reports import figures_glyphs, figures_gradients, figures_registration, figures_slices, figures_tractogram
from tractode.reports.canvas import ColourScale, draw_sheet, rows_sheet
from tractode.reports.planes import AXIAL, CORONAL, SAGITTAL, VIEWS, Plane, View, box_of

from .conftest import CENTRE, head_grid, lateralised, one_direction, pixels


@pytest.mark.parametrize(("storage", "oblique"), [("LAS", 0.0), ("RAS", 0.0), ("PSR", 0.0), ("LPI", 15.0)])
def test_a_mosaic_shows_the_right_side_next_to_the_letter_R(storage: str, oblique: float) -> None:
    """Measured in the encoded picture: bright pixels lie between the tile's middle and the letter R, and below the A."""
    image, mask = lateralised(head_grid(storage, oblique))
    item = figures_slices.mosaic(
        image, mask, desc="b0", section="dwi", title="b0", caption="x", scale=ColourScale(0.0, 1.0, "a"), outlined=False
    )
    sheet = rows_sheet(box_of(image, mask))
    figure, axes = draw_sheet(sheet, sheet.blank(), ColourScale(0.0, 1.0, "a"))
    letters = {text.get_text(): text.get_position() for text in reversed(axes.texts)}
    bright = pixels(item.body)[4:, : sheet.width].min(-1) > 200
    axial = [tile for tile in sheet.tiles if tile.plane.view is AXIAL]
    tile = min(axial, key=lambda t: abs(t.plane.position - (float(CENTRE[2]) + 12)))
    column = np.argwhere(bright[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width])[:, 1].mean()
    first = axial[0]
    assert letters["R"][0] > first.x + first.width / 2 > letters["L"][0]
    assert column > 0.6 * tile.width
    assert figure.get_size_inches()[0] * 100 > sheet.width  # room for the colour bar


def test_a_mosaic_prints_the_position_of_every_slice() -> None:
    image, mask = lateralised(head_grid("LAS", 10.0))
    sheet = rows_sheet(box_of(image, mask))
    _, axes = draw_sheet(sheet, sheet.blank())
    printed = {text.get_text() for text in axes.texts}
    assert {f"{tile.plane.label()} mm" for tile in sheet.tiles} <= printed
    assert {"L", "R", "A", "P", "S", "I"} <= printed


def test_a_framed_picture_has_the_scales_colours_inside_its_grid_and_black_beyond() -> None:
    image = Image(head_grid("LAS", 15.0), torch.ones(1, *head_grid("LAS", 15.0).shape))
    sheet, scale = rows_sheet(box_of(image, None)), ColourScale(0.5, 1.5, "factor", "RdBu_r")
    canvas = figures_slices.paint(sheet, image, scale, framed=True).reshape(-1, 3)
    middle = scale(np.ones((1, 1)))[0, 0]
    assert np.all(np.isclose(canvas, middle, atol=1e-2).all(-1) | (canvas == 0).all(-1))
    assert (canvas > 0).any()


def test_tiles_lie_inside_their_sheet_and_apart(oblique_affine: torch.Tensor) -> None:
    from tractode.fields import ImageGrid

    for shape in ((40, 40, 5), (9, 50, 40), (30, 8, 60)):
        grid = ImageGrid(shape, oblique_affine, "x")
        box = box_of(Image(grid, torch.ones(1, *shape)))
        tiles = rows_sheet(box).tiles
        sheet = rows_sheet(box)
        for tile in tiles:
            assert tile.x >= 0
            assert tile.x + tile.width <= sheet.width
            assert tile.y + tile.height <= sheet.height
        for a, b in pairwise(tiles):
            assert a.plane.view is not b.plane.view or a.x + a.width <= b.x


@pytest.mark.parametrize(("direction", "channel"), [((1, 0, 0), 0), ((0, -1, 0), 1), ((0, 0, 1), 2)])
def test_colour_fa_paints_left_right_red_front_back_green_up_down_blue(
    direction: tuple[float, ...], channel: int
) -> None:
    grid = head_grid("PSR", 15.0)
    _, mask = lateralised(grid)
    fa = Image(grid, mask.values.to(torch.float32) * 0.6)
    v1 = Image(grid, torch.tensor(direction, dtype=torch.float32)[:, None, None, None].expand(3, *grid.shape).clone())
    picture = pixels(figures_slices.colour_fa(fa, v1, mask).body)
    strong = picture.max(-1) > 180
    dominant = picture[strong].argmax(-1)
    assert (dominant == channel).mean() > 0.95  # the letters and the colour key are the rest


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_glyph_is_long_along_its_direction_and_has_its_colour(view: View) -> None:
    from tractode.reports.glyph_raster import render

    grid = head_grid("RAS")
    for axis in (view.across, view.up):
        direction = [0.0, 0.0, 0.0]
        direction[axis] = 1.0
        coefficients = (
            one_direction(grid, (direction[0], direction[1], direction[2])).coeffs[:, 0, 0, 0].reshape(1, 1, -1)
        )
        scale = figures_glyphs.amplitude_scale(one_direction(grid, (1.0, 0.0, 0.0)))
        picture, cover = render(coefficients, 8, view, 1.0, scale, 64)
        rows, columns = np.argwhere(cover > 0.5).std(0)
        assert (columns > 2 * rows) if axis == view.across else (rows > 2 * columns)
        assert (picture[cover > 0.5].argmax(-1) == axis).mean() > 0.9


def test_an_oblique_glyph_leans_to_the_side_it_points_to() -> None:
    """Up and to the right in the world is up and to the right in the coronal picture."""
    from tractode.reports.glyph_raster import render

    coefficients = one_direction(head_grid("RAS"), (1.0, 0.0, 1.0)).coeffs[:, 0, 0, 0].reshape(1, 1, -1)
    _, cover = render(coefficients, 8, CORONAL, -1.0, 3.0, 64)
    row, column = np.argwhere(cover > 0.5).T
    assert np.corrcoef(row, column)[0, 1] < -0.7


def test_a_glyph_is_solid() -> None:
    from scipy.ndimage import binary_fill_holes

    from tractode.reports.glyph_raster import render

    coefficients = one_direction(head_grid("RAS"), (1.0, 0.3, 0.2)).coeffs[:, 0, 0, 0].reshape(1, 1, -1)
    _, cover = render(coefficients, 8, AXIAL, 1.0, 3.0, 96)
    solid = cover > 0.25
    assert solid.sum() > 100
    assert binary_fill_holes(solid).sum() - solid.sum() <= 0.002 * solid.sum()


def test_glyph_planes_are_three_with_letters_and_positions() -> None:
    grid = head_grid("PSR", 10.0)
    image, mask = lateralised(grid)
    items = figures_glyphs.fod_glyphs(one_direction(grid, (0, 1, 0), 4), image, mask, run="sub-1_dir-AP")
    assert [item.name for item in items] == [f"sub-1_dir-AP_desc-fod{view.name}_dwimap" for view in VIEWS]
    assert all("mm" in item.caption and item.kind == "webp" for item in items)
    assert all((pixels(item.body).argmax(-1) == 1).mean() > 0.02 for item in items)


def test_flicker_shows_both_images_in_one_layout_and_refuses_other_grids() -> None:
    fixed, mask = lateralised(head_grid("LAS", 10.0))
    moving = Image(fixed.grid, 1 - fixed.values)
    item = figures_registration.flicker(
        fixed, moving, [(mask, "#ff5252", "brain")], fixed_name="T<1>w", moving_name="b0", title="t", desc="x"
    )
    assert isinstance(item.body, str)
    first, second = (base64.b64decode(found) for found in re.findall(r"base64,([^\"]+)", item.body))
    assert pixels(first).shape == pixels(second).shape
    assert not np.array_equal(pixels(first), pixels(second))
    assert "T&lt;1&gt;w" in item.body
    assert "<1>" not in item.body
    assert "Red line: brain." in item.caption
    other, _ = lateralised(head_grid("RAS"))
    with pytest.raises(SpaceMismatchError, match="resample"):
        figures_registration.flicker(fixed, other, fixed_name="a", moving_name="b", title="t", desc="x")


def test_streamlines_on_the_right_are_drawn_on_the_right_and_in_green(lines: Streamlines) -> None:
    image, mask = lateralised(head_grid("PSR", 12.0))
    box = box_of(image, mask)
    points, directions = figures_tractogram.dense(lines, 0.5)
    plane = Plane(AXIAL, float(CENTRE[2]), box)
    picture, cover = figures_tractogram.splat(points, directions, plane, 1.0, plane.shape(1.0), box)
    columns = np.argwhere(cover > 0)[:, 1]
    assert columns.min() == pytest.approx(float(CENTRE[0]) + 20 - box.lower[0], abs=1.5)
    assert (picture[cover > 0.5].argmax(-1) == 1).all()
    whole, slabs = figures_tractogram.static_views(lines, image, mask, n_total=1000)
    assert "40 of 1,000 streamlines shown; median length 60 mm" in whole.caption
    assert "within 3 mm" in slabs.caption


def test_from_behind_the_nearer_of_two_streamlines_hides_the_other() -> None:
    """The viewer of a coronal picture stands behind, at −y; of a sagittal one on the right."""
    image, mask = lateralised(head_grid("LAS"))
    box = box_of(image, mask)
    back = torch.tensor([[-10.0, -30.0, 0.0], [10.0, -30.0, 0.0]])  # red
    front = torch.tensor([[0.0, 30.0, -10.0], [0.0, 30.0, 10.0]])  # blue
    both = Streamlines.from_list([(line + CENTRE).to(torch.float32) for line in (back, front)], "head")
    points, directions = figures_tractogram.dense(both, 0.4)
    plane = Plane(CORONAL, 0.0, box)
    picture, _ = figures_tractogram.splat(points, directions, plane, 1.0, plane.shape(1.0), box)
    row, column = int(box.upper[2] - float(CENTRE[2])), int(float(CENTRE[0]) - box.lower[0])
    centre = picture[row - 1 : row + 2, column - 1 : column + 2]
    assert centre[..., 0].max() > 0.5 * centre.max()
    assert centre[..., 0].sum() > centre[..., 2].sum()
    right = torch.tensor([[30.0, -10.0, 0.0], [30.0, 10.0, 0.0]])  # green, at the right
    left = torch.tensor([[-30.0, 0.0, -10.0], [-30.0, 0.0, 10.0]])  # blue, at the left
    both = Streamlines.from_list([(line + CENTRE).to(torch.float32) for line in (right, left)], "head")
    points, directions = figures_tractogram.dense(both, 0.4)
    plane = Plane(SAGITTAL, 0.0, box)
    picture, _ = figures_tractogram.splat(points, directions, plane, 1.0, plane.shape(1.0), box)
    column = int(float(CENTRE[1]) - box.lower[1])
    centre = picture[row - 1 : row + 2, column - 1 : column + 2]
    assert centre[..., 1].sum() > centre[..., 2].sum()


def test_the_interactive_view_carries_the_streamlines_to_a_hundredth_of_a_millimetre(lines: Streamlines) -> None:
    image, mask = lateralised(head_grid("LPI", 12.0))
    item = figures_tractogram.interactive(lines, image, mask, max_streamlines=10)
    assert isinstance(item.body, str)
    data = json.loads(re.search(r"application/json\">(.*?)</script>", item.body).group(1))
    assert len(data["counts"]) == 10
    raw = np.frombuffer(base64.b64decode(data["points"]), dtype="<i2").reshape(-1, 3)
    points = raw * data["unit"] + np.array(data["centre"])
    assert len(points) == sum(data["counts"])
    kept = lines[0].numpy()
    nearest = np.linalg.norm(kept[:, None] - points[None, : data["counts"][0]], axis=-1).min(0)
    assert nearest.max() < 0.02
    assert points[0] == pytest.approx(kept[0], abs=0.011)
    assert points[data["counts"][0] - 1] == pytest.approx(kept[-1], abs=0.011)


def test_interactive_slices_lie_where_the_image_is() -> None:
    grid = head_grid("PSR", 8.0)
    _, mask = lateralised(grid)
    image = Image(grid, (grid.centres() * torch.tensor([1.0, 2.0, 0.5])).sum(-1)[None] + 300)
    scale = figures_slices.scale_of(image, "", mask)
    item = figures_tractogram.interactive(Streamlines.from_list([], "head"), image, mask)
    assert isinstance(item.body, str)
    data = json.loads(re.search(r"application/json\">(.*?)</script>", item.body).group(1))
    for part in data["slices"]:
        values = np.frombuffer(base64.b64decode(part["pixels"]), dtype=np.uint8).reshape(part["shape"])
        for share in (0.4, 0.5, 0.6):
            row, column = int(share * part["shape"][0]), part["shape"][1] // 2
            where = np.array(part["corner"]) + row * np.array(part["down"]) + column * np.array(part["across"])
            expected = (float(where @ np.array([1.0, 2.0, 0.5])) + 300 - scale.low) / (scale.high - scale.low)
            assert values[row, column] / 255 == pytest.approx(expected, abs=0.02)
    assert "No streamline was made" in item.caption


def test_the_sphere_counts_shells_and_draws_each_direction_and_its_opposite(table: GradientTable) -> None:
    figure = figures_gradients._sphere_figure(table)
    for axes, view in zip(figure.axes[:3], VIEWS, strict=True):
        drawn = np.concatenate([np.stack(line.get_data(), -1) for line in axes.lines if line.get_marker() == "o"])
        assert len(drawn) == 2 * 12
        expected = table.bvecs[1:, [view.across, view.up]].numpy()
        for point in np.concatenate([expected, -expected]):
            assert np.linalg.norm(drawn - point, axis=-1).min() < 1e-6
    item = figures_gradients.sphere(table, {"verdict": "FAIL"}, run="sub-1")
    assert "6 directions at b = 1000 s/mm², 6 directions at b = 2000 s/mm²" in item.caption
    assert "1 volume at b = 0" in item.caption
    assert "FAIL" in item.caption


def test_the_verdict_table_escapes_what_it_shows() -> None:
    item = figures_gradients.verdict_table(
        {"verdict": "FAIL", "fix": "<script>x</script>", "scores": {"<b>": [0.123456, None, True]}}
    )
    assert isinstance(item.body, str)
    assert "<script" not in item.body
    assert "<b>" not in item.body
    assert "0.1235, —, yes" in item.body


@pytest.mark.parametrize("fill", [0.0, float("nan"), 5.0])
def test_degenerate_images_are_drawn_without_a_warning(fill: float) -> None:
    grid = head_grid("LAS")
    image = Image(grid, torch.full((1, *grid.shape), fill))
    empty = Image(grid, torch.zeros(1, *grid.shape, dtype=torch.bool))
    for mask in (None, empty, Image(grid, ~empty.values)):
        item = figures_slices.mosaic(image, mask, desc="x", section="dwi", title="x", caption="x")
        assert len(item.body) > 100


def test_figures_do_not_change_what_they_were_lent(lines: Streamlines) -> None:
    image, mask = lateralised(head_grid("LAS"))
    values, points = image.values.clone(), lines.points.clone()
    figures_slices.mosaic(image, mask, desc="x", section="dwi", title="x", caption="x")
    figures_tractogram.static_views(lines, image, mask)
    assert torch.equal(values, image.values)
    assert torch.equal(points, lines.points)
