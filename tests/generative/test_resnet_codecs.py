"""The five published codecs: their sizes as published, and each bottleneck against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from tractode.fields import Streamlines
from tractode.generative import CODECS
from tractode.generative.autoencoder import Rounded
from tractode.generative.bundle_groups import UNIT_MM, grouped, in_mm, lines_of, pictures, scaled, ungrouped
from tractode.generative.codebook import Codebook
from tractode.generative.resnet_codec import GroupCodec
from tractode.generative.space import SPACE
from tractode.generative.variational import Variational
from tractode.generative.vq_diff import DiffSettings, GumbelSoftmax, VqDiff
from tractode.generative.vq_ema import EmaSettings, RunningMeans
from tractode.generative.vq_vae import Nearest, VqSettings
from tractode.training.codec_recipes import PUBLISHED, paper_recipe

PLACE = (8, 16, 16)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def straight(n: int) -> Streamlines:
    """Lines along x, y mm apart."""
    ends = torch.tensor([[-30.0, 0.0, 10.0], [33.0, 0.0, 10.0]])
    return Streamlines.from_list([ends + torch.tensor([0.0, float(row), 0.0]) for row in range(n)], SPACE)


def made(model: str, recipe: str) -> GroupCodec:
    ready = paper_recipe(model, recipe)
    codec: GroupCodec = CODECS[model].untrained(ready.resnet, CODECS[model].settings_of(ready.bottleneck))
    return codec


def test_groups_are_pictures_of_lines_and_points() -> None:
    groups = grouped(straight(70))
    assert groups.shape == (2, 64, 64, 3)
    assert groups[1, 5, 0].tolist() == [-30.0, 69.0, 10.0]
    assert torch.equal(groups[1, 6:12], groups[1, :6])  # filled up by the last group's own lines
    image = pictures(groups)
    assert image.shape == (2, 3, 64, 64)
    assert float(image[0, 1, 7, 0]) == pytest.approx((7.0 + 10.0) / UNIT_MM)
    assert float(image[0, 0, 7, 63]) == pytest.approx((33.0 + 10.0) / UNIT_MM)
    torch.testing.assert_close(lines_of(image), groups)
    torch.testing.assert_close(in_mm(scaled(groups)), groups)
    back = ungrouped(groups, 70, 22, SPACE)
    torch.testing.assert_close(back[69][1], torch.tensor([-27.0, 69.0, 10.0]))


@pytest.mark.parametrize(
    ("model", "bits", "stored"), [("ae", 4096, 16384), ("vae", 5, 20), ("vq", 36, 256), ("vq_ema", 36, 256), ("vq_diff", 4096, 16384)]
)  # fmt: skip
def test_sizes_as_published(model: str, bits: float, stored: int) -> None:
    codec = made(model, "faithful")
    assert codec.bits_per_streamline == bits
    n_trunk = sum(p.numel() for part in (codec.network.encoder, codec.network.decoder) for p in part.parameters())
    assert n_trunk == pytest.approx(0.65e6, rel=0.02)
    codes = codec.encode(straight(64))
    assert codes.values.shape == (1, stored)
    assert codec.is_deterministic == (model != "vq_diff")


@pytest.mark.parametrize("model", PUBLISHED)
def test_corrected_codecs_are_discrete_and_of_one_rate(model: str) -> None:
    codec = made(model, "corrected")
    assert codec.is_discrete
    assert codec.bits_per_streamline == 160


def test_rounding_is_to_the_nearest_level_with_the_gradient_straight_through() -> None:
    rounded = Rounded(8, 3)
    latents = random(2, *PLACE).requires_grad_()
    seen, added = rounded.squeeze(latents, torch.Generator())
    assert float(added) == 0
    levels = torch.linspace(-1, 1, 8)
    nearest = levels[(latents.detach().tanh()[..., None] - levels).abs().argmin(-1)]
    torch.testing.assert_close(seen.detach(), nearest)
    torch.testing.assert_close(rounded.restore(rounded.codes(latents.detach())), nearest)
    seen.sum().backward()
    torch.testing.assert_close(latents.grad, 1 - latents.detach().tanh().square())


def test_variational_divergence_and_rounding() -> None:
    settings = CODECS["vae"].settings_of({"kept": 3, "bits": 8, "divergence": 1.0})
    bottleneck = Variational(settings, 8)
    latents = random(4, *PLACE)
    mean, log_variance = bottleneck.down(latents).detach().chunk(2, dim=1)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1).mean()
    for step in range(300):
        _, added = bottleneck.squeeze(latents, torch.Generator().manual_seed(step))
    assert float(added.detach()) == pytest.approx(float(expected), rel=1e-4)
    kept = bottleneck.values(bottleneck.codes(latents.detach()))
    step_mm = 8 * bottleneck.deviation.amax() / 255
    inside = (mean - bottleneck.mean.reshape(1, -1, 1, 1)).abs() < 4 * bottleneck.deviation.reshape(1, -1, 1, 1)
    assert float((kept - mean)[inside].abs().max()) < 0.51 * float(step_mm)


@pytest.mark.parametrize("bottleneck", [Nearest(VqSettings(16, 2), 8), RunningMeans(EmaSettings(16, 2), 8)])
def test_codes_are_the_nearest_entries(bottleneck: Codebook) -> None:
    with torch.no_grad():
        bottleneck.entries.copy_(random(2, 16, 4, seed=1))
    latents = random(3, *PLACE)
    torch.testing.assert_close(bottleneck.pictured(bottleneck.rows(latents)), latents)
    expected = torch.stack(
        [torch.cdist(a, b).argmin(-1) for a, b in zip(bottleneck.rows(latents), bottleneck.entries, strict=True)]
    )
    codes = bottleneck.codes(latents)
    assert torch.equal(codes.reshape(3, 2, 256)[1, 1].long(), expected.reshape(2, 3, 256)[1, 1])
    restored = bottleneck.restore(codes)
    assert torch.equal(bottleneck.codes(restored), codes)
    assert bottleneck.bits == 256 * 2 * 4


def test_vq_passes_the_gradient_and_moves_entries_to_their_latents() -> None:
    bottleneck = Nearest(VqSettings(8, 1, revives=False), 8)
    latents = random(2, *PLACE).requires_grad_()
    seen, added = bottleneck.squeeze(latents, torch.Generator())
    torch.testing.assert_close(seen, bottleneck.restore(bottleneck.codes(latents.detach())))
    torch.testing.assert_close(added, 1.25 * functional.mse_loss(seen.detach(), latents))
    (gradient,) = torch.autograd.grad(seen.sum(), latents, retain_graph=True)
    torch.testing.assert_close(gradient, torch.ones_like(gradient))
    added.backward()
    assert bottleneck.entries.grad is not None
    assert float(bottleneck.entries.grad.abs().sum()) > 0


def test_running_means_come_to_the_means_of_what_chose_them() -> None:
    bottleneck = RunningMeans(EmaSettings(2, 1, revives=False), 8)
    bottleneck.entries.copy_(torch.stack([torch.full((8,), -1.0), torch.ones(8)])[None])
    latents = torch.where(torch.arange(16) < 4, -3.0, 5.0).expand(1, 8, 16, 16).contiguous()
    for _ in range(900):
        bottleneck.squeeze(latents, torch.Generator())
    torch.testing.assert_close(bottleneck.entries[0, :, 0], torch.tensor([-3.0, 5.0]), atol=1e-3, rtol=0)


def test_entries_that_nothing_chooses_are_moved_to_the_data() -> None:
    bottleneck = Nearest(VqSettings(32, 2), 8)
    far = 50 + random(4, *PLACE)
    for step in range(3):
        bottleneck.squeeze(far, torch.Generator().manual_seed(step))
    assert len(bottleneck.codes(far).unique()) > 25


def test_gumbel_softmax_is_torchs_in_distribution() -> None:
    bottleneck = GumbelSoftmax(DiffSettings(4, 1, revives=False, temperature=0.7, is_mixture=True, chooses_from=1.0), 8)
    row = random(1, 8, 1, 1).expand(1, 8, 16, 16).contiguous() * 0.1
    with torch.no_grad():
        bottleneck.entries.copy_(0.3 * random(1, 4, 8, seed=3))
        ours = torch.cat([bottleneck.weights(row)[0] for _ in range(20)])
    logits = -bottleneck.squared_distance(bottleneck.rows(row))[0].detach()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = functional.gumbel_softmax(logits.repeat(20, 1), tau=0.7)
    for power in (1, 2):
        torch.testing.assert_close(ours.pow(power).mean(0), theirs.pow(power).mean(0), atol=0.02, rtol=0)


def test_vq_diff_as_published_chooses_nothing_and_never_says_the_same_twice() -> None:
    codec = made("vq_diff", "faithful")
    lines = straight(64)
    assert isinstance(codec, VqDiff)
    assert not torch.equal(codec.encode(lines).values, codec.encode(lines).values)
    chosen = codec.chosen()
    assert chosen.is_discrete
    assert chosen.bits_per_streamline == 36
    assert torch.equal(chosen.encode(lines).values, chosen.encode(lines).values)


def test_vq_diff_chooses_in_the_end_and_its_gradient_reaches_entries_and_latents() -> None:
    bottleneck = GumbelSoftmax(DiffSettings(16, 2, revives=False, last_temperature=0.5), 8)
    latents = random(2, *PLACE).requires_grad_()
    early = bottleneck.squeeze(latents, torch.Generator().manual_seed(0))[0].detach()
    decoded = bottleneck.restore(bottleneck.codes(latents.detach())).detach()
    assert float((early - decoded).abs().mean()) > 0.1
    bottleneck.share.fill_(0.9)
    late, _ = bottleneck.squeeze(latents, torch.Generator().manual_seed(0))
    torch.testing.assert_close(late.detach(), decoded, atol=1e-5, rtol=1e-5)
    late.square().sum().backward()
    assert bottleneck.entries.grad is not None
    assert latents.grad is not None
    assert float(bottleneck.entries.grad.abs().sum()) > 0
    assert math.isfinite(float(latents.grad.abs().sum()))
