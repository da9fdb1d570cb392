"""``tractode-train contrastive LABELMAP… --out FOLDER``: descriptors that are alike in any two contrasts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tractode.cli.small_command import positive
from tractode.cli.train_progress import shown
from tractode.errors import MissingInputError, ResourceUnavailableError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from tractode.training.contrastive import ContrastiveProblem
    from tractode.training.loop import LoopSettings

_CHECKPOINT = "checkpoint.safetensors"


def add_parser(kinds: Any) -> None:
    """The options."""
    one = kinds.add_parser("contrastive", help="descriptors that are alike in any two contrasts", allow_abbrev=False)
    add = one.add_argument
    add(
        "labels", metavar="LABELMAP", type=Path, nargs="+", help="label maps with FreeSurfer's codes, about 1 mm, NIfTI"
    )
    add("--out", metavar="FOLDER", type=Path, required=True, help="weights, card and checkpoint are written here")
    add(
        "--leave-out",
        metavar="LABELMAP",
        type=Path,
        nargs="+",
        default=[],
        help="maps to score the result on, not to fit",
    )
    add("--steps", type=positive, default=1200, help="steps of the descent (default: 1200)")
    add("--learning-rate", type=float, default=3e-3, help="at its highest (default: 0.003)")
    add("--crop", type=positive, default=40, help="edge of the crops, voxels of 2 mm (default: 40)")
    add("--seed", type=int, default=0, help="same seed, same weights on one machine (default: 0)")
    add("--device", default="cpu", help="cpu, or a GPU such as cuda:0 (default: cpu)")
    add("--nthreads", metavar="N", type=positive, default=1, help="processor threads (default: 1)")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    for path in (*options.labels, *options.leave_out):
        if not path.is_file():
            raise MissingInputError("There is no such file", id="E-TRAIN-LABELS", path=path, needed="a label map")
    both = {path.resolve() for path in options.labels} & {path.resolve() for path in options.leave_out}
    if both:
        raise UsageError(f"{next(iter(both)).name} is both fitted and left out", id="E-TRAIN-LEAVE-OUT")
    from tractode.cli import environment

    environment.prepare()
    environment.set_threads(options.nthreads)
    import torch

    torch.set_num_threads(options.nthreads)
    if options.device != "cpu" and not torch.cuda.is_available():
        raise ResourceUnavailableError(
            f"There is no device {options.device!r} here", id="E-TRAIN-DEVICE", fix="leave --device out"
        )
    from tractode.training.contrastive import ContrastiveProblem, ContrastiveSettings
    from tractode.training.loop import LoopSettings, fit

    problem = ContrastiveProblem(
        [_read(path) for path in options.labels],
        [path.name for path in options.labels],
        settings=ContrastiveSettings(crop=options.crop),
        device=options.device,
        seed=options.seed,
    )
    loop = LoopSettings(steps=options.steps, learning_rate=options.learning_rate, seed=options.seed)
    with shown() as tell:
        fit(problem, loop, options.out / _CHECKPOINT, tell("fitting"))
    _finish(problem, loop, options)


def _read(path: Path) -> Tensor:
    import torch

    from tractode.io.nifti import read_volume

    return read_volume(path, path.name)[0].values[0].round().to(torch.int64)


def _finish(problem: ContrastiveProblem, loop: LoopSettings, options: argparse.Namespace) -> None:
    """Weights, and a card with the scores on the people left out."""
    from dataclasses import asdict

    from tractode.io.weights import read_weights, write_weights
    from tractode.registration.metrics.contrastive import Contrastive
    from tractode.training.descriptor_scores import Scores, as_markdown, compare, mean

    record = {**problem.record(), "loop": asdict(loop)}
    tensors = problem.module.state_dict()
    write_weights(options.out, tensors, record, "")
    stored, _ = read_weights(options.out)  # as float16 left them: those are judged
    learned = Contrastive.from_weights(stored, record["network"])
    scores: Scores = {}
    if options.leave_out:
        scores = mean([compare(learned, _read(path), seed=n) for n, path in enumerate(options.leave_out)])
    from tractode.training.cards import contrastive_card

    n = sum(tensor.numel() for tensor in tensors.values())
    table = as_markdown(scores) if scores else "Not scored: no label map was left out."
    card = contrastive_card(n, record, [path.name for path in options.leave_out], table)
    write_weights(options.out, tensors, record, card)
    print(card)
