"""Which models a table leads to, and why; recipes that come with the app and a user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tractode.cli.parser import parse
from tractode.contracts import table_of_shells
from tractode.errors import ConfigurationError, MissingInputError
from tractode.fields import GradientTable
from tractode.models import MODELS
from tractode.workflows.eligibility import choose
from tractode.workflows.memory import fit_memory_gb, step_memory_gb
from tractode.workflows.recipe import FOLDER, possible_models, read_recipe, shipped, wishes

HCP = (145, 174, 145, 288)


def lattice() -> GradientTable:
    """A Cartesian grid in q-space, as of DSI."""
    axis = torch.arange(-3, 4, dtype=torch.float64)
    q = torch.cartesian_prod(axis, axis, axis)
    q = q[q.square().sum(-1) <= 9.1]
    b = q.square().sum(-1)
    is_b0 = b == 0
    return GradientTable(b / 9 * 4000, q / q.norm(dim=-1, keepdim=True).clamp_min(1e-9), is_b0)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_names_models_that_exist(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.description
    assert recipe.settings == {}
    for entry in recipe.models:
        names = {part.partition("@")[0] for part in entry.removesuffix("?").split("|")}
        assert entry == "*" or names <= set(MODELS), entry


def test_single_shell_data_get_the_tensor_and_single_shell_deconvolution() -> None:
    choice = choose(("auto",), table_of_shells((1000.0,), 32))
    assert choice.models == ("dti", "csd")
    assert choice.orientations == "csd"
    assert not choice.refused
    assert "not msmt_csd: it is taken with at least 2 shells" in choice.reasons["csd"]
    assert choose(("dti", "msmt_csd"), table_of_shells((1000.0,), 32)).models == ("dti", "msmt_csd"), "by name it may"
    assert set(choice.reasons) == set(MODELS)


def test_multi_shell_data_get_kurtosis_and_several_tissues() -> None:
    choice = choose(("auto",), table_of_shells((1000.0, 2000.0, 3000.0), 64))
    assert choice.models == ("dti", "dki", "msmt_csd")
    assert choice.orientations == "msmt_csd"
    assert "takes msmt_csd instead" in choice.reasons["csd"]


def test_a_grid_gets_what_needs_no_shells() -> None:
    choice = choose(("auto",), lattice())
    assert choice.orientations == "gqi"
    assert "csd" not in choice.models


def test_what_was_asked_for_by_name_is_refused_and_what_a_recipe_may_leave_out_is_left_out() -> None:
    gtab = table_of_shells((1000.0,), 32)
    named = choose(("dki", "dti"), gtab)
    assert named.models == ("dki", "dti")
    assert named.refused == {"dki"}
    assert named.reasons["dki"].startswith("refused: ")
    left = choose(("dti", "dki?"), gtab)
    assert left.models == ("dti",)
    assert not left.refused
    assert left.reasons["dki"] == MODELS["dki"].why_not(gtab)
    assert choose(("dki?", "dki"), gtab).refused == {"dki"}


def test_a_model_wanted_with_several_shells_alone_is_refused_with_that_reason() -> None:
    choice = choose(("msmt_csd@2",), table_of_shells((1000.0,), 32))
    assert choice.refused == {"msmt_csd"}
    assert choice.reasons["msmt_csd"] == (
        "refused: it is taken with at least 2 shells, and this table has 1 of at least 6 directions"
    )


def test_the_tensor_leaves_out_b_values_at_which_tissue_is_not_gaussian() -> None:
    several = table_of_shells((1000.0, 2000.0, 3000.0), 32)
    assert choose(("auto",), several).reasons["dti"].endswith("; fitted to b=1000 of 3 shells")
    assert choose(("auto",), several, 2500.0).reasons["dti"].endswith("; fitted to b=1000, b=2000 of 3 shells")
    high = choose(("auto",), table_of_shells((3000.0,), 32))
    assert "dti" in high.models
    assert "at b=3000 diffusion in tissue is not Gaussian" in high.reasons["dti"]
    assert "fitted to" not in choose(("auto",), table_of_shells((1000.0,), 32)).reasons["dti"]
    assert choose(("dti",), several, 500.0).refused == {"dti"}


def test_orientations_need_directions_enough_at_a_b_value_that_shows_them() -> None:
    for few in (table_of_shells((1000.0,), 12), table_of_shells((500.0,), 60)):
        choice = choose(("auto",), few)
        assert choice.models == ("dti",), "a clinical scan gets its tensor"
        assert not choice.refused
        for name in ("csd", "msmt_csd"):
            named = choose((name,), few)
            assert named.refused == {name}
            assert "15" in named.reasons[name]
    assert choose(("csd", "msmt_csd"), table_of_shells((700.0,), 15)).refused == frozenset()
    # A shell that is too small for orientations still tells tissues apart.
    n = table_of_shells((300.0, 2000.0), 32)
    mixed = n[torch.cat([torch.arange(8), torch.arange(34, len(n))])]
    assert len(mixed.shells()[0][1]) < 15
    assert choose(("auto",), mixed).models == ("dti", "msmt_csd")


def test_one_model_may_be_wished_for_under_several_conditions() -> None:
    gtab = table_of_shells((1000.0,), 32)
    assert choose(("msmt_csd@2?", "msmt_csd"), gtab).models == ("msmt_csd",)
    assert choose(("msmt_csd", "msmt_csd@2?"), gtab).models == ("msmt_csd",)
    assert not choose(("msmt_csd@2?", "msmt_csd@1|csd"), gtab).refused


def test_a_stray_volume_is_no_shell() -> None:
    few = table_of_shells((1000.0, 2000.0), 32)
    gtab = few[torch.cat([torch.arange(len(few) - 32), torch.tensor([len(few) - 1])])]
    assert len(gtab.shells()) == 2
    assert choose(("auto",), gtab).models == ("dti", "csd")


@pytest.mark.parametrize("name", ["dki", "wmti", "msdki"])
def test_a_shell_beyond_the_series_in_b_does_not_make_up_for_low_ones(name: str) -> None:
    low = table_of_shells((500.0, 1000.0, 5000.0), 32)
    assert "b-values up to at least 1500" in str(MODELS[name].why_not(low))
    assert MODELS[name].why_not(table_of_shells((500.0, 2000.0, 5000.0), 32)) is None


def test_every_wish_is_fitted_once_and_all_means_all() -> None:
    gtab = table_of_shells((1000.0, 2000.0, 3000.0), 64)
    every = choose(("all",), gtab)
    assert set(every.models) == {name for name in MODELS if MODELS[name].why_not(gtab) is None}
    assert choose(("all", "dti", "tensor"), gtab).models == every.models
    assert set(possible_models(("auto",))) == {"dti", "dki", "msmt_csd", "csd", "gqi"}
    assert [wish.recipe for wish in wishes(("dti", "tensor"))] == [""]


def test_trackers_without_a_field_are_told() -> None:
    choice = choose(("tensor",), table_of_shells((1000.0,), 32))
    assert choice.follows("tensordet")
    assert not choice.follows("sdstream")
    assert "sdstream" in choice.untracked(("sdstream", "tensordet"))
    assert choice.trackers(("sdstream",)) == ()


def test_what_is_tracked_by_default_follows_the_best_field_there_is() -> None:
    oriented, few = choose(("auto",), table_of_shells((1000.0,), 32)), choose(("auto",), table_of_shells((1000.0,), 12))
    assert oriented.trackers(("auto", "sdstream", "ifod2")) == ("sdstream", "ifod2")
    assert oriented.untracked(("auto",)) == ""
    assert few.trackers(("auto",)) == ("tensordet",)
    assert "streamlines follow the tensor" in few.untracked(("auto",))


def test_a_recipe_of_ones_own_holds_settings_that_the_command_line_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = "x"\nmodels = ["dti", "csd"]\nn_streamlines = 7\nuncertainty = "laplace"\n')
    words = ["/in", "/out", "participant", "--recipe", str(path)]
    settings = parse([*words, "--uncertainty", "none"]).settings
    assert (settings.models, settings.n_streamlines, settings.uncertainty) == (("dti", "csd"), 7, "none")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("models = ", ConfigurationError),
        ('models = "dti"', ConfigurationError),
        ('models = ["dtx"]', ConfigurationError),
        ('models = ["dti"]\nnonsense = 1', ConfigurationError),
        (None, MissingInputError),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str | None, error: type[Exception]) -> None:
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error):
        parse(["/in", "/out", "participant", "--recipe", str(path)])


def test_recipes_lie_beside_the_code() -> None:
    assert {"auto", "tensor", "kurtosis", "microstructure", "orientations", "all"} == set(shipped())
    assert FOLDER.is_dir()


def test_the_bound_on_memory_holds_for_a_large_series_and_grows_with_the_data() -> None:
    settings = parse(["/in", "/out", "participant"]).settings
    small = step_memory_gb((96, 96, 60, 33), ("dti", "csd"), settings)
    assert max(small.values()) < 3
    large = step_memory_gb(HCP, tuple(MODELS), replace(settings, output_spaces=()), is_raw=False)
    assert max(large.values()) * 2**30 < 8e9, large
    for name in MODELS:
        bound = fit_memory_gb(HCP, MODELS[name], "bootstrap")
        assert fit_memory_gb((96, 96, 60, 33), MODELS[name]) < bound < 8, name
