"""Namer and prior: answers that do not depend on what stands beside a line, doubt that becomes "other", a Gaussian that comes back."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import UsageError
from tractode.generative.bundle_prior import BundlePrior
from tractode.generative.naming import BundleNamer

NAMES = ("Left", "Right")


@pytest.fixture(scope="module")
def namer() -> BundleNamer:
    torch.manual_seed(0)
    return BundleNamer(NAMES, 6, width=16).eval().requires_grad_(False)


def test_probabilities_add_up_and_do_not_depend_on_the_other_lines(namer: BundleNamer) -> None:
    latents = torch.randn(5000, 6, generator=torch.Generator().manual_seed(1))
    whole = namer.probabilities(latents)
    assert torch.allclose(whole.sum(1), torch.ones(5000))
    assert torch.equal(namer.probabilities(latents[:7]), whole[:7])
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(namer.probabilities(latents[order]), whole[order])
    assert namer.probabilities(latents[:0]).shape == (0, 3)


def test_a_doubtful_bundle_is_other_with_what_all_the_rest_have(namer: BundleNamer) -> None:
    latents = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    probability = namer.probabilities(latents)
    index, stated = namer.named(latents, least=0.4)
    best = probability.max(1)
    doubtful = (best.values < 0.4) & (best.indices < 2)
    assert bool(doubtful.any())
    assert bool((~doubtful).any())
    assert bool((index[doubtful] == 2).all())
    assert torch.allclose(stated[doubtful], 1 - best.values[doubtful])
    assert torch.equal(index[~doubtful], best.indices[~doubtful])


def test_a_higher_temperature_doubts_more(namer: BundleNamer) -> None:
    latents = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    sure = namer.probabilities(latents).amax(1)
    other = BundleNamer.from_settings(namer.settings())
    other.load_state_dict(namer.state_dict())
    other.temperature.fill_(4.0)
    assert bool((other.probabilities(latents).amax(1) < sure).all())
    other.temperature.fill_(1.0)
    assert torch.equal(other.probabilities(latents).amax(1), sure)


def test_a_gaussian_bundle_comes_back_and_parts_do_not_mix_directions() -> None:
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(5, 2, generator=g)
    latents = torch.randn(4000, 2, generator=g) @ factor.mT + 3.0
    along = torch.linspace(0, 60, 31)[:, None] * torch.tensor([0.0, 1.0, 0.0])
    lines = along.expand(4000, -1, -1).clone()
    back = torch.arange(4000) % 4 == 0
    latents[back] -= 100.0
    lines[back] = lines[back].flip(1)
    label = torch.zeros(4000, dtype=torch.long)
    label[3900:] = 1
    prior = BundlePrior.fit(latents, label, NAMES, lines, rank=2)
    drawn = prior.sample("Left", 6000, torch.Generator().manual_seed(1))
    low = drawn.mean(1) < -50
    assert float(low.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(drawn[:, 0].max()) < 20
    assert not bool(((drawn.mean(1) > -80) & (drawn.mean(1) < -20)).any())
    wanted = torch.cov(latents[:3900][~back[:3900]].mT)
    assert torch.allclose(torch.cov(drawn[~low].mT), wanted, atol=0.12 * float(wanted.diagonal().max()))
    again = BundlePrior.from_settings(prior.settings())
    again.load_state_dict(prior.state_dict())
    assert torch.equal(
        again.sample("Right", 5, torch.Generator().manual_seed(2)),
        prior.sample("Right", 5, torch.Generator().manual_seed(2)),
    )
    with pytest.raises(UsageError, match="No bundle is called"):
        prior.sample("Middle", 1)
