"""Random lines: those of the library where nothing is varied, labels that follow the mirror, and lines of no bundle that are far."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tractode.fields import Streamlines
from tractode.fields.line_shape import runs_back
from tractode.simulate.bundle_library import BundleLibrary, library
from tractode.simulate.bundle_variation import NO_VARIATION
from tractode.simulate.line_samples import LineSamples, LineSampleSettings, distance_to, false_lines, misaligned, spaced

PLAIN = LineSampleSettings(
    variation=replace(NO_VARIATION, lines="training"),
    mirrored=0.0, mixed=0.0, misaligned=0.0, cut=0.0, waver_mm=0.0, other=0.0, simulated=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def bundles() -> BundleLibrary:
    """A straight bundle on each side, one across the midline, and one of the simulator's."""

    def bundle(start: tuple[float, float, float], end: tuple[float, float, float]) -> Streamlines:
        shifts = [(a, b, c) for a in (-2.0, 0.0, 2.0) for b in (-2.0, 0.0, 2.0) for c in (-2.0, 2.0)]
        along = torch.linspace(0, 1, 12)[:, None]
        line = torch.lerp(torch.tensor(start).float(), torch.tensor(end).float(), along)
        return Streamlines.from_list([line + torch.tensor(shift) for shift in shifts], "template")

    atlas = {
        "TractL": bundle((-30, -50, 0), (-30, 40, 10)),
        "TractR": bundle((30, -50, 0), (30, 40, 10)),
        "Across": bundle((-30, -70, 0), (30, -70, 20)),
    }
    return library(atlas, {"course": bundle((-20, 0, -40), (-25, 0, 50))})


def test_without_variation_lines_of_the_library_come_back_and_none_that_is_held_out(bundles: BundleLibrary) -> None:
    samples = LineSamples(bundles, PLAIN)
    lines, label = samples.draw(300, torch.Generator().manual_seed(0))
    free = ~bundles.is_held_out & ~bundles.is_simulated[bundles.bundle]
    found = torch.cdist(lines.flatten(1), bundles.lines[free].flatten(1)).min(1)
    turned = torch.cdist(lines.flip(1).flatten(1), bundles.lines[free].flatten(1)).min(1)
    assert float(torch.minimum(found.values, turned.values).max()) < 1e-3
    nearest = torch.where(found.values < turned.values, found.indices, turned.indices)
    assert torch.equal(bundles.bundle[free][nearest], label)
    assert not bool(runs_back(lines).any())


def test_a_mirrored_line_bears_the_name_of_the_other_side(bundles: BundleLibrary) -> None:
    samples = LineSamples(bundles, replace(PLAIN, mirrored=0.5))
    lines, label = samples.draw(400, torch.Generator().manual_seed(1))
    side = lines[:, :, 0].mean(1)
    assert samples.names == ("TractL", "TractR", "Across")
    assert bool((side[label == 0] < -20).all())
    assert bool((side[label == 1] > 20).all())
    assert bool((side[label == 2].abs() < 20).all())


def test_a_draw_depends_on_its_generator_only(bundles: BundleLibrary) -> None:
    samples = LineSamples(bundles, LineSampleSettings())
    first, label = samples.draw(64, torch.Generator().manual_seed(5))
    samples.draw(10, torch.Generator().manual_seed(6))
    again, same = samples.draw(64, torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    assert torch.equal(label, same)
    assert not torch.equal(first, samples.draw(64, torch.Generator().manual_seed(6))[0])


def test_shares_are_those_of_the_settings(bundles: BundleLibrary) -> None:
    false = false_lines(bundles, 400, torch.Generator().manual_seed(2))
    samples = LineSamples(bundles, LineSampleSettings(other=0.25, simulated=0.1, evenness=1.0), false)
    _, label = samples.draw(4000, torch.Generator().manual_seed(3))
    share = torch.bincount(label, minlength=4) / len(label)
    assert float(share[3]) == pytest.approx(0.35)
    assert all(abs(float(s) - 0.65 / 3) < 0.03 for s in share[:3])


def test_lines_of_no_bundle_are_far_from_every_bundle(bundles: BundleLibrary) -> None:
    false = false_lines(bundles, 400, torch.Generator().manual_seed(2), least_mm=12.0)
    atlas = bundles.lines[~bundles.is_simulated[bundles.bundle]]
    assert len(false) > 100
    assert float(distance_to(false, atlas).min()) > 12.0
    assert float(distance_to(atlas.flip(1)[:10], atlas).max()) < 0.01


def test_points_are_equally_spaced_between_the_given_shares() -> None:
    angle = torch.linspace(0, math.pi, 31) ** 2 / math.pi
    line = 40 * torch.stack([angle.cos(), angle.sin(), torch.zeros(31)], -1)[None]
    cut = spaced(line, torch.tensor([0.25]), torch.tensor([0.75]))
    step = cut.diff(dim=1).norm(dim=-1)
    assert float(step.std() / step.mean()) < 0.02
    assert float(step.sum()) == pytest.approx(20 * math.pi, rel=0.01)
    assert torch.allclose(cut[0, 0], torch.tensor([28.28, 28.28, 0.0]), atol=0.1)


def test_misalignment_has_the_size_that_is_asked_for() -> None:
    lines = torch.randn(4000, 1, 3, generator=torch.Generator().manual_seed(0)).expand(-1, 31, -1) * 30
    settings = replace(PLAIN, misaligned=1.0, rotation_deg=0.0, scale=0.0, translation_mm=4.0)
    moved = misaligned(lines, settings, torch.Generator().manual_seed(1)) - lines
    assert float(moved[:, 0].std()) == pytest.approx(4.0, rel=0.03)
    turned = misaligned(
        lines, replace(settings, translation_mm=0.0, rotation_deg=5.0), torch.Generator().manual_seed(1)
    )
    about = torch.tensor([0.0, -18.0, 10.0])
    before, after = (lines - about)[:, 0].norm(dim=1), (turned - about)[:, 0].norm(dim=1)
    assert float((after / before - 1).abs().max()) < 5e-3
