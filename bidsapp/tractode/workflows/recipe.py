"""Recipes: named or written sets of models with their settings, as TOML. The shipped ones (``recipes/*.toml``) are presets of ``--models``.

A recipe holds ``description``, ``models`` and any setting by its name in `Settings`. An entry of ``models`` is a model
(refused where the data cannot support it), a model with ``?`` (left out there), models with ``|`` between them (the first
that the data support; with ``?`` at the end, none if there is none), another recipe's name, or ``*`` (all, each as with ``?``).
``msmt_csd@2`` is a model that is taken only where there are at least two shells.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tractode.errors import ConfigurationError, MissingInputError
from tractode.models import MODELS

FOLDER = Path(__file__).parent / "recipes"
_EVERY = "*"


@dataclass(frozen=True)
class Wanted:
    """One wish: the first of ``names`` that the data support and that has the shells it wants.

    ``recipe`` is where it stands, empty if it was asked for itself; ``shells`` says how many shells a name wants, if any.
    """

    names: tuple[str, ...]
    is_optional: bool = False
    recipe: str = ""
    shells: tuple[int, ...] = ()

    def shells_of(self, name: str) -> int:
        """The number of shells below which a name is passed over."""
        return dict(zip(self.names, self.shells, strict=False)).get(name, 0)


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says; ``settings`` without ``models``."""

    name: str
    description: str
    models: tuple[str, ...]
    settings: dict[str, Any]


@cache
def shipped() -> tuple[str, ...]:
    """Names of the recipes that came with the installation."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by its name, or one from a file.

    Raises
    ------
    MissingInputError
        There is no such recipe or file.
    ConfigurationError
        It is no recipe, or names a model that does not exist.
    """
    name = str(name_or_path)
    path = FOLDER / f"{name}.toml" if name in shipped() else Path(name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(
            f"The recipe cannot be read ({getattr(error, 'strerror', None) or 'it is not UTF-8 text'})",
            id="E-RECIPE-FILE",
            path=path,
            needed=f"a TOML file, or one of {', '.join(shipped())}",
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"The recipe is not TOML ({error})",
            id="E-RECIPE-TOML",
            path=path,
            fix="correct the file at the place named",
        ) from None
    models = table.pop("models", None)
    if not isinstance(models, list) or not models or not all(isinstance(entry, str) for entry in models):
        raise ConfigurationError(
            "The recipe names no models",
            id="E-RECIPE-MODELS",
            path=path,
            needed='models = ["dti", "dki?", "msmt_csd@2|csd"]',
        )
    for entry in models if path.parent != FOLDER else ():
        if (problem := problem_with(entry)) is not None:
            raise ConfigurationError(problem, id="E-RECIPE-MODEL", path=path)
    description = str(table.pop("description", ""))
    return Recipe(path.stem, description, tuple(models), table)


def problem_with(entry: str) -> str | None:
    """What is wrong with an entry of ``models``, in words; ``None`` if nothing is."""
    if entry == _EVERY or entry in shipped():
        return None
    for part in entry.removesuffix("?").split("|"):
        name, at, shells = part.partition("@")
        if at and not shells.isdigit():
            return f"{part!r} does not say a number of shells, as msmt_csd@2 does"
        if name not in MODELS:
            known = (*MODELS, *shipped())
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"there is no model or recipe named {name!r}; choose from {', '.join(known)}{hint}"
    return None


def wishes(entries: Iterable[str]) -> tuple[Wanted, ...]:
    """Entries of ``models`` in full, the shipped recipes among them put in place; what was asked for before is not repeated."""
    found: dict[tuple[tuple[str, int], ...], Wanted] = {}
    for wish in _expanded(entries, ""):
        key = tuple((name, wish.shells_of(name)) for name in wish.names)
        known = found.get(key)
        # Asked for by name as well as by a recipe that would leave it out: then it is wanted.
        if known is None or (known.is_optional and not wish.is_optional):
            found[key] = wish
    return tuple(found.values())


def possible_models(entries: Iterable[str]) -> tuple[str, ...]:
    """Every model that the entries may lead to, whatever the data."""
    return tuple(dict.fromkeys(name for wish in wishes(entries) for name in wish.names))


def _expanded(entries: Iterable[str], recipe: str) -> list[Wanted]:
    wanted = []
    for entry in entries:
        if entry == _EVERY:
            wanted += [Wanted((name,), True, recipe) for name in MODELS]
        elif entry in shipped():
            wanted += _expanded(read_recipe(entry).models, entry)
        else:
            parts = [part.partition("@") for part in entry.removesuffix("?").split("|")]
            names, shells = tuple(part[0] for part in parts), tuple(int(part[2] or 0) for part in parts)
            wanted.append(Wanted(names, entry.endswith("?"), recipe, shells))
    return wanted
