"""Lines at a known angle to a known field: angle, amplitude and share of white matter are what geometry says."""

from __future__ import annotations

import math

import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.evaluate.alignment import field_alignment, peaks_along, segments
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import reorient_fod
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.peak_field import peak_field

FIBRE = torch.tensor([0.36, 0.48, 0.8], dtype=torch.float64)


@pytest.fixture
def field(oblique_affine: torch.Tensor) -> ShField:
    grid = ImageGrid((12, 11, 10), oblique_affine, "sub-01_dwi")
    coeffs = reorient_fod.point_spread(FIBRE, 6).float()
    return ShField(grid, coeffs[:, None, None, None].expand(-1, *grid.shape).contiguous(), 6)


def straight(field: ShField, direction: torch.Tensor, counts: tuple[int, ...] = (5, 40)) -> Streamlines:
    """Lines of 8 mm around the middle, of few points and of many: length counts, points do not."""
    middle = field.grid.to_world((torch.tensor(field.grid.shape, dtype=torch.float64) - 1) / 2)
    lines = [(middle + torch.linspace(-4, 4, n)[:, None].double() * direction).float() for n in counts]
    return Streamlines.from_list(lines, field.grid.space)


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2])
def test_angle_and_amplitude_are_those_of_the_geometry(field: ShField, angle: float) -> None:
    across = torch.linalg.cross(FIBRE, torch.tensor([0.0, 0.0, 1.0]).double())
    direction = math.cos(angle) * FIBRE + math.sin(angle) * across / across.norm()
    mask = Image(field.grid, torch.ones(1, *field.grid.shape, dtype=torch.bool))
    found = field_alignment(straight(field, direction), field, peak_field(field, n_peaks=1), mask)
    assert found.angle == pytest.approx(angle, abs=0.01)
    expected = float(sh.basis(direction[None], 6)[0] @ field.coeffs[:, 0, 0, 0].double())
    assert found.amplitude == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert found.with_peaks == pytest.approx(1.0)
    assert found.n == 4 + 39


def test_directions_at_random_are_one_radian_from_one_axis(field: ShField) -> None:
    mask = Image(field.grid, torch.ones(1, *field.grid.shape, dtype=torch.bool))
    found = field_alignment(straight(field, FIBRE, (3001,)), field, peak_field(field, n_peaks=1), mask)
    assert found.angle_by_chance == pytest.approx(1.0, abs=0.03)
    assert found.amplitude_by_chance == pytest.approx(float(field.coeffs[0, 0, 0, 0]) / math.sqrt(4 * math.pi), rel=0.1)


def test_peaks_are_looked_for_where_lines_run(field: ShField) -> None:
    lines = straight(field, FIBRE)
    few, whole = peaks_along(field, [lines]), peak_field(field)
    seen = few.amplitudes[0] != 0
    assert 0 < int(seen.sum()) < 20
    assert torch.equal(few.directions[..., seen], whole.directions[..., seen])
    mask = Image(field.grid, torch.ones(1, *field.grid.shape, dtype=torch.bool))
    assert field_alignment(lines, field, few, mask) == field_alignment(lines, field, whole, mask)


def test_shares_are_of_length(field: ShField) -> None:
    half = (field.grid.centres() @ FIBRE.float() < float(segments(straight(field, FIBRE))[0].mean(0).double() @ FIBRE))[
        None
    ]
    found = field_alignment(straight(field, FIBRE), field, peak_field(field, n_peaks=1), Image(field.grid, half))
    assert found.in_white_matter == pytest.approx(0.5, abs=0.15)
    assert found.record()["n"] == found.n


def test_nothing_has_no_alignment(field: ShField) -> None:
    mask = Image(field.grid, torch.ones(1, *field.grid.shape, dtype=torch.bool))
    nothing = Streamlines.from_list([], field.grid.space)
    record = field_alignment(nothing, field, peak_field(field, n_peaks=1), mask).record()
    assert record["n"] == 0
    assert record["angle_deg"] is None
    with pytest.raises(SpaceMismatchError):
        field_alignment(Streamlines.from_list([], "elsewhere"), field, peak_field(field, n_peaks=1), mask)
