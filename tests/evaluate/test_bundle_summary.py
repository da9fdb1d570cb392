"""Summaries of bundles: sums over batches give what the whole would, whichever way lines run."""

from __future__ import annotations

import pytest
import torch

from tractode.evaluate.bundle_summary import BundleSums, latents_of


@pytest.fixture
def straight(generator: torch.Generator) -> torch.Tensor:
    """100 parallel lines of 90 mm, normally spread by 3 mm across (in two directions) about a course along y."""
    course = torch.stack([torch.full((31,), 20.0), torch.linspace(-45, 45, 31), torch.zeros(31)], 1)
    across = torch.randn(100, 1, 3, generator=generator) * torch.tensor([3.0, 0, 3.0])
    return course + across - across.mean(0)


def test_a_known_bundle(straight: torch.Tensor, generator: torch.Generator) -> None:
    turned = torch.rand(100, generator=generator) < 0.5
    lines = torch.where(turned[:, None, None], straight.flip(1), straight)
    sums = BundleSums(("one", "two", "three"), {"two": straight[0]})
    confidence = torch.linspace(0.5, 1, 100)
    for part in torch.arange(100).split(7):
        sums.add(lines[part], torch.full((len(part),), 1), torch.full((len(part),), 90.0), confidence[part])
    sums.add(lines[:3], torch.tensor([3, 3, 3]), torch.ones(3), torch.ones(3))  # other: passed over
    (found,) = sums.summaries()
    assert (found.name, found.n_lines) == ("two", 100)
    assert (found.length, found.confidence) == pytest.approx((90.0, 0.75))
    assert torch.allclose(found.course.float(), straight.mean(0), atol=1e-4)
    spread = (straight - straight.mean(0)).square().sum(-1).mean().sqrt()
    assert found.width == pytest.approx(float(spread), rel=1e-4)
    assert found.width == pytest.approx(3 * 2**0.5, rel=0.15)
    assert latents_of([found], lambda lines: lines.mean(1))[0].tolist() == pytest.approx([20, 0, 0], abs=1e-3)


def test_without_a_reference_the_first_line_says_the_way(straight: torch.Tensor) -> None:
    sums = BundleSums(("one",), {})
    sums.add(
        torch.cat([straight[:50].flip(1), straight[50:]]), torch.zeros(100).long(), torch.ones(100), torch.ones(100)
    )
    (found,) = sums.summaries()
    assert float(found.course[0, 1]) == pytest.approx(45.0)


def test_nothing_is_no_bundle() -> None:
    assert BundleSums(("one",), {}).summaries() == []
    assert latents_of([], lambda lines: lines.mean(1)).shape == (0, 3)
