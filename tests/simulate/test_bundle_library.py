"""The library of bundles: spacing, direction, sides, and what is held out."""

from __future__ import annotations

import pytest
import torch

from tractode.fields import Streamlines
from tractode.simulate.bundle_library import BundleLibrary, alike, equally_spaced, library, mirror_name


def arcs(n: int, side: float, seed: int = 0) -> Streamlines:
    """Quarter circles of 20 mm about (side, 0, 0), spaced unevenly, every other one stored backwards."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for index in range(n):
        angle = torch.rand(40, generator=generator).sort().values * torch.pi / 2
        angle[0], angle[-1] = 0, torch.pi / 2
        line = torch.stack([side + 0.2 * index + 0 * angle, 20 * angle.cos(), 20 * angle.sin()], -1)
        lines.append(line.flip(0) if index % 2 else line)
    return Streamlines.from_list(lines, "template")


def small(**bundles: Streamlines) -> BundleLibrary:
    return library(bundles, fewest=4)


def test_points_are_equally_spaced_and_ends_kept() -> None:
    lines = equally_spaced(arcs(3, 0.0))
    steps = lines.diff(dim=1).norm(dim=-1)
    assert torch.allclose(steps, steps.mean(1, keepdim=True), rtol=0.01)
    # Corners between points are cut, so a circle of 20 mm loses a little of its quarter of 31.4 mm.
    assert (steps.sum(1) - 31.4).abs().max() < 0.3
    assert torch.allclose(lines[0, 0], torch.tensor([0.0, 20, 0]), atol=1e-5)


def test_lines_of_a_bundle_and_of_its_mirror_partner_run_alike() -> None:
    found = small(ArcL=arcs(8, -30.0), ArcR=arcs(7, 30.0, seed=3))
    first = found.lines[:, 0]
    assert (first - first[0]).abs()[:, 1:].max() < 1e-3
    assert found.names == ("ArcL", "ArcR")
    assert found.mirror.tolist() == [1, 0]
    assert found.bundle.tolist() == [0] * 8 + [1] * 7


def test_a_given_direction_is_followed() -> None:
    lines = equally_spaced(arcs(5, 0.0))
    reference = lines[0]
    assert torch.equal(alike(lines, reference)[0], reference)
    assert torch.equal(alike(lines, reference.flip(0))[0], reference.flip(0))


def test_every_third_line_of_an_atlas_bundle_is_held_out_and_none_of_the_simulators() -> None:
    found = library({"Arc": arcs(7, 0.0)}, {"CST": arcs(6, 10.0)}, fewest=4)
    assert found.is_held_out.tolist() == [False, False, True, False, False, True, False] + [False] * 6
    assert found.is_simulated.tolist() == [False, True]


def test_thin_bundles_and_cranial_nerves_are_left_out_but_a_thin_side_is_kept() -> None:
    found = small(A_L=arcs(5, -9.0), A_R=arcs(2, 9.0), Thin=arcs(3, 0.0), CranialNerve_CNIIL=arcs(9, 0.0))
    assert found.names == ("A_L", "A_R")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("CingulumL_Parolfactory", "CingulumR_Parolfactory"),
        ("SuperiorLongitudinalFasciculusR_3", "SuperiorLongitudinalFasciculusL_3"),
        ("DentatorubrothalamicTractlr", "DentatorubrothalamicTractrl"),
        ("CSTL", "CSTR"),
        ("CorpusCallosum_Tapetum", "CorpusCallosum_Tapetum"),
    ],
)
def test_mirror_names(name: str, other: str) -> None:
    assert mirror_name(name, [name, other]) == other
    assert mirror_name(name, [name]) == name


def test_the_hash_tells_libraries_apart() -> None:
    one, same, other = small(A=arcs(6, 0.0)), small(A=arcs(6, 0.0)), small(A=arcs(6, 0.0, seed=1))
    assert one.hash() == same.hash() != other.hash()
