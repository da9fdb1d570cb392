"""The command that trains the published codecs, on a library that costs nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from tractode.cli.train import main
from tractode.errors import UsageError
from tractode.generative import CODECS
from tractode.generative.resnet_codec import ResNetSettings
from tractode.generative.space import training_grid
from tractode.io.weights import read_weights
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.line_groups import TO_LEARN, TO_TEST, Groups, Person, group, person
from tractode.training import tract_subjects
from tractode.training.codec_paper import GroupProblem, GroupSettings, at_64
from tractode.training.codec_recipes import PUBLISHED, paper_recipe
from tractode.training.loop import LoopSettings, fit


@pytest.fixture(autouse=True)
def cheap(library: BundleLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tract_subjects, "read_library", lambda folder, brain=None: library)


def command(folder: Path, *more: str) -> list[str]:
    (folder / "Atlas").mkdir(exist_ok=True)
    sizes = ["--batch", "2", "--persons", "1", "--steps", "2"]
    return ["codec", "--atlas", str(folder / "Atlas"), "--out", str(folder / "out"), *sizes, *more]


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_model_is_fitted_stored_and_read(model: str, tmp_path: Path) -> None:
    assert main(command(tmp_path, "--model", model, "--recipe", "corrected")) == 0
    out = tmp_path / "out"
    tensors, settings = read_weights(out)
    codec = CODECS[settings["codec"]].from_weights(tensors, settings)
    assert codec.label == model
    training = tomllib.loads((out / "settings.toml").read_text())["training"]
    assert training["bits_per_streamline"] == codec.bits_per_streamline == 160
    assert training["steps"] == training["curve"][-1][0] == 2
    card = (out / "card.md").read_text(encoding="utf-8")
    assert f"tractode-train codec --atlas Atlas --out out --batch 2 --persons 1 --steps 2 --model {model}" in card
    assert str(tmp_path) not in card
    assert not (out / "LICENSE").exists()  # this library is no HCP1065


def test_the_same_command_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    once = command(tmp_path, "--model", "vq_diff", "--codebook", "4", "--tables", "2", "--bfloat16")
    assert main(once) == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert main(once) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert main([*once, "--seed", "3"]) == 78


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "ae", "--codebook", "8"],
        ["--model", "vq", "--bits", "8"],
        ["--model", "vq", "--recipe", "faithful", "--tables", "2"],
        ["--model", "vq", "--recipe", "wrong"],
        ["--model", "tractode", "--recipe", "faithful"],
    ],
)
def test_settings_that_a_model_lacks_are_refused(words: list[str], tmp_path: Path) -> None:
    assert main(command(tmp_path, *words)) == 64


def test_rates_that_can_be_asked_for() -> None:
    ready = paper_recipe("ae", "corrected", rate={"channels": 4, "bits": 3})
    assert ready.resnet.channels == 4
    assert ready.bottleneck["bits"] == 3
    with pytest.raises(UsageError, match="E-TRAIN-RATE"):
        paper_recipe("ae", "faithful", rate={"bits": 3})


def test_persons_and_lines_of_the_test_are_never_learned_from(library: BundleLibrary) -> None:
    learned = person(library, training_grid(), 0, TO_LEARN)
    tested = person(library, training_grid(), 1_000_000, TO_TEST)
    assert learned.bundle.unique().tolist() == [0, 1, 2]
    assert tested.bundle.tolist() == [0, 0, 1, 1]  # every third of six lines, none of the simulator's
    assert len(learned.of(0)) == 4
    again = person(library, training_grid(), 0, TO_LEARN)
    assert torch.equal(again.lines, learned.lines)


def test_a_small_bundle_fills_its_group_by_its_lines_moved_a_little(library: BundleLibrary) -> None:
    lines = library.lines[:6]
    found = group(lines, torch.Generator().manual_seed(0))
    assert found.shape == (64, 31, 3)
    apart = (found[:, None] - lines[None]).norm(dim=-1).mean(-1)
    assert int((apart.amin(1) == 0).sum()) == 6
    assert 0.5 < float(apart.amin(1).mean()) < 2.5
    many = torch.arange(100.0)[:, None, None].expand(100, 31, 3)
    picked = group(many, torch.Generator().manual_seed(0))[:, 0, 0]
    assert len(picked.unique()) == 64
    assert not torch.equal(picked, picked.sort().values)


@pytest.mark.parametrize(
    ("model", "steps"),
    [("ae", 90), *(pytest.param(model, 700, marks=pytest.mark.slow) for model in PUBLISHED[1:])],
)
def test_a_small_model_learns_more_than_the_mean(model: str, steps: int) -> None:
    """Four bundles at four places: after some steps the error is far below that of the middle of everything."""
    along = torch.linspace(-30, 30, 31)
    places = torch.tensor([[0.0, -40, 20], [0.0, 30, -20], [0.0, -70, 50], [0.0, 20, 40]])
    lines = torch.stack([along, 0 * along, 0 * along], -1) + places[:, None]
    one = Person(
        lines.repeat_interleave(8, 0) + torch.arange(8.0).repeat(4)[:, None, None], torch.arange(4).repeat_interleave(8)
    )
    kind, is_soft = CODECS[model], model == "vq_diff"
    ready = (
        {"tables": 2} if is_soft else paper_recipe(model, "corrected").bottleneck
    )  # a softmax needs some channels a table
    resnet = ResNetSettings(width=32, narrow=8, n_blocks=1, channels=16 if is_soft else 8)
    codec = kind.untrained(resnet, kind.settings_of(ready))
    problem = GroupProblem(codec, Groups([one]), GroupSettings(batch=4))
    loop = LoopSettings(steps=steps, learning_rate=2e-3 if is_soft else 4e-3, warm_up=5)
    fit(problem, loop, None, lambda n, of, _: problem.advance((n + 1) / of))
    groups = at_64(problem.groups.draw(8, torch.Generator().manual_seed(5)))
    with torch.no_grad():
        squeeze = codec.network.bottleneck
        found = codec.groups(squeeze.restore(squeeze.codes(codec.latents(groups))))
    error, spread = (found - groups).norm(dim=-1).mean(), (groups - groups.mean((0, 1, 2))).norm(dim=-1).mean()
    assert float(error) < 0.45 * float(spread)
