"""The parts of the local model: knots, look-up, mirror, determinism, weights, guidance, refusal."""

import math

import pytest
import torch

from tractode.fields import Image, ShField
from tractode.generative import knots
from tractode.generative.field_encoder import (
    DISTANCES_MM,
    Context,
    alignments,
    look_up,
    n_features,
    slopes_of,
)
from tractode.generative.gentract import GenTract, of_order, sharpened, why_not
from tractode.generative.guidance import alignment, climbed
from tractode.generative.source import Source, SourceSettings
from tractode.generative.space import mirrored, normalised, training_grid
from tractode.ops import spherical_harmonics as sh
from tractode.ops.interpolate import sample, sample_rows

GRID = training_grid()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lobes(axis: tuple[float, float, float]) -> torch.Tensor:
    """Coefficients of a field whose every voxel has one sharp lobe along an axis."""
    direction = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float32), dim=0)
    return (sh.basis(direction, 6) * 0.1)[:, None, None, None].expand(28, *GRID.shape).clone()


def arcs(n: int) -> torch.Tensor:
    """Knots of half circles of radius 30 mm about the middle of the brain."""
    angle = torch.linspace(0, math.pi, knots.N_KNOTS)
    one = torch.stack([30 * angle.cos(), torch.full_like(angle, -20), 30 * angle.sin()], -1)
    return one + torch.arange(n)[:, None, None] * torch.tensor([0.0, 1.0, 0.0])


def test_rows_interpolate_as_the_grid_does() -> None:
    values = torch.randn(5, 4, 6, 7, generator=generator())
    points = torch.rand(200, 3, generator=generator(1)) * torch.tensor([6.0, 8.0, 9.0]) - 1
    table = values.flatten(1).mT.contiguous()
    expected = sample(values, points, outside="nearest")
    torch.testing.assert_close(sample_rows(table, (4, 6, 7), points), expected, atol=1e-5, rtol=0)


def test_rows_have_the_gradient_of_the_interpolation() -> None:
    table = torch.randn(4 * 5 * 6, 3, dtype=torch.float64, generator=generator(), requires_grad=True)
    points = torch.rand(6, 3, dtype=torch.float64, generator=generator(2)) * 2.5 + 0.2
    assert torch.autograd.gradcheck(lambda t, p: sample_rows(t, (4, 5, 6), p), (table, points.requires_grad_()))


def test_the_spline_through_knots_of_a_circle_stays_on_it() -> None:
    points = knots.points_of(arcs(1))[0]
    radius = (points - torch.tensor([0.0, -20.0, 0.0])).norm(dim=-1)
    # A natural spline is straight at its ends, a circle is not.
    assert float((radius[8:-8] - 30).abs().max()) < 0.02
    assert float((radius - 30).abs().max()) < 0.2
    torch.testing.assert_close(points[[0, -1]], arcs(1)[0, [0, -1]], atol=1e-4, rtol=0)


def test_tangents_of_a_circle() -> None:
    found = knots.tangents_of(arcs(1))[0]
    angle = torch.linspace(0, math.pi, knots.N_KNOTS)
    expected = torch.stack([-angle.sin(), torch.zeros_like(angle), angle.cos()], -1)
    assert float((found - expected)[2:-2].norm(dim=-1).max()) < 0.01


def test_smooth_noise_has_the_deviation_that_is_asked() -> None:
    draws = torch.randn(20_000, 2, 3, generator=generator())
    shift = knots.smooth_noise(draws, (2.0, 0.0))
    assert float(shift.std()) == pytest.approx(2.0, rel=0.02)
    assert float(shift.diff(dim=1).abs().max()) < 1e-5
    bend = knots.smooth_noise(draws, (0.0, 2.0))
    torch.testing.assert_close(bend.mean(1), torch.zeros(20_000, 3), atol=1e-4, rtol=0)


def test_a_mirrored_field_has_the_mirrored_amplitudes() -> None:
    field = torch.randn(28, *GRID.shape, generator=generator())
    direction = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator(3)), dim=-1)
    other = direction * torch.tensor([-1.0, 1.0, 1.0])
    mirror = mirrored(field)
    for i, j, k in ((3, 5, 7), (30, 40, 11)):
        here = sh.basis(direction, 6) @ field[:, i, j, k]
        there = sh.basis(other, 6) @ mirror[:, GRID.shape[0] - 1 - i, j, k]
        torch.testing.assert_close(here, there)
    x = GRID.to_world(torch.tensor([3.0, 5.0, 7.0])), GRID.to_world(torch.tensor([GRID.shape[0] - 4.0, 5.0, 7.0]))
    assert float(x[0][0] + x[1][0]) == pytest.approx(0)


def test_normalising_takes_the_scale_away() -> None:
    coeffs = torch.rand(28, *GRID.shape, generator=generator())
    one, other = (normalised(ShField(GRID, coeffs * scale, 6)).coeffs for scale in (1.0, 37.0))
    torch.testing.assert_close(one, other)
    assert not normalised(ShField(GRID, coeffs * 0, 6)).coeffs.any()


def test_look_up_knows_amplitudes_along_the_line_and_around_it() -> None:
    coeffs = torch.zeros(28, *GRID.shape)
    coeffs[:, 30:] = lobes((0, 0, 1))[:, 30:]  # fibres along z on the right only
    mean = torch.zeros(15, *GRID.shape)
    voxels = torch.cat([coeffs, mean]).flatten(1).mT.contiguous()
    blank = torch.zeros(len(voxels), 4)
    context = Context((blank, blank, blank), (GRID.shape, GRID.shape, GRID.shape), voxels, 1.0)
    place = GRID.to_world(torch.tensor([[28.0, 30.0, 25.0]])).float()
    upwards = torch.tensor([[0.0, 0.0, 1.0]])
    amplitudes, here = alignments(context, GRID, place, upwards, 6)
    peak = float(sh.basis(upwards[0], 6) @ lobes((0, 0, 1))[:, 0, 0, 0])
    assert DISTANCES_MM == (3.0, 6.0, 10.0)
    # Along x first, at 3, 6 and 10 mm (1, 2 and 3.3 voxels), right then left of the place; nowhere else anything.
    expected = torch.zeros(2, 19)
    expected[0, [3, 5]] = peak
    torch.testing.assert_close(amplitudes[0], expected, atol=1e-5, rtol=1e-5)
    assert not here.any()
    slopes = slopes_of(amplitudes)[0]
    torch.testing.assert_close(slopes, torch.tensor([0, peak, peak, 0, 0, 0, 0, 0, 0]), atol=1e-5, rtol=1e-5)
    seen, _ = look_up(context, GRID, place, upwards, 6)
    assert seen.shape[1] == n_features(6, 4, (4, 4, 4))


def test_evidence_is_the_mean_of_what_a_bundles_lines_see() -> None:
    model = GenTract.tiny()
    knots_seen, bundle = model.source.examples(4)
    assert torch.bincount(bundle).tolist() == [4, 4, 4]
    coeffs = normalised(field()).coeffs
    evidence = model.network.see(coeffs, knots_seen, bundle).evidence
    own = knots_seen[bundle == 1]
    alone = model.network.see(coeffs, own, torch.ones(4, dtype=torch.long)).evidence
    torch.testing.assert_close(evidence[1], alone[1])
    assert not alone[0].any()


def test_sources_are_drawn_by_bundle() -> None:
    bundle = torch.tensor([2, 0, 2, 0, 2, 2, 2, 2])
    source = Source(torch.arange(8.0)[:, None, None].expand(8, 16, 3).clone(), bundle, SourceSettings(evenness=1.0))
    assert source.weights(4).tolist() == [0.5, 0.0, 0.5, 0.0]
    wanted = torch.tensor([0, 2, 2, 0, 2])
    rows = source.rows(wanted, torch.rand(5, generator=generator()))
    assert torch.equal(bundle[rows], wanted)
    every = source.rows(torch.full((600,), 2), torch.rand(600, generator=generator()))
    assert set(every.tolist()) == {0, 2, 4, 5, 6, 7}


def field(seed: int = 0) -> ShField:
    return ShField(GRID, torch.rand(28, *GRID.shape, generator=generator(seed)), 6)


def test_the_same_seed_gives_the_same_lines_however_many_are_asked_for() -> None:
    model = GenTract.tiny()
    seen = model.context(field())
    few = next(iter(model.sample(seen, 40, generator(5))))
    many = list(model.sample(seen, 600, generator(5)))
    assert sum(len(part) for part in many) == 600
    assert torch.equal(few.points, many[0].points[: len(few.points)])
    assert torch.equal(few.per_streamline["confidence"], many[0].per_streamline["confidence"][:40])
    other = next(iter(model.sample(seen, 40, generator(6))))
    assert not torch.equal(few.points, other.points)
    assert few.space == "MNI152NLin2009aSym"
    assert torch.isfinite(few.points).all()


def test_only_the_bundles_asked_for_are_drawn() -> None:
    model = GenTract.tiny()
    lines = next(iter(model.sample(model.context(field()), 30, generator(), ["two"])))
    assert set(lines.per_streamline["bundle"].ravel().tolist()) == {1}
    assert list(model.sample(model.context(field()), 5, generator(), ["no such"])) == []


def test_weights_give_the_model_back() -> None:
    model = GenTract.tiny()
    again = GenTract.from_weights(*model.weights())
    first, second = (next(iter(one.sample(one.context(field()), 20, generator()))) for one in (model, again))
    torch.testing.assert_close(first.points, second.points)


def test_the_subject_changes_the_lines() -> None:
    model = GenTract.tiny()
    torch.nn.init.normal_(model.network.leave.weight, generator=generator())
    rows = torch.arange(20)
    first, second, nobody = (
        model.draw(seen, rows, generator())[0]
        for seen in (model.context(field(0)), model.context(field(1)), model.nobody())
    )
    assert float((first - second).abs().max()) > 1e-3
    assert float((first - nobody).abs().max()) > 1e-3


def test_confident_lines_only() -> None:
    model = GenTract.tiny()
    seen = model.context(field())
    every = torch.cat([part.per_streamline["confidence"] for part in model.sample(seen, 512, generator())])
    least = float(every.median())
    parts = list(model.with_sampling(min_confidence=least, most_rounds=2).sample(seen, 100, generator()))
    assert float(every.min()) < least
    assert sum(len(part) for part in parts) == 100
    assert all(float(part.per_streamline["confidence"].min()) >= least for part in parts)


def test_a_field_on_another_grid_is_an_error() -> None:
    small = ShField(GRID.resampled(6.0), torch.zeros(28, *GRID.resampled(6.0).shape), 6)
    with pytest.raises(ValueError, match="training grid"):
        GenTract.tiny().context(small)


def test_climbing_raises_the_alignment() -> None:
    """A field whose fibres all run along x, denser towards +z: an oblique line turns to x and rises."""
    height = torch.linspace(0.2, 2, GRID.shape[2])
    coeffs = lobes((1, 0, 0)) * height
    context = Context((), (GRID.shape,), coeffs.flatten(1).mT.contiguous(), 1.0)
    along = torch.linspace(-1, 1, knots.N_KNOTS)
    line = torch.stack([30 * along, -20 + 10 * along, 5 + 0 * along], -1)[None]
    up = line
    for _ in range(5):
        up = climbed(context, GRID, up, 6, 0.5)
    assert float(alignment(context, GRID, up, 6).mean()) > 1.05 * float(alignment(context, GRID, line, 6).mean())
    assert float((up - line)[..., 2].mean()) > 0.5


def test_refusals_name_the_reason() -> None:
    mean = torch.zeros(15, *GRID.shape)
    inside = torch.zeros(GRID.shape, dtype=torch.bool)
    inside[10:40, 10:50, 10:40] = True
    mean[:, inside] = lobes((1, 0, 0))[:15, 0, 0, 0][:, None]
    whole = Image(GRID, inside[None])
    good = ShField(GRID, of_order(mean, 6), 6)
    assert why_not(good, whole, mean) is None
    turned = torch.zeros(28, *GRID.shape)
    turned[:, inside] = lobes((0, 1, 0))[:, 0, 0, 0][:, None]
    assert "gradient table" in str(why_not(ShField(GRID, turned, 6), whole, mean))
    slab = inside.clone()
    slab[:, :, 20:] = False
    assert "covers" in str(why_not(good, Image(GRID, slab[None]), mean))
    assert "order 2" in str(why_not(ShField(GRID, good.coeffs[:6], 2), whole, mean))
    bad = good.coeffs.clone()
    bad[0, 20, 20, 20] = torch.nan
    assert "finite" in str(why_not(ShField(GRID, bad, 6), whole, mean))


def test_lines_between_given_ends_arrive_there_either_way_round() -> None:
    model = GenTract.tiny()
    torch.nn.init.normal_(model.network.leave.weight, std=0.1, generator=generator())
    seen = model.context(field())
    ends = model.source.knots[[3, 7, 20]][:, [0, -1]] + 4.0
    ends[1] = ends[1].flip(0)
    knots_found, confidence = model.between(seen, ends, generator())
    torch.testing.assert_close(knots_found[:, [0, -1]], ends, atol=1e-3, rtol=0)
    assert confidence.shape == (3,)
    middle = (
        knots_found[:, 8]
        - torch.where(
            torch.tensor([False, True, False])[:, None, None],
            model.source.knots[[3, 7, 20]].flip(1),
            model.source.knots[[3, 7, 20]],
        )[:, 8]
    ).norm(dim=-1)
    assert float(middle.max()) < 15


def test_faint_fields_are_raised_and_others_left() -> None:
    mean = torch.zeros(15, *GRID.shape)
    mean[0, 10:40, 10:50, 10:40] = 1.0
    sharp = torch.zeros(28, *GRID.shape)
    sharp[0, 10:40, 10:50, 10:40] = 0.9
    sharp[3, 10:40, 10:50, 10:40] = 1.1
    assert torch.equal(sharpened(sharp, mean), sharp)
    faint = torch.cat([sharp[:1], sharp[1:] / 2])
    raised = sharpened(faint, mean)
    assert torch.equal(raised[0], faint[0])
    assert float(raised[3].max()) == pytest.approx(1.0)
    assert not sharpened(sharp * 0, mean).any()


def test_keeping_all_gives_the_lines_below_the_threshold_too() -> None:
    model = GenTract.tiny()
    seen = model.context(field())
    median = float(next(iter(model.sample(seen, 512, generator()))).per_streamline["confidence"].median())
    strict = model.with_sampling(min_confidence=median, most_rounds=1)
    kept = next(iter(strict.sample(seen, 400, generator())))
    every = next(iter(strict.with_sampling(keeps_all=True).sample(seen, 512, generator())))
    confident = every.per_streamline["confidence"].ravel() >= median
    assert 0 < int(confident.sum()) < 512
    assert float(kept.per_streamline["confidence"].min()) >= median
    n = min(len(kept), int(confident.sum()))
    assert torch.equal(kept.per_streamline["bundle"][:n], every.per_streamline["bundle"][confident][:n])
