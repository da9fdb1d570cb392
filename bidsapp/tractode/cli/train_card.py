"""``tractode-train card FOLDER --metrics FILE``: write the model card of trained weights again, with what was measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tractode.errors import InputDataError, MissingInputError


def add_parser(kinds: Any) -> None:
    """The options."""
    one = kinds.add_parser(
        "card", help="the model card of trained weights again, with measurements", allow_abbrev=False
    )
    one.add_argument("weights", metavar="FOLDER", type=Path, help="as tractode-train gentract or codec wrote it")
    one.add_argument("--metrics", metavar="FILE", type=Path, help="results as JSON or TOML: groups of rows of numbers")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from tractode.io.weights import read_weights, write_card
    from tractode.training.cards import gentract_card
    from tractode.training.codec_card import codec_card

    _, settings = read_weights(options.weights)
    if "training" not in settings:
        raise InputDataError(
            "These weights do not say how they were trained",
            id="E-TRAIN-CARD",
            path=options.weights,
            needed="weights of tractode-train gentract or codec",
        )
    card_of = codec_card if settings["training"].get("model") == "tractode" else gentract_card
    card = card_of(settings["training"], metrics_of(options.metrics) if options.metrics else None)
    write_card(options.weights, card)
    print(card)


def metrics_of(path: Path) -> dict[str, Any]:
    """Results of a benchmark as plain data."""
    import json
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingInputError(
            "There is no such file", id="E-TRAIN-NO-METRICS", path=path, needed="JSON or TOML"
        ) from error
    try:
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise InputDataError(f"The results cannot be read ({error})", id="E-TRAIN-METRICS", path=path) from error
    if not isinstance(found, dict):
        raise InputDataError("The results are no table of tables", id="E-TRAIN-METRICS", path=path)
    return found
