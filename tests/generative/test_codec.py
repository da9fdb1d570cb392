"""The bundle codec: exact codes, a quantiser that finds what it should, gradients from a field of orientations back to codewords."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import ImageGrid, ShField, Streamlines
from tractode.fields.line_shape import runs_back
from tractode.generative.codec import BundleCodec, _curves
from tractode.generative.codec_tables import CodecSettings, CodecTables
from tractode.generative.residual_quantiser import ResidualQuantiser
from tractode.tracking.amplitude import amplitudes
from tractode.tracking.sampling import ComponentTable


def lines_of(rows: Tensor, space: str = "MNI152NLin2009aSym") -> Streamlines:
    n, points = rows.shape[:2]
    return Streamlines(rows.flatten(0, 1), torch.arange(n + 1) * points, space)


def rows(n: int, seed: int = 3) -> Tensor:
    lines = _curves(n, torch.Generator().manual_seed(seed))
    return torch.where(runs_back(lines)[:, None, None], lines.flip(1), lines)


def test_flipped_shuffled_and_alone_a_line_has_one_code() -> None:
    codec, lines = BundleCodec.tiny(), rows(200)
    codes = codec.encode(lines_of(lines)).values
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.encode(lines_of(lines[order].flip(1))).values, codes[order])
    assert torch.equal(codec.encode(lines_of(lines[17:18])).values, codes[17:18])


def test_more_stages_come_nearer() -> None:
    codec, lines = BundleCodec.tiny(), rows(500)
    errors = []
    for stages in (1, 3, 8):
        rated = codec.with_stages(stages)
        decoded = rated.decode(rated.encode(lines_of(lines)), 31).points.reshape(-1, 31, 3)
        errors.append(float((decoded - lines).norm(dim=-1).mean()))
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]
    assert codec.with_stages(3).bits_per_streamline == 18.0
    first = codec.encode(lines_of(lines)).values
    assert torch.equal(codec.with_stages(3).encode(lines_of(lines)).values, first[:, :3])


def test_latents_keep_distances() -> None:
    """The transform is orthonormal: what the quantiser errs in the latent the line errs in mm."""
    codec, lines = BundleCodec.tiny(), rows(50)
    latents = codec.latents(lines.double())
    assert torch.allclose(codec.tables.basis.mT @ codec.tables.basis, torch.eye(20), atol=1e-5)
    between = (latents[:25] - latents[25:]).norm(dim=-1)
    apart = (lines[:25] - lines[25:]).double().flatten(1).norm(dim=-1)
    assert torch.allclose(between, apart, rtol=1e-4)


def test_a_quantiser_of_known_clusters_finds_them() -> None:
    generator = torch.Generator().manual_seed(2)
    coarse, fine = 50 * torch.randn(8, 4, generator=generator), torch.randn(8, 4, generator=generator)
    which = torch.randint(8, (4000, 2), generator=generator)
    vectors = coarse[which[:, 0]] + fine[which[:, 1]]
    quantiser = ResidualQuantiser(2, 32, 4)  # more codewords than clusters: k-means may begin with two in one
    quantiser.begin(vectors, generator, rounds=12)
    before = float((quantiser.vectors(quantiser.codes(vectors)) - vectors).norm(dim=1).mean())
    for _ in range(200):
        quantiser.learn(vectors[torch.randint(4000, (512,), generator=generator)], 0.95, generator)
    left = (quantiser.vectors(quantiser.codes(vectors, beam=4)) - vectors).norm(dim=1).mean()
    assert float(left) < 0.25 * float(fine.norm(dim=1).mean())
    assert float(left) <= before


def test_codewords_that_nothing_chooses_begin_anew() -> None:
    generator = torch.Generator().manual_seed(4)
    quantiser = ResidualQuantiser(1, 16, 2)
    quantiser.codebooks[0, 1:] = 1e3  # far from everything: fifteen dead codewords
    vectors = torch.randn(2000, 2, generator=generator)
    for _ in range(400):
        quantiser.learn(vectors[torch.randint(2000, (256,), generator=generator)], 0.9, generator)
    used = quantiser.codes(vectors).ravel().bincount(minlength=16)
    assert int((used > 0).sum()) == 16


def test_a_wider_beam_never_loses_much_and_wins_on_the_whole() -> None:
    quantiser, lines = BundleCodec.tiny().tables.quantiser, rows(400)
    latents = BundleCodec.tiny().latents(lines)
    greedy, kept = ((quantiser.vectors(quantiser.codes(latents, 8, beam)) - latents).norm(dim=1) for beam in (1, 4))
    assert float(kept.mean()) < 0.97 * float(greedy.mean())
    codec = BundleCodec.tiny()
    assert torch.equal(codec.with_beam(4).quantise(latents), quantiser.codes(latents, 6, 4))


def test_beam_of_one_is_the_nearest_codeword_at_every_stage() -> None:
    quantiser = BundleCodec.tiny().tables.quantiser
    left = BundleCodec.tiny().latents(rows(100)).double()
    codes = quantiser.codes(left)
    for stage, book in enumerate(quantiser.codebooks.double()):
        nearest = torch.cdist(left, book).argmin(1)
        assert torch.equal(codes[:, stage], nearest)
        left = left - book[nearest]


def test_the_gradient_of_the_tracking_wings_field_reaches_the_codes(oblique_affine: Tensor) -> None:
    """Codes → streamlines → amplitude of the orientations along them: a small step uphill in the latents raises it."""
    codec = BundleCodec.tiny()
    affine = oblique_affine.double().clone()
    affine[:3, 3] -= affine[:3, :3] @ torch.tensor([11.5, 11.5, 11.5], dtype=torch.float64) + affine[:3, 3]
    grid = ImageGrid((24, 24, 24), affine, codec.space)
    coeffs = torch.randn(15, 24, 24, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    table = ComponentTable.of(ShField(grid, coeffs, 4))
    short = 0.3 * rows(20).double()  # within the grid
    latents = codec.dequantise(codec.quantise(codec.latents(short))).double().requires_grad_()

    def amplitude(at: Tensor) -> Tensor:
        lines = codec.lines(at)
        middle, step = (lines[:, 1:] + lines[:, :-1]) / 2, lines.diff(dim=1)
        return amplitudes(
            table, middle.reshape(-1, 3), torch.nn.functional.normalize(step, dim=-1).reshape(-1, 3)
        ).mean()

    before = amplitude(latents)
    (slope,) = torch.autograd.grad(before, latents)
    direction = slope / slope.norm()
    gained = amplitude(latents.detach() + 1e-4 * direction) - amplitude(latents.detach() - 1e-4 * direction)
    assert float(gained.detach()) / 2e-4 == pytest.approx(float(slope.norm()), rel=1e-3)


def test_straight_through_passes_the_gradient_as_it_is() -> None:
    codec = BundleCodec.tiny()
    latents = codec.latents(rows(10)).requires_grad_()
    weight = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    (codec.straight_through(latents) * weight).sum().backward()
    assert latents.grad is not None
    assert torch.allclose(latents.grad, weight)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (torch.tensor([[0.0, 0, 0], [math.nan, 1, 1]]), "E-CODEC-LINES"),
        (torch.zeros(1, 3), "E-CODEC-LINES"),
        (torch.tensor([[0.0, 0, 0], [0, 500, 0]]), "E-CODEC-LINES"),
    ],
)
def test_lines_without_a_code_are_refused(line: Tensor, error: str) -> None:
    with pytest.raises(InputDataError) as caught:
        BundleCodec.tiny().encode(lines_of(line[None]))
    assert caught.value.id == error


def test_another_space_is_refused() -> None:
    with pytest.raises(InputDataError) as caught:
        BundleCodec.tiny().encode(lines_of(rows(2), "sub-01_T1w"))
    assert caught.value.id == "E-CODEC-SPACE"


def test_weights_come_back_as_they_were() -> None:
    codec = BundleCodec.tiny()
    again = BundleCodec.from_weights(*codec.weights())
    lines = lines_of(rows(30))
    assert torch.equal(again.encode(lines).values, codec.encode(lines).values)
    assert torch.equal(again.decode(again.encode(lines)).points, codec.decode(codec.encode(lines)).points)


def test_the_transform_is_that_of_the_lines() -> None:
    tables = CodecTables(CodecSettings(n_latent=15, n_codewords=16, stages=2, most_stages=2))
    lines = rows(1000)
    tables.begin(lines, torch.Generator().manual_seed(0))
    left = (tables.lines(tables.latents(lines)) - lines).norm(dim=-1)
    assert float(left.mean()) < 0.05  # fifteen numbers make these curves
