"""``tractode-train codec --model NAME --atlas FOLDER --out FOLDER``: a bundle codec, ours or one of the published ones."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tractode.cli.small_command import positive
from tractode.cli.train_progress import shown
from tractode.cli.train_run import begin, command_of, descent_of, minutes, need_atlas
from tractode.errors import UsageError

if TYPE_CHECKING:
    import torch

    from tractode.training.codec_recipes import CodecRun, Recipe
    from tractode.training.loop import Progress

MODELS = ("tractode", "ae", "vae", "vq", "vq_ema", "vq_diff")
_RATE = {"channels": "channels", "bits": "bits", "codebook": "size", "tables": "tables"}


def add_parser(kinds: Any) -> None:
    """The options."""
    one = kinds.add_parser("codec", help="a codec of streamlines", allow_abbrev=False)
    add = one.add_argument
    add(
        "--model",
        choices=MODELS,
        default="tractode",
        help="tractode: our own; else a published one (default: tractode)",
    )
    add(
        "--recipe", metavar="NAME",
        help="of a published model: faithful (as published) or corrected (stated rate, no noise in use; default); ours has its own",
    )  # fmt: skip
    add(
        "--atlas",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="tractograms in MNI space, one a bundle, named for it",
    )
    add("--out", metavar="FOLDER", type=Path, required=True, help="weights, card and checkpoint are written here")
    add("--steps", metavar="N", type=positive, help="steps of the descent (default: the recipe's)")
    add("--minutes", metavar="M", type=minutes, default=0.0, help="time the descent may take, all its parts together")
    add("--batch", metavar="N", type=positive, help="groups of 64 streamlines a step (default: the recipe's)")
    add("--persons", metavar="N", type=positive, help="persons varied from the atlas (default: the recipe's)")
    add("--channels", metavar="N", type=positive, help="ae, vae (corrected): numbers stored at each of 256 places")
    add("--bits", metavar="N", type=positive, help="ae, vae (corrected): bits of each number")
    add("--codebook", metavar="N", type=positive, help="vq, vq_ema, vq_diff (corrected): entries of a table")
    add("--tables", metavar="N", type=positive, help="vq, vq_ema, vq_diff (corrected): tables that share the channels")
    add(
        "--subjects",
        metavar="N",
        type=int,
        help="ours: simulated participants that are tracked to learn what is no bundle (default: 25)",
    )
    add(
        "--cache",
        metavar="FOLDER",
        type=Path,
        help="ours: these participants are kept here (default: the folder subjects in --out)",
    )
    add("--seed", type=int, default=0, help="same seed, same weights on one machine (default: 0)")
    add("--device", default="cpu", help="cpu, auto, or a GPU such as cuda:0 (default: cpu)")
    add(
        "--bfloat16",
        action="store_true",
        help="numbers of half the digits inside the networks: faster where processors know them",
    )
    add("--nthreads", metavar="N", type=positive, default=1, help="processor threads (default: 1)")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    need_atlas(options.atlas)
    device = begin(options.device, options.nthreads)
    with shown() as tell:
        _train(options, device, tell)


def _train(options: argparse.Namespace, device: torch.device, tell: Callable[[str], Progress]) -> None:
    from tractode.io.weights import write_weights
    from tractode.training import tract_subjects
    from tractode.training.cards import ATLAS_LICENCE
    from tractode.training.codec_recipes import CodecRun

    recipe = _recipe(options)
    options.out.mkdir(parents=True, exist_ok=True)
    told = CodecRun(tract_subjects.read_library(options.atlas), options.out, device)
    tensors, settings = recipe.train(options.model, told, tell)
    facts = _facts(options, told, tensors, settings)
    training = {"model": options.model, "recipe": options.recipe or recipe.name, **recipe.facts(), **facts}
    card = recipe.card(training)
    write_weights(
        options.out, tensors, {**settings, "training": training}, card, ATLAS_LICENCE if training["is_hcp1065"] else ""
    )
    print(card)


def _recipe(options: argparse.Namespace) -> Recipe:
    """What was asked for.

    Raises
    ------
    UsageError
        E-TRAIN-RECIPE: there is no such recipe; E-TRAIN-RATE: the model has no such setting.
    """
    from tractode.training.codec_recipes import PAPER_RECIPES, paper_recipe

    rate = {key: value for word, key in _RATE.items() if (value := getattr(options, word)) is not None}
    if options.model == "tractode":
        if options.recipe or rate or options.batch or options.persons or options.bfloat16:
            raise UsageError(
                "Our own codec has one recipe", id="E-TRAIN-RECIPE", needed="--steps, --minutes and --seed only"
            )
        from tractode.training.codec import own_recipe

        return own_recipe(options.steps, options.minutes, options.seed, options.subjects, options.cache)
    name = options.recipe or PAPER_RECIPES[-1]
    if name not in PAPER_RECIPES:
        raise UsageError(f"There is no recipe {name}", id="E-TRAIN-RECIPE", needed=" or ".join(PAPER_RECIPES))
    return paper_recipe(
        options.model, name, options.steps, options.minutes, options.seed, options.batch, options.persons,
        options.bfloat16, rate,
    )  # fmt: skip


def _facts(
    options: argparse.Namespace, told: CodecRun, tensors: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """How the weights came about, for the settings beside them."""
    import torch

    from tractode.generative import CODECS
    from tractode.training.cards import is_hcp1065
    from tractode.training.codec_recipes import CHECKPOINT

    checkpoint = options.out / CHECKPOINT
    return {
        "command": command_of(options.words),
        "atlas": options.atlas.resolve().name,
        "is_hcp1065": is_hcp1065(told.library.names),
        "n_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "bits_per_streamline": CODECS[options.model].from_weights(tensors, settings).bits_per_streamline,
        "seed": options.seed,
        "device": f"{options.nthreads} processor thread{'s' if options.nthreads > 1 else ''}"
        if told.device.type == "cpu"
        else torch.cuda.get_device_name(told.device),
        "torch": torch.__version__,
        **descent_of(checkpoint, 6),
    }
