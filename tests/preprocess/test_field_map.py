"""Field maps: a known field from its phases, scanners' integers, and what cannot be read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid
from tractode.preprocess.field_map import as_radians, field_from_phase, field_from_two, filled

TIMES = (0.00492, 0.00738)


def scene(affine: Tensor) -> tuple[Image, Image]:
    """A field of −120 to 380 Hz (more than a turn at 2.46 ms) and the magnitude of a head."""
    grid = ImageGrid((26, 24, 18), affine, "fmap")
    points = grid.centres()
    middle = grid.to_world(torch.tensor([12.5, 11.5, 8.5]))
    p = points - middle
    hz = 380 * torch.exp(-0.5 * ((p - torch.tensor([0.0, 10.0, 0.0])) / 14).square().sum(-1)) - 2.5 * p[..., 0] - 40
    return Image(grid, hz[None]), Image(grid, 900.0 * (p.norm(dim=-1) < 20)[None])


def phase_of(hz: Image, time: float) -> Image:
    turns = hz.values * time
    return Image(hz.grid, 2 * math.pi * (turns - turns.round()))


def test_both_kinds_of_phases_give_the_field(oblique_affine: Tensor) -> None:
    hz, magnitude = scene(oblique_affine)
    head = magnitude.values[0] > 0
    difference = phase_of(hz, TIMES[1] - TIMES[0])
    two = field_from_two(phase_of(hz, TIMES[0]), phase_of(hz, TIMES[1]), magnitude, TIMES)
    for found in (field_from_phase(difference, magnitude, TIMES), two):
        torch.testing.assert_close(found.values[0][head], hz.values[0][head], atol=0.5, rtol=0)


def test_scanners_integers_are_turns(oblique_affine: Tensor) -> None:
    hz, _ = scene(oblique_affine)
    radians = phase_of(hz, 0.00246)
    for scale, offset in ((4096 / 2, 0.0), (4096 / 2, 2048.0)):
        stored = Image(radians.grid, (radians.values / math.pi * scale + offset).round())
        apart = as_radians(stored).values - radians.values
        assert float((apart - apart.mean()).abs().max()) < 0.01
    torch.testing.assert_close(as_radians(radians).values, radians.values)


def test_the_field_goes_on_beyond_the_head(oblique_affine: Tensor) -> None:
    hz, magnitude = scene(oblique_affine)
    weight = (magnitude.values[0] > 0).float()
    found = filled(hz.values[0], weight)
    assert torch.equal(found[weight > 0], hz.values[0][weight > 0])
    assert float(found.amax()) <= float(hz.values[0][weight > 0].amax()) + 1e-3
    assert bool((found[weight == 0] != 0).all())


def test_what_cannot_be_right_is_refused(oblique_affine: Tensor) -> None:
    hz, magnitude = scene(oblique_affine)
    with pytest.raises(InputDataError) as caught:
        field_from_phase(phase_of(hz, 0.002), magnitude, (4.92, 7.38))
    assert caught.value.id == "E-FMAP-ECHOES"
    with pytest.raises(InputDataError) as caught:
        as_radians(Image(hz.grid, 30 * torch.rand(hz.values.shape)))
    assert caught.value.id == "E-FMAP-PHASE"
