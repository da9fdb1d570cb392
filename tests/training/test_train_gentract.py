"""The command that trains generators of streamlines, on subjects that cost nothing."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tractode.cli import train_gentract
from tractode.cli.train import main
from tractode.errors import InternalError, UsageError
from tractode.generative.gentract import GenTract
from tractode.generative.paper_model import PaperModel
from tractode.generative.space import training_grid
from tractode.generative.streamline_network import NetworkSettings
from tractode.io.weights import read_weights, shipped
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.tissues import Anatomy
from tractode.simulate.tract_subject import TractSubject, TractSubjectSettings
from tractode.training import gentract_recipes, subject_pool, tract_subjects
from tractode.training.cards import ATLAS_LICENCE, gentract_card, is_hcp1065, tables_of
from tractode.training.gentract import GenTractSettings
from tractode.training.gentract_recipes import RECIPES, LocalRecipe, PublishedRecipe, recipe_of
from tractode.training.subject_pool import Makers, Mixed, Synthetic, cache_of, pool_of

BATCH = GenTractSettings(n_lines=24, n_judged=8, judged_steps=1)
NETWORK = NetworkSettings(width=16, depth=1, heads=2, encoder=(4, 4, 4))


def subject(library: BundleLibrary, number: int) -> TractSubject:
    """A field that fills part of the grid, and the library a little aside."""
    coeffs = torch.zeros(28, *training_grid().shape)
    coeffs[:, 15:37, 20:44, 15:37] = 0.1
    coeffs[0, 15:37, 20:44, 15:37] = 1.0 + 0.1 * number
    lines = library.lines + float(number)
    return TractSubject(coeffs, lines, torch.ones(len(library.names), dtype=torch.bool), ~library.is_held_out)


@pytest.fixture(autouse=True)
def cheap(library: BundleLibrary, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is synthesised or read; recipes are tiny."""

    def synthesise(
        library: BundleLibrary, anatomy: Anatomy | None, number: int, settings: TractSubjectSettings
    ) -> TractSubject:
        return subject(library, number)

    local = RECIPES["local"]
    assert isinstance(local, LocalRecipe)
    monkeypatch.setattr(tract_subjects, "synthesise", synthesise)
    monkeypatch.setattr(tract_subjects.SubjectCache, "anatomy", None)
    monkeypatch.setattr(tract_subjects, "read_library", lambda folder, brain=None: library)
    monkeypatch.setitem(gentract_recipes.RECIPES, "local", replace(local, batch=BATCH, network=NETWORK))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def atlas(tmp_path: Path, library: BundleLibrary) -> Path:
    """An empty folder as an atlas, and beside it a cache that is already full: no process is started."""
    folder = tmp_path / "Atlas"
    folder.mkdir()
    cache_of(tmp_path / "cache", library, 0).fill(0, 3)
    return folder


def command(atlas: Path, *more: str) -> list[str]:
    out, cache = atlas.parent / "out", atlas.parent / "cache"
    return ["gentract", "--atlas", str(atlas), "--out", str(out), "--cache", str(cache), *more]


def test_local_recipe_writes_weights_that_draw_and_goes_on_where_it_stopped(
    atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = command(atlas, "--subjects", "3", "--steps", "3")
    assert main(once) == 0
    out = atlas.parent / "out"
    model = GenTract.from_weights(*read_weights(out))
    assert model.names == ("Arc_L", "Low_R", "course")
    assert model.path_name == "bridge"
    training = tomllib.loads((out / "settings.toml").read_text())["training"]
    assert training["n_synthetic"] == 3
    assert training["curve"][-1][0] == training["steps"] == 3
    card = (out / "card.md").read_text(encoding="utf-8")
    assert (
        "tractode-train gentract --atlas Atlas --out out --cache cache --subjects 3" in card
    )  # no path of this machine
    assert "depends on that folder's terms" in card
    assert not (out / "LICENSE").exists()
    before = (out / "model.safetensors").read_bytes()
    assert main(once) == 0  # done already
    assert (out / "model.safetensors").read_bytes() == before
    assert main(command(atlas, "--subjects", "3", "--steps", "4")) == 78
    results = out / "results.json"
    results.write_text(
        json.dumps({"tables": {"base": {"ours": {"valid_rate": 0.75, "valid_rate_sd": 0.021, "n": 10}}}})
    )
    assert main(["card", str(out), "--metrics", str(results)]) == 0
    assert "| ours | 0.75 ± 0.021 | 10 |" in (out / "card.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["card", str(out), "--metrics", str(out / "none.json")]) == 66
    assert "E-TRAIN-NO-METRICS" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["flow", "diffusion"])
def test_local_recipe_from_noise(atlas: Path, path: str) -> None:
    assert main(command(atlas, "--subjects", "2", "--steps", "1", "--path", path)) == 0
    model = GenTract.from_weights(*read_weights(atlas.parent / "out"))
    assert model.path_name == path
    assert model.network.settings.gain == 1.0


def test_published_recipe_end_to_end(atlas: Path) -> None:
    assert main(command(atlas, "--recipe", "small", "--subjects", "2", "--steps", "1", "--path", "flow")) == 0
    out = atlas.parent / "out"
    tensors, settings = read_weights(out)
    model = PaperModel.from_weights(tensors, settings["published"])
    assert model.settings.paradigm == "flow_matching"
    assert sorted(settings["training"]["autoencoders"]) == sorted(settings["training"]["loop"])
    assert (out / "autoencoders.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_train_one_model(atlas: Path) -> None:
    pytest.importorskip("lightning_fabric")
    assert main(command(atlas, "--subjects", "3", "--steps", "3", "--devices", "2")) == 0
    out = atlas.parent / "out"
    GenTract.from_weights(*read_weights(out))
    training = tomllib.loads((out / "settings.toml").read_text())["training"]
    assert training["device"] == "2 processor threads"
    assert len(training["curve"]) == 3


def test_what_cannot_be_carried_out_is_refused(atlas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(atlas.parent / "none")) == 66
    assert main(command(atlas, "--subjects", "0")) == 64
    assert main(command(atlas, "--recipe", "paper", "--path", "bridge")) == 64
    assert main(command(atlas, "--derivatives", str(atlas / "none"))) == 66
    assert main(command(atlas, "--minutes", "0")) == 64
    (atlas / "empty").mkdir()
    assert main(command(atlas, "--derivatives", str(atlas / "empty"))) == 66
    said = capsys.readouterr().err
    for name in ("ATLAS", "NOBODY", "PATH"):
        assert f"E-TRAIN-{name}" in said
    assert said.count("E-COHORT-NONE") == 2


def test_recipe_takes_what_was_asked_for() -> None:
    small = recipe_of("small", steps=150, minutes=10.0, seed=4)
    assert isinstance(small, PublishedRecipe)
    assert (small.loop.steps, small.loop.minutes, small.loop.seed) == (150, 9.0, 4)
    assert (small.vae_loop.steps, small.vae_loop.minutes) == (300, 1.0)
    assert recipe_of("local").loop == RECIPES["local"].loop
    assert recipe_of("local", steps=20).loop.warm_up == 2
    with pytest.raises(UsageError, match="E-TRAIN-PATH"):
        recipe_of("paper", path="bridge")


def test_pool_uses_what_is_ready_and_mixes_sources(tmp_path: Path, library: BundleLibrary) -> None:
    cache = cache_of(tmp_path, library, 0)
    cache.fill(0, 2)
    pool = Synthetic(cache, 7)
    torch.testing.assert_close(pool[5].lines, cache[1].lines)
    assert cache.ready() == [0, 1]  # nothing was made here
    both = pool_of(Synthetic(cache, 2), Synthetic(cache, 2))
    assert isinstance(both, Mixed)
    found = sorted(round(float((both[number].lines - library.lines).mean())) for number in range(len(both)))
    assert found == [0, 0, 1, 1]
    assert pool_of(pool, None) is pool


def test_a_maker_that_dies_is_told(tmp_path: Path, library: BundleLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        exitcode = 9

        def start(self) -> None: ...
        def terminate(self) -> None: ...
        def join(self) -> None: ...

    makers = Makers(tmp_path, cache_of(tmp_path, library, 0), 0)
    makers._processes = [Dead()]
    with makers, pytest.raises(InternalError, match="E-TRAIN-MAKER"):
        makers.wait(1, lambda n: None)


def test_tables_show_groups_of_rows() -> None:
    results = {
        "meta": {"command": "x"},
        "conditioning": {"right": {"overlap": 0.61234, "n": 12}, "none": {"overlap": None, "n": 12}},
        "speed": {"streamlines_per_s": 81.5},
    }
    text = tables_of(results)
    assert "### conditioning\n\n| | overlap | n |\n|---|---|---|\n| right | 0.612 | 12 |\n| none | – | 12 |" in text
    assert "| speed | 81.5 |" in text
    assert "command" not in text


def test_card_of_the_atlas_names_its_terms() -> None:
    names = ["Association_ArcuateFasciculusL", "ProjectionBasalGanglia_CorticostriatalTractL", "CST_L"]
    assert is_hcp1065(names)
    assert not is_hcp1065(["Arc_L"])
    training = {
        "recipe": "local", "n_bundles": 3, "n_parameters": 10, "is_hcp1065": True, "atlas": "a", "n_synthetic": 0, "n_participants": 4, "n_scans": 5,
        "n_held_out": 1, "n_paired": 1000, "n_read": 1200, "reach_mm": 15.0, "steps": 10, "minutes": 1.2, "device": "cpu", "seed": 0,
        "path": "bridge", "torch": "2", "command": "c", "curve": [[10, 0.5]], "losses": {"learned": 0.5, "held_out": 0.6},
    }  # fmt: skip
    card = gentract_card(training)
    for words in (
        "CC BY-SA 4.0",
        "10.1038/s41467-022-32595-4",
        "1U54MH091657",
        "1,000 of 1,200",
        "0.6000 on real participants",
    ):
        assert words in card


def test_options_are_those_of_the_recipes() -> None:
    assert set(train_gentract.RECIPES) == set(RECIPES)
    assert train_gentract.PATHS == gentract_recipes.PATHS
    assert subject_pool.TractSubjectSettings().seed == 0


def test_terms_lie_where_the_shipped_weights_are_and_the_package_says_so() -> None:
    assert (shipped("gentract") / "LICENSE").read_text(encoding="utf-8") == ATLAS_LICENCE
    metadata = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["license"] == "Apache-2.0 AND CC-BY-SA-4.0"
    assert "bidsapp/tractode/weights/*/LICENSE" in metadata["license-files"]
