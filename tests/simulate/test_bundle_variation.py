"""Variation between persons: none where none is asked for, the amounts that are asked for, and what may exist."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tractode.fields import ImageGrid, Streamlines
from tractode.simulate.bundle_library import BundleLibrary, library
from tractode.simulate.bundle_variation import NO_VARIATION, VariationSettings, displaced, residual_warp, vary


@pytest.fixture(scope="module")
def bundles() -> BundleLibrary:
    """Forty straight bundles of nine lines, 3 mm apart, and one of the simulator's."""
    along = torch.linspace(-30, 30, 31)

    def bundle(k: int) -> Streamlines:
        y, z = 12.0 * (k % 7) - 36, 12.0 * (k // 7) - 30
        lines = [
            torch.stack([along, torch.full_like(along, y + 3 * a), torch.full_like(along, z + 3 * b)], -1)
            for a in (-1, 0, 1)
            for b in (-1, 0, 1)
        ]
        return Streamlines.from_list(lines, "template")

    return library({f"B{k:02d}": bundle(k) for k in range(40)}, {"course": bundle(41)}, fewest=4)


@pytest.fixture(scope="module")
def template() -> ImageGrid:
    affine = torch.eye(4, dtype=torch.float64) * 4
    affine[:3, 3], affine[3, 3] = torch.tensor([-80.0, -80, -80]), 1
    return ImageGrid((40, 40, 40), affine, "template")


def test_without_variation_the_library_comes_back(
    bundles: BundleLibrary, template: ImageGrid, generator: torch.Generator
) -> None:
    person = vary(bundles, template, generator, NO_VARIATION)
    assert torch.allclose(person.lines, bundles.lines, atol=1e-4)
    assert bool(person.present.all())
    assert bool(person.kept.all())


def test_training_subjects_never_hold_a_held_out_line_and_test_subjects_no_other(
    bundles: BundleLibrary, template: ImageGrid, generator: torch.Generator
) -> None:
    everything = replace(NO_VARIATION, lines="training")
    assert not bool((vary(bundles, template, generator, everything).kept & bundles.is_held_out).any())
    held_out = vary(bundles, template, generator, replace(everything, lines="held-out")).kept
    of_atlas = ~bundles.is_simulated[bundles.bundle]
    assert torch.equal(held_out[of_atlas], bundles.is_held_out[of_atlas])


def test_presence_density_and_source_follow_the_settings(
    bundles: BundleLibrary, template: ImageGrid, generator: torch.Generator
) -> None:
    settings = VariationSettings(sources=(1.0, 0.0, 0.0), shares=(0.5, 0.5), fewest=1, lines="all", presence=0.7)
    people = [vary(bundles, template, generator, settings) for _ in range(10)]
    present = torch.stack([person.present for person in people]).float()
    assert not bool(present[:, -1].any())
    assert abs(float(present[:, :-1].mean()) - 0.7) < 0.07
    for person in people[:2]:
        counts = torch.bincount(bundles.bundle, person.kept.float(), minlength=len(bundles.names))
        assert set(counts[person.present].tolist()) == {4.0}
        assert not bool(counts[~person.present].any())
    only_courses = replace(settings, sources=(0.0, 1.0, 0.0), presence=1.0)
    assert vary(bundles, template, generator, only_courses).present.nonzero().ravel().tolist() == [40]


def test_a_shift_moves_each_bundle_as_a_whole_and_by_the_amount_asked(
    bundles: BundleLibrary, generator: torch.Generator
) -> None:
    moved = displaced(bundles, generator, replace(NO_VARIATION, shift_mm=2.5)) - bundles.lines
    each = moved[::9]
    assert torch.allclose(moved, each.repeat_interleave(9, 0)[:, :1].expand_as(moved), atol=1e-4)
    assert abs(float(each[:, 0].std()) - 2.5) < 0.35


def test_a_bend_varies_along_a_bundle_smoothly_and_by_the_amount_asked(
    bundles: BundleLibrary, generator: torch.Generator
) -> None:
    moved = displaced(bundles, generator, replace(NO_VARIATION, bend_mm=2.0)) - bundles.lines
    assert abs(float(moved.square().mean().sqrt()) - 2.0) < 0.5
    slope = moved.diff(dim=1).norm(dim=-1) / bundles.lines.diff(dim=1).norm(dim=-1)
    # A wave of amplitude a and length λ has the slope 2πa/λ at most: at the shortest length, 0.31 of 2 mm.
    assert float(slope.quantile(0.9)) < 1.0
    assert float((moved[:, 0] - moved[:, -1]).norm(dim=-1).mean()) > 1


def test_width_scales_about_the_middle(bundles: BundleLibrary, generator: torch.Generator) -> None:
    lines = displaced(bundles, generator, replace(NO_VARIATION, width=0.3)).unflatten(0, (41, 9))
    before = bundles.lines.unflatten(0, (41, 9))
    assert torch.allclose(lines.mean(1), before.mean(1), atol=1e-3)
    ratio = (lines - lines.mean(1, keepdim=True)).norm(dim=-1).sum((1, 2)) / (
        before - before.mean(1, keepdim=True)
    ).norm(dim=-1).sum((1, 2))
    assert abs(float(ratio.log().std()) - 0.3) < 0.1


def test_the_residual_is_smooth_of_the_size_asked_and_can_be_undone(
    template: ImageGrid, generator: torch.Generator
) -> None:
    settings = replace(NO_VARIATION, residual_mm=(2.0, 2.0))
    warp = residual_warp(template, generator, settings)
    points = torch.rand(2000, 3, generator=generator) * 100 - 50
    moved = warp.map(points)
    assert abs(float((moved - points).square().sum(-1).mean().sqrt()) - 2.0) < 0.7
    assert (warp.inverse().map(moved) - points).norm(dim=-1).max() < 0.01


def test_the_same_generator_gives_the_same_person(bundles: BundleLibrary, template: ImageGrid) -> None:
    one, two = (vary(bundles, template, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one.lines, two.lines)
    assert torch.equal(one.kept, two.kept)
