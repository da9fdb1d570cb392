"""Naming from codes: learned on straight bundles, right on lines that nobody learned from; labels of tracked lines."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tractode.fields import Streamlines
from tractode.simulate.bundle_library import BundleLibrary, library
from tractode.simulate.bundle_variation import VariationSettings
from tractode.simulate.line_samples import LineSamples, LineSampleSettings, false_lines, one_way, spaced
from tractode.simulate.tract_subject import TractSubject
from tractode.training.bundle_prior import fit_prior
from tractode.training.loop import LoopSettings
from tractode.training.naming import NamingSettings, best_temperature, no_tracked_lines, train_namer
from tractode.training.tracked_lines import LEFT_OUT, labelled


class Ends:
    """A codec that keeps both ends and the middle of a line to 2 mm."""

    def latents(self, lines: Tensor) -> Tensor:
        return lines[:, [0, 15, 30]].flatten(1)

    def quantise(self, latents: Tensor) -> Tensor:
        return (latents / 2).round().long()

    def dequantise(self, codes: Tensor) -> Tensor:
        return codes * 2.0


@pytest.fixture(scope="module")
def bundles() -> BundleLibrary:
    def bundle(start: tuple[float, float, float], end: tuple[float, float, float]) -> Streamlines:
        shifts = [(a, b, c) for a in (-2.0, 0.0, 2.0) for b in (-2.0, 0.0, 2.0) for c in (-2.0, 0.0, 2.0)]
        along = torch.linspace(0, 1, 12)[:, None]
        line = torch.lerp(torch.tensor(start), torch.tensor(end), along)
        return Streamlines.from_list([line + torch.tensor(shift) for shift in shifts], "template")

    return library(
        {
            "TractL": bundle((-30.0, -50.0, 0.0), (-30.0, 40.0, 10.0)),
            "TractR": bundle((30.0, -50.0, 0.0), (30.0, 40.0, 10.0)),
            "Across": bundle((-30.0, -70.0, 0.0), (30.0, -70.0, 20.0)),
        },
        {"course": bundle((-20.0, 0.0, -40.0), (-25.0, 0.0, 50.0))},
    )


def test_held_out_lines_are_named_and_false_ones_are_not(bundles: BundleLibrary) -> None:
    plain = LineSampleSettings(
        variation=VariationSettings(residual_mm=(0.0, 1.0)), evenness=1.0, other=0.3, simulated=0.0, misaligned=0.2
    )
    settings = NamingSettings(n_lines=256, n_false=2000, calibration_lines=512, width=32, samples=plain)
    loop = LoopSettings(steps=100, learning_rate=6e-3, warm_up=10, average=0.9)
    namer = train_namer(Ends(), bundles, no_tracked_lines(), settings, loop)
    assert 0.25 < float(namer.temperature) < 4
    held = replace(plain, variation=replace(plain.variation, lines="held-out"))
    false = false_lines(bundles, 1000, torch.Generator().manual_seed(9), "held-out")
    lines, label = LineSamples(bundles, held, false).draw(600, torch.Generator().manual_seed(10))
    codec = Ends()
    index, stated = namer.named(codec.dequantise(codec.quantise(codec.latents(lines))))
    right = index == label
    assert all(float(right[label == k].float().mean()) > 0.9 for k in range(4))
    assert float(stated.mean()) == pytest.approx(float(right.float().mean()), abs=0.06)


def test_the_temperature_of_logits_that_are_too_sure_is_found() -> None:
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=g, dtype=torch.float64)
    label = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    assert best_temperature(3 * logits, label) == pytest.approx(3.0, rel=0.1)
    assert best_temperature(logits, label) == pytest.approx(1.0, rel=0.1)


def test_tracked_lines_bear_the_bundle_that_they_run_along(bundles: BundleLibrary) -> None:
    present = torch.tensor([True, False, True, True])
    subject = TractSubject(torch.zeros(28, 2, 2, 2), bundles.lines, present, torch.ones_like(bundles.is_held_out))
    left, right, across, course = (bundles.lines[(bundles.bundle == k) & ~bundles.is_held_out][:1] for k in range(4))
    up = torch.tensor([0.0, 0.0, 1.0])
    short = spaced(left, torch.tensor([0.28]), torch.tensor([1.0]))
    lines = one_way(torch.cat([left, short, left + 9 * up, left + 30 * up, right, across.flip(1), course]))
    assert labelled(lines, subject, bundles).tolist() == [0, 0, LEFT_OUT, 3, LEFT_OUT, 2, LEFT_OUT]


def test_new_lines_of_a_bundle_lie_where_it_lies(bundles: BundleLibrary) -> None:
    class Whole(Ends):
        def latents(self, lines: Tensor) -> Tensor:
            return lines.flatten(1)

    prior = fit_prior(Whole(), bundles, n_per_bundle=150, rank=4)
    drawn = prior.sample("TractL", 200, torch.Generator().manual_seed(0)).reshape(200, 31, 3)
    true = bundles.lines[(bundles.bundle == 0) & ~bundles.is_held_out]
    assert float((drawn.mean(0) - true.mean(0)).norm(dim=-1).max()) < 1.0
    assert float((drawn.std(0) - true.std(0)).abs().max()) < 1.0
    with_ends = prior.reference[0, [0, -1], 1]
    assert with_ends[0] < with_ends[1]
