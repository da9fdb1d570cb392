"""argv → frozen settings: the command line over a configuration file over defaults; whatever is not known is refused."""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tractode.cli import environment, folders, options
from tractode.cli.model_options import check_models
from tractode.cli.tracking_options import check_tracking
from tractode.errors import ConfigurationError, MissingInputError, TractodeError, UnknownLevelError, UsageError
from tractode.settings import ANATOMICAL, Settings, typed

_EPILOG = "Exit codes: 0 all complete and verified; 1 some participants failed; 16-18 dataset, level, labels; 64 usage; 65/66 input; 69 GPU, template; 71 memory; 73/74 output; 75 locked; 78 configuration. See docs/errors.md."
_MAX_THREADS = 8


class Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of leaving with code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"The command line cannot be read: {message}", id="E-USAGE", fix=f"see {self.prog} --help")


def build_parser(*, needs_positionals: bool = True) -> Parser:
    """The parser. With a configuration file the positional arguments may come from there."""
    from tractode.interfaces.methods import METHODS
    from tractode.models import MODELS

    parser = Parser(
        prog="tractode",
        description="Diffusion MRI as flows: from a BIDS dataset to maps, tractograms, transforms and reports.",
        epilog=_EPILOG,
        allow_abbrev=False,
        add_help=False,
    )
    nargs: dict[str, Any] = {} if needs_positionals else {"nargs": "?"}
    parser.add_argument("bids_dir", type=Path, help="root folder of the BIDS dataset; only read", **nargs)
    parser.add_argument("output_dir", type=Path, help="folder for derivatives and reports, outside bids_dir", **nargs)
    parser.add_argument("analysis_level", help="participant (or subject), group (or dataset)", **nargs)
    options.add_options(parser, tuple(MODELS), METHODS)
    return parser


@dataclass(frozen=True)
class Request:
    """What was asked for. ``asked`` names the settings that were given, by command line or file; ``notes`` are for the user."""

    settings: Settings
    asked: frozenset[str]
    notes: tuple[str, ...]


def parse(argv: Sequence[str]) -> Request:
    """argv as a request. ``device`` is as asked (``auto`` included): it is resolved where it is used.

    Raises
    ------
    UsageError, UnknownLevelError, ConfigurationError, MissingInputError
    """
    has_config = any(word == "--config-file" or word.startswith("--config-file=") for word in argv)
    parser = build_parser(needs_positionals=not has_config)
    namespace, unknown = parser.parse_known_intermixed_args(list(argv))
    if unknown:
        parser.error(_unknown_text(unknown, parser))
    given = {name: value for name, value in vars(namespace).items() if value is not None}
    notes: list[str] = []
    file_values = _read_config(given.pop("config_file")) if "config_file" in given else {}
    recipe_values = _read_recipe(given) if "recipe" in given else {}
    given = _without_aliases(given)
    values = _defaults() | recipe_values | file_values | given
    for name in ("bids_dir", "output_dir", "analysis_level"):
        if name not in values:
            parser.error(f"{name} is missing, on the command line and in the configuration file")
    asked = frozenset(recipe_values.keys() | file_values.keys() | given.keys())
    values = _settled(values, asked, notes)
    return Request(Settings(**values), asked, tuple(notes))


def _unknown_text(unknown: list[str], parser: argparse.ArgumentParser) -> str:
    spellings = [spelling for action in parser._actions for spelling in action.option_strings]
    close = [
        near
        for word in unknown
        if word.startswith("-")
        for near in difflib.get_close_matches(word.partition("=")[0], spellings, 1)
    ]
    hint = f" (did you mean {', '.join(close)}?)" if close else ""
    return f"unknown argument {' '.join(unknown)}{hint}"


def _defaults() -> dict[str, Any]:
    return {"device": "auto", "work_dir": folders.default_work_dir()}


def _without_aliases(given: dict[str, Any]) -> dict[str, Any]:
    """Options that are not settings of their own, turned into settings or dropped."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    given.pop("notrack", None)
    if given.pop("longitudinal", False):
        given.setdefault("subject_anatomical_reference", "unbiased")
    if given.pop("use_syn_sdc", "") == "error":
        given["require_sdc"] = True
    if "bids_filter_file" in given:
        given["bids_filters"] = _read_filters(given.pop("bids_filter_file"))
    if given.pop("no_tracking", False):
        if given.get("tracking"):
            raise ConfigurationError(
                "--no-tracking and --tracking contradict each other", id="E-CONFIG-TRACKING", fix="give one of them"
            )
        given["tracking"] = ()
    return given


def _settled(values: dict[str, Any], asked: frozenset[str], notes: list[str]) -> dict[str, Any]:
    """Defaults that depend on the machine or on other settings, and the conflicts among settings."""
    level = values["analysis_level"]
    if level not in options.LEVELS:
        near = difflib.get_close_matches(level, options.LEVELS, 1)
        raise UnknownLevelError(
            f"There is no analysis level {level!r}",
            id="E-LEVEL",
            needed="participant or group",
            fix=f"did you mean {near[0]}?" if near else "",
        )
    values["analysis_level"] = options.LEVELS[level]
    for name in (
        "participants",
        "sessions",
        "models",
        "tracking",
        "gentract_bundles",
        "output_spaces",
        "tractogram_formats",
        "debug",
        "ignore",
    ):
        if name in values:
            values[name] = tuple(dict.fromkeys(values[name]))
    for name in ("bids_dir", "output_dir", "work_dir", "gentract_weights", "codec_weights"):
        if values.get(name) is not None:
            # Steps run in folders of their own: a relative path would mean something else there.
            values[name] = Path(os.path.abspath(values[name]))
    for name in ("derivatives", "include", "include_ordered", "exclude", "sensitivity", "response"):
        if name in values:
            values[name] = tuple(os.path.abspath(path) for path in values[name])
    values.setdefault("nprocs", environment.count_cpus())
    values.setdefault("omp_nthreads", max(1, min(values["nprocs"] // 2, _MAX_THREADS)))
    if values["omp_nthreads"] > values["nprocs"]:
        notes.append(
            f"--omp-nthreads {values['omp_nthreads']} is more than --nprocs {values['nprocs']}; {values['nprocs']} threads are used."
        )
        values["omp_nthreads"] = values["nprocs"]
    if "all" in values.get("debug", ()):
        values["debug"] = tuple(mode for mode in options.DEBUG_MODES if mode != "all")
    if values.get("output_spaces") == ("native",):
        values["output_spaces"] = ()
    if "native" in values.get("output_spaces", ()):
        values["output_spaces"] = tuple(space for space in values["output_spaces"] if space != "native")
    _name_anatomy(values)
    if "trx" not in values.get("tractogram_formats", ("trx",)):
        values["tractogram_formats"] = ("trx", *values["tractogram_formats"])
    _check_conflicts(values, asked, notes)
    return values


def _name_anatomy(values: dict[str, Any]) -> None:
    """``anat`` in ``--output-spaces`` becomes the modality in use; a modality that is not in use is refused."""
    modality = values.get("anat_modality", "T1w")
    spaces = values.get("output_spaces", ())
    if other := [space for space in spaces if space in ANATOMICAL and space not in ("anat", modality)]:
        raise ConfigurationError(
            f"--output-spaces {other[0]} and --anat-modality {modality} contradict each other",
            id="E-CONFIG-SPACE",
            fix=f"say --anat-modality {other[0]}, or leave {other[0]} out of --output-spaces",
        )
    if "anat" in spaces and modality == "none":
        raise ConfigurationError(
            "--output-spaces anat and --anat-modality none contradict each other",
            id="E-CONFIG-SPACE",
            fix="give one of them",
        )
    if spaces:
        values["output_spaces"] = tuple(dict.fromkeys(modality if space == "anat" else space for space in spaces))


def _check_conflicts(values: dict[str, Any], asked: frozenset[str], notes: list[str]) -> None:
    def conflict(found: str, id: str, fix: str = "give one of them") -> NoReturn:
        raise ConfigurationError(found, id=id, fix=fix)

    if values.get("motion") == "none" and "outliers" in asked and values["outliers"] == "on":
        conflict(
            "--outliers on and --motion none contradict each other: slices are found while motion is",
            "E-CONFIG-OUTLIERS",
        )
    if values.get("require_sdc") and (values.get("sdc") == "none" or "sdc" in values.get("ignore", ())):
        conflict("--require-sdc and --sdc none (or --ignore sdc) contradict each other", "E-CONFIG-SDC")
    if values.get("dry_run") and values.get("reports_only"):
        conflict("--dry-run and --reports-only contradict each other", "E-CONFIG-MODE")
    if values.get("accept_gradients") and values.get("apply_gradient_fix"):
        conflict("--accept-gradients and --apply-gradient-fix contradict each other", "E-CONFIG-GRADIENTS")
    if values.get("output_resolution") and values.get("output_spaces", ("default",)) == ():
        conflict(
            "--output-resolution is for template-space maps and no template is asked for",
            "E-CONFIG-RESOLUTION",
            "leave it out, or name a template with --output-spaces",
        )
    check_models(values, asked, notes)
    check_tracking(values, asked, notes)


def _read_filters(path: Path) -> dict[str, Any]:
    try:
        filters = json.loads(_text_of(path, "filter", "E-FILTER-FILE"))
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"The filter file is not JSON (line {error.lineno}, column {error.colno}: {error.msg})",
            id="E-FILTER-JSON",
            path=path,
            fix="correct it at the place named",
        ) from None
    if not isinstance(filters, dict) or not all(isinstance(value, dict) for value in filters.values()):
        raise ConfigurationError(
            "The filter file does not hold query names with entities",
            id="E-FILTER-SHAPE",
            path=path,
            needed='{"dwi": {"acquisition": "64dir"}, "t1w": {"run": 1}}',
        )
    return filters


def _read_config(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, through the same checks as the command line's."""
    import tomllib

    try:
        table = tomllib.loads(_text_of(path, "configuration", "E-CONFIG-FILE"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"The configuration file is not TOML ({error})",
            id="E-CONFIG-TOML",
            path=path,
            fix="correct it at the place named",
        ) from None
    return _checked(table, path)


def _read_recipe(given: dict[str, Any]) -> dict[str, Any]:
    """The models of a recipe and the settings it holds; the option is taken out of ``given``."""
    from tractode.workflows.recipe import read_recipe

    name = given.pop("recipe")
    if "models" in given:
        raise ConfigurationError(
            "--recipe and --models contradict each other", id="E-CONFIG-RECIPE", fix="give one of them"
        )
    recipe = read_recipe(name)
    return {**_checked(recipe.settings, Path(name)), "models": recipe.models}


def _checked(table: dict[str, Any], path: Path) -> dict[str, Any]:
    """A TOML table as settings, each value through the check that the command line's goes through."""
    try:
        values = typed(table)
        for action in build_parser()._actions:
            if action.dest in values and callable(action.type) and action.type is not Path:
                values[action.dest] = _reread(action, values[action.dest])
    except TractodeError as error:
        raise ConfigurationError(error.found, id=error.id, needed=error.needed, fix=error.fix, path=path) from None
    except argparse.ArgumentTypeError as error:
        raise ConfigurationError(str(error), id="E-CONFIG-VALUE", path=path, fix="correct the value") from None
    return values


def _reread(action: argparse.Action, value: Any) -> Any:
    read: Any = action.type
    if isinstance(value, tuple):
        return tuple(read(item) for item in value)
    if value is None or action.dest == "memory_gb":  # the file holds GiB, the command line an amount with a unit
        return value
    return read(str(value))


def _text_of(path: Path, what: str, id: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise MissingInputError(
            f"The {what} file cannot be read ({reason})",
            id=id,
            path=path,
            needed="a text file that exists",
        ) from None
