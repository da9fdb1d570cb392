"""The options of ``tractode`` for diffusion models: which, with what response, with what uncertainty."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tractode.cli.words import one_of, positive
from tractode.errors import ConfigurationError, MissingInputError

UNCERTAINTIES = ("none", "laplace", "bootstrap")
_MOST_TISSUES = 3


def add_models(add: Callable[..., Any], models: tuple[str, ...]) -> None:
    """Models by name or by recipe."""
    from tractode.workflows.recipe import shipped

    add(
        "--models",
        dest="models",
        nargs="+",
        action="extend",
        type=model_entry,
        metavar="MODEL",
        help=f"diffusion models ({', '.join(models)}), or sets of them ({', '.join(shipped())}); default: auto, what each "
        "run's data support. A model asked for by name is refused where they do not support it; 'dki?' is left out there, "
        "'msmt_csd@2|csd' is the first that they support (the one only with two shells)",
    )
    add(
        "--recipe",
        "--recon-spec",
        dest="recipe",
        metavar="NAME|FILE",
        help="a recipe: TOML with models and any settings; the command line overrides it",
    )
    add(
        "--dti-largest-b",
        dest="dti_largest_b",
        type=positive,
        metavar="B",
        help="the largest b-value (s/mm²) of the volumes that the tensor is fitted to (default: 1500 where that leaves "
        "directions enough, else the next shell)",
    )
    add(
        "--uncertainty",
        dest="uncertainty",
        type=one_of("method", UNCERTAINTIES),
        metavar="{none,laplace,bootstrap}",
        help="the standard deviation of every map, as maps: Laplace's approximation (fast) or residual bootstrap (default: none)",
    )
    add(
        "--response",
        dest="response",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="response functions in MRtrix3's text format instead of the scan's own: white matter, for several tissues also "
        "grey matter and CSF (two files: white matter, CSF)",
    )
    add(
        "--response-group",
        dest="response_group",
        action="store_true",
        help="the responses that the group level averaged over the participants in the output folder",
    )
    add(
        "--mtnormalise",
        dest="mtnormalise",
        action="store_true",
        help="bring the tissues of multi-tissue deconvolution to one scale over the brain; these maps are then followed",
    )
    add(
        "--fixels",
        dest="fixels",
        action="store_true",
        help="the lobes of every orientation distribution as maps: up to three peaks a voxel, the fibre density and dispersion "
        "of each, and their number",
    )


def model_entry(text: str) -> str:
    """An entry of ``--models``."""
    from tractode.workflows.recipe import problem_with

    if (problem := problem_with(text)) is not None:
        raise argparse.ArgumentTypeError(problem)
    return text


def check_models(values: dict[str, Any], asked: frozenset[str], notes: list[str]) -> None:
    """What is asked of models that are not fitted, and response files that are not there."""
    from tractode.workflows.recipe import possible_models

    if values.get("response") and values.get("response_group"):
        _conflict("--response and --response-group contradict each other", "give one of them")
    if len(values.get("response", ())) > _MOST_TISSUES:
        _conflict(f"--response names {len(values['response'])} files", "give one (white matter), two or three")
    for path in values.get("response", ()):
        if not Path(path).is_file():
            raise MissingInputError(
                "There is no such response file", id="E-RESPONSE-MISSING", path=Path(path), fix="check the path"
            )
    models = possible_models(values.get("models", ("auto",)))
    for name in sorted(asked & {"response", "response_group"}):
        if not {"csd", "msmt_csd"} & set(models):
            notes.append(f"--{name.replace('_', '-')} is for csd and msmt_csd and has no effect here.")
    if "dti_largest_b" in asked and "dti" not in models:
        notes.append("--dti-largest-b is for dti and has no effect here.")
    if values.get("mtnormalise") and "msmt_csd" not in models:
        notes.append("--mtnormalise is for msmt_csd and has no effect here.")
    if values.get("fixels") and not _any_orientations(models):
        notes.append("--fixels is for models of orientations and has no effect here.")


def _any_orientations(models: tuple[str, ...]) -> bool:
    from tractode.contracts import OrientationModel
    from tractode.models import MODELS

    return any(issubclass(MODELS[name], OrientationModel) for name in models)


def _conflict(found: str, fix: str) -> NoReturn:
    raise ConfigurationError(found, id="E-CONFIG-RESPONSE", fix=fix)
