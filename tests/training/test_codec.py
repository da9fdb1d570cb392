"""Fitting our own codec: it learns, goes on where it stopped, and the recipe gives all parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tractode.errors import ConfigurationError
from tractode.fields import Streamlines
from tractode.generative.codec import BundleCodec
from tractode.generative.codec_tables import CodecSettings
from tractode.generative.line_code import lines31
from tractode.generative.space import SPACE
from tractode.io.weights import read_weights, write_weights
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.line_samples import LineSamples, LineSampleSettings
from tractode.training.codebooks import CodebookSettings, Draw, fit_codebooks
from tractode.training.codec import OwnRecipe, own_recipe
from tractode.training.codec_recipes import CodecRun
from tractode.training.loop import losses_of

SMALL = CodecSettings(n_latent=24, n_codewords=64, stages=4, most_stages=6)
BOOKS = CodebookSettings(steps=60, n_first=1500, n_lines=256, decay=0.95, checkpoint_every=20)


def draw_of(library: BundleLibrary) -> Draw:
    samples = LineSamples(library, LineSampleSettings(other=0.0, simulated=0.0))
    return lambda n, generator: samples.draw(n, generator)[0]


def test_it_learns_and_resuming_changes_nothing(library: BundleLibrary, tmp_path: Path) -> None:
    losses: list[float] = []
    whole = fit_codebooks(draw_of(library), SMALL, BOOKS, None, lambda step, steps, loss: losses.append(loss))
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 30:
            raise Stopped

    with pytest.raises(Stopped):
        fit_codebooks(draw_of(library), SMALL, BOOKS, tmp_path / "checkpoint", stop)
    rest = fit_codebooks(draw_of(library), SMALL, BOOKS, tmp_path / "checkpoint")
    assert torch.equal(rest.quantiser.codebooks, whole.quantiser.codebooks)
    assert losses_of(tmp_path / "checkpoint").tolist() == pytest.approx(losses)


def test_codebooks_of_other_settings_are_refused(library: BundleLibrary, tmp_path: Path) -> None:
    short = replace(BOOKS, steps=2)
    fit_codebooks(draw_of(library), SMALL, short, tmp_path / "checkpoint")
    with pytest.raises(ConfigurationError) as caught:
        fit_codebooks(draw_of(library), SMALL, replace(short, decay=0.5), tmp_path / "checkpoint")
    assert caught.value.id == "E-TRAIN-CODEBOOKS"


def test_time_is_kept(library: BundleLibrary) -> None:
    steps: list[int] = []
    long = replace(BOOKS, steps=1_000_000, minutes=0.005)
    fit_codebooks(draw_of(library), SMALL, long, None, lambda step, n, loss: steps.append(step))
    assert 0 < len(steps) < 1000


def test_the_recipe_makes_codec_namer_and_prior(library: BundleLibrary, tmp_path: Path) -> None:
    recipe = own_recipe(steps=20, subjects=0)
    recipe = replace(
        recipe, codec=SMALL, codebooks=replace(BOOKS, steps=20), n_false=400, lines_per_bundle=60,
        namer=replace(recipe.namer, n_lines=128, n_tracked=0, n_false=400, calibration_lines=256, width=32),
        namer_loop=replace(recipe.namer_loop, steps=30),
    )  # fmt: skip
    run = CodecRun(library, tmp_path, torch.device("cpu"))
    tensors, settings = recipe.train("tractode", run, lambda stage: lambda step, steps, loss: None)
    write_weights(tmp_path / "weights", tensors, settings, "card")
    codec = BundleCodec.from_weights(*read_weights(tmp_path / "weights"))
    samples = LineSamples(library, LineSampleSettings(other=0.0, simulated=0.0))
    lines, _ = samples.draw(64, torch.Generator().manual_seed(9))
    assert codec.prior is not None
    assert codec.namer is not None
    assert codec.names == samples.names
    named, probability = codec.namer.named(codec.dequantise(codec.quantise(codec.latents(lines))))
    assert int(named.max()) <= len(codec.names)
    assert 0 <= float(probability.min()) <= float(probability.max()) <= 1
    new = codec.prior.sample(codec.names[0], 5, torch.Generator().manual_seed(0))
    assert codec.lines(new).isfinite().all()
    assert lines31(codec.decode(codec.encode(_streamlines(lines)))).shape == (64, 31, 3)


def test_what_was_asked_for_is_in_the_recipe() -> None:
    recipe = own_recipe(steps=7, minutes=3.0, seed=5, subjects=2, cache=Path("x"))
    assert (recipe.codebooks.steps, recipe.codebooks.minutes, recipe.codebooks.seed, recipe.namer.seed) == (
        7,
        3.0,
        5,
        5,
    )
    assert (recipe.subjects, recipe.cache, OwnRecipe().subjects) == (2, Path("x"), 25)


def _streamlines(lines: torch.Tensor) -> Streamlines:
    return Streamlines(lines.flatten(0, 1), torch.arange(len(lines) + 1) * lines.shape[1], SPACE)
