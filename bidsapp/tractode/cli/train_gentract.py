"""``tractode-train gentract --atlas FOLDER --recipe NAME --out FOLDER``: a generator of streamlines."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tractode.cli.small_command import positive
from tractode.cli.train_progress import shown, silent
from tractode.cli.train_run import begin, command_of, descent_of, minutes, need_atlas
from tractode.errors import MissingInputError, UsageError

if TYPE_CHECKING:
    import torch

    from tractode.simulate.bundle_library import BundleLibrary
    from tractode.training.cohort import Cohort
    from tractode.training.devices import Alone
    from tractode.training.gentract_recipes import Recipe
    from tractode.training.loop import Progress
    from tractode.training.subject_pool import Synthetic

_NOT_LEARNED = ("source.knots", "source.bundle", "network.mean", "mean", "deviation")
RECIPES, PATHS = ("local", "small", "paper"), ("bridge", "flow", "diffusion")


def add_parser(kinds: Any) -> None:
    """The options."""
    one = kinds.add_parser("gentract", help="a generator of whole streamlines", allow_abbrev=False)
    add = one.add_argument
    add(
        "--atlas",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="tractograms in MNI space, one a bundle, named for it",
    )
    add("--out", metavar="FOLDER", type=Path, required=True, help="weights, card and checkpoints are written here")
    add(
        "--recipe", choices=RECIPES, default="local",
        help="local: tractode's own; paper: the published model; small: the same on two cores (default: local)",
    )  # fmt: skip
    add(
        "--path",
        choices=PATHS,
        help="where the flow starts: at the atlas, at noise, or diffusion (default: the recipe's)",
    )
    add(
        "--subjects",
        metavar="N",
        type=_count,
        help="simulated participants; 0 for real ones only (default: the recipe's)",
    )
    add("--steps", metavar="N", type=positive, help="steps of the descent (default: the recipe's)")
    add("--minutes", metavar="M", type=minutes, default=0.0, help="time the descent may take, all its parts together")
    add(
        "--cache", metavar="FOLDER", type=Path,
        help="simulated participants are kept here, for other runs too (default: the folder subjects in --out)",
    )  # fmt: skip
    add("--makers", metavar="N", type=positive, default=1, help="processes that simulate participants (default: 1)")
    add(
        "--derivatives", metavar="DIR", type=Path, nargs="+", default=[],
        help="output folders of tractode: real participants to learn from (FODs, transforms, tractograms)",
    )  # fmt: skip
    add(
        "--tractograms",
        metavar="PATTERN",
        default="*",
        help="of those folders: names to use, such as '*_desc-filtered_*'",
    )
    add("--seed", type=int, default=0, help="same seed, same weights on one machine (default: 0)")
    add("--device", default="cpu", help="cpu, auto, or a GPU such as cuda:0 (default: cpu)")
    add("--devices", metavar="N", type=positive, default=1, help="how many of them (default: 1; needs tractode[train])")
    add("--bfloat16", action="store_true", help="on a GPU: half the digits in matrix products, faster")
    add("--nthreads", metavar="N", type=positive, default=1, help="processor threads (default: 1)")
    one.set_defaults(run=run)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


@dataclass(frozen=True, eq=False)
class Job:
    """What every process needs to know; it is sent to them."""

    options: argparse.Namespace
    recipe: Recipe
    library: BundleLibrary
    synthetic: Synthetic | None
    learned: Cohort | None
    held: Cohort | None
    counts: dict[str, tuple[int, int]]


def run(options: argparse.Namespace) -> None:
    need_atlas(options.atlas)
    for folder in options.derivatives:
        if not folder.is_dir():
            raise MissingInputError(
                "There is no such folder", id="E-COHORT-NONE", path=folder, needed="output of tractode"
            )
    if options.subjects == 0 and not options.derivatives:
        raise UsageError(
            "There is nobody to learn from", id="E-TRAIN-NOBODY", needed="--subjects above 0, or --derivatives"
        )
    device = begin(options.device, options.nthreads)
    with shown() as tell:
        _prepare_and_train(options, device, tell)


def _prepare_and_train(options: argparse.Namespace, device: torch.device, tell: Callable[[str], Progress]) -> None:
    from tractode.training.devices import launch
    from tractode.training.gentract_recipes import recipe_of
    from tractode.training.subject_pool import Makers, Synthetic, cache_of
    from tractode.training.tract_subjects import read_library

    recipe = recipe_of(
        options.recipe, options.path, options.subjects, options.steps, options.minutes, options.seed, options.bfloat16
    )
    options.out.mkdir(parents=True, exist_ok=True)
    library = read_library(options.atlas)
    learned, held, counts = _cohort(options, library, tell)
    cache = cache_of(options.cache or options.out / "subjects", library, options.seed)
    synthetic = Synthetic(cache, recipe.subjects) if recipe.subjects else None
    job = Job(options, recipe, library, synthetic, learned, held, counts)
    # Where steps decide, the same command gives the same weights: every subject is there before the first step. Where the
    # clock decides, the subjects that are missing are made while training goes on.
    n_first = min(recipe.subjects, max(recipe.n_mean, 1)) if options.minutes else recipe.subjects
    with Makers(options.atlas, cache, recipe.subjects, options.makers) as makers:
        if n_first:
            bar = tell("simulating")
            makers.wait(n_first, lambda n: bar(n - 1, n_first, float("nan")))
        if options.devices == 1:
            _fit(job, device, tell)
        else:
            launch(_work, options.devices, device, job)


def _cohort(
    options: argparse.Namespace, library: BundleLibrary, tell: Callable[[str], Progress]
) -> tuple[Cohort | None, Cohort | None, dict[str, tuple[int, int]]]:
    """Real participants to learn from and to hold out, if there are any, and what was used of each scan."""
    if not options.derivatives:
        return None, None, {}
    from tractode.simulate.tract_subject import visible
    from tractode.training.cohort import Cohort
    from tractode.training.cohort_files import find_scans
    from tractode.training.tract_subjects import template_anatomy

    scans, left_out = find_scans(options.derivatives, options.tractograms)
    cohort = Cohort(scans, library, visible(template_anatomy()), options.out / "cohort")
    bar = tell("real participants")
    counts, unread = cohort.prepare(lambda n: bar(n, len(scans), float("nan")))
    for one in (*left_out, *unread):
        print(f"{one.name} is not used: {one.reason}")
    learned, held = cohort.split()
    if not learned.scans:  # too few to hold anybody out
        learned, held = cohort, learned
    return learned, held if held.scans else None, counts


def _work(workers: Alone, device: torch.device, job: Job) -> None:
    """One of several processes."""
    import torch

    torch.set_num_threads(job.options.nthreads)
    if workers.rank:
        _fit(job, device, silent, workers)
        return
    with shown() as tell:
        _fit(job, device, tell, workers)


def _fit(job: Job, device: torch.device, tell: Callable[[str], Progress], workers: Alone | None = None) -> None:
    from tractode.training.devices import Alone
    from tractode.training.gentract_recipes import Run
    from tractode.training.subject_pool import pool_of

    workers = workers or Alone()
    subjects = pool_of(job.synthetic, job.learned)
    told = Run(subjects, job.library, job.options.out, device, workers, job.held)
    tensors, settings, losses = job.recipe.train(told, tell)
    if workers.rank == 0:
        _finish(job, device, tensors, settings, losses)


def _finish(
    job: Job, device: torch.device, tensors: dict[str, Any], settings: dict[str, Any], losses: dict[str, float]
) -> None:
    """Weights, their terms, and the card."""
    from tractode.io.weights import write_weights
    from tractode.training.cards import ATLAS_LICENCE, gentract_card

    training = _facts(job, device, losses)
    training["n_parameters"] = sum(tensor.numel() for name, tensor in tensors.items() if name not in _NOT_LEARNED)
    card = gentract_card(training)
    licence = ATLAS_LICENCE if training["is_hcp1065"] else ""
    write_weights(job.options.out, tensors, {**settings, "training": training}, card, licence)
    print(card)


def _facts(job: Job, device: torch.device, losses: dict[str, float]) -> dict[str, Any]:
    """How the weights came about, for the settings beside them."""
    import torch

    from tractode.training.cards import is_hcp1065
    from tractode.training.gentract_recipes import CHECKPOINT, facts_of

    options, checkpoint = job.options, job.options.out / CHECKPOINT
    scans = [scan.name for scan in job.learned.scans] if job.learned else []
    used = [job.counts[name] for name in scans]
    return {
        "recipe": options.recipe,
        **facts_of(job.recipe),
        "command": command_of(options.words),
        "atlas": options.atlas.resolve().name,
        "is_hcp1065": is_hcp1065(job.library.names),
        "n_bundles": len(job.library.names),
        "n_synthetic": job.recipe.subjects,
        "n_participants": len(job.learned.participants) if job.learned else 0,
        "n_scans": len(scans),
        "n_held_out": len(job.held.participants) if job.held else 0,
        "n_paired": sum(paired for paired, _ in used),
        "n_read": sum(read for _, read in used),
        "reach_mm": job.learned.settings.reach_mm if job.learned else 0.0,
        "seed": options.seed,
        "device": _name(device, options.devices),
        "torch": torch.__version__,
        "losses": {name: round(value, 5) for name, value in losses.items()},
        **descent_of(checkpoint, 5),
    }


def _name(device: torch.device, n: int) -> str:
    import torch

    if device.type == "cuda":
        return f"{n} × {torch.cuda.get_device_name(device)}"
    threads = n * torch.get_num_threads()
    return f"{threads} processor thread{'s' if threads > 1 else ''}"
