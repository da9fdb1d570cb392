"""Ready sizes and schedules for `tractode-train gentract`, and the problems and weights that they make.

``local`` is ours (`generative/gentract.py`); ``paper`` is the published model at its size (A. Sargood et al. 2025,
doi:10.48550/arXiv.2511.13183), ``small`` the same on two processor cores. The published model is fitted in two stages:
autoencoders first, then what looks at their latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tractode.errors import UsageError
from tractode.generative.gentract import GenTract
from tractode.generative.paper_model import RECIPES as PAPER_SIZES
from tractode.generative.paper_model import PaperModel, PaperSettings
from tractode.generative.streamline_network import NetworkSettings
from tractode.simulate.bundle_library import BundleLibrary
from tractode.training.coefficient_vae import RECIPES as VAE_TERMS
from tractode.training.coefficient_vae import VaeProblem, VaeTrainingSettings
from tractode.training.devices import Alone
from tractode.training.gentract import GenTractSettings, LocalProblem, Subjects
from tractode.training.gentract_paper import RECIPES as PAPER_TRAINING
from tractode.training.gentract_paper import PaperProblem, PaperTrainingSettings, normalise, volumes_of
from tractode.training.loop import LoopSettings, Problem, Progress, fit, generator_of

PATHS = ("bridge", "flow", "diffusion")
CHECKPOINT, VAE_CHECKPOINT = "checkpoint.safetensors", "autoencoders.safetensors"
# A stage's name, then what the loop tells.
Tell = Callable[[str], Progress]
# Tensors and settings to store, and what is said of the losses.
Trained = tuple[dict[str, Tensor], dict[str, Any], dict[str, float]]
_N_JUDGED = 32


@dataclass(frozen=True)
class LocalRecipe:
    """Ours. ``n_mean`` subjects make the mean field that the network compares with."""

    subjects: int
    loop: LoopSettings
    batch: GenTractSettings = field(default_factory=GenTractSettings)
    network: NetworkSettings | None = None
    path: str = "bridge"
    n_mean: int = 40

    def train(self, run: Run, tell: Tell) -> Trained:
        problem = self.problem(run)
        fit(problem, self.loop, run.out / CHECKPOINT, tell("fitting"), run.workers)
        library = run.library
        simulated = tuple(library.is_simulated.tolist())
        tensors, settings = GenTract(problem.module, problem.source, library.names, simulated, self.path).weights()
        if run.held is None or run.workers.rank:
            return tensors, settings, {}
        learned = mean_loss(problem)
        problem.subjects = run.held
        return tensors, settings, {"learned": learned, "held_out": mean_loss(problem)}

    def problem(self, run: Run) -> LocalProblem:
        batch = replace(self.batch, path=self.path)  # type: ignore[arg-type]
        network = replace(self.network, gain=0.125 if self.path == "bridge" else 1.0) if self.network else None
        return LocalProblem(run.subjects, run.library, network, batch, run.device, self.loop.seed, self.n_mean)


@dataclass(frozen=True)
class PublishedRecipe:
    """The published model. Its subjects' volumes are all in memory while the autoencoders are fitted."""

    subjects: int
    loop: LoopSettings
    vae_loop: LoopSettings
    model: PaperSettings
    terms: VaeTrainingSettings
    batch: PaperTrainingSettings
    path: str = "diffusion"
    n_mean: int = 0

    def train(self, run: Run, tell: Tell) -> Trained:
        model = self.start(run)
        subjects = lazily(run.subjects)
        volumes = volumes_of(model, subjects)
        stage: Problem = VaeProblem(volumes, model.vaes, self.terms, self.loop.seed)
        stage.module.to(run.device)
        fit(stage, self.vae_loop, run.out / VAE_CHECKPOINT, tell("autoencoders"), run.workers)
        del volumes, stage
        model.vaes.requires_grad_(False)
        problem = PaperProblem(subjects, model, self.batch)
        fit(problem, self.loop, run.out / CHECKPOINT, tell("fitting"), run.workers)
        trained = dict(model.state_dict()), {"published": model.settings.record()}
        if run.held is None or run.workers.rank:
            return *trained, {}
        held = PaperProblem(lazily(run.held), model, self.batch)
        return *trained, {"learned": mean_loss(problem), "held_out": mean_loss(held)}

    def start(self, run: Run) -> PaperModel:
        """The untrained model, its scales those of the subjects."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.loop.seed)
            model = PaperModel(
                replace(self.model, paradigm="diffusion" if self.path == "diffusion" else "flow_matching")
            )
        return normalise(model, lazily(run.subjects)).to(run.device)


Recipe = LocalRecipe | PublishedRecipe

RECIPES: Mapping[str, Recipe] = {
    "local": LocalRecipe(
        subjects=170,
        loop=LoopSettings(steps=6000, learning_rate=1.5e-3, warm_up=50, average=0.99, checkpoint_every=100),
        batch=GenTractSettings(n_lines=768, n_judged=128),
    ),
    "small": PublishedRecipe(
        subjects=100,
        loop=PAPER_TRAINING["small"].loop,
        vae_loop=LoopSettings(steps=3000, learning_rate=1e-3, warm_up=50, checkpoint_every=250),
        model=PAPER_SIZES["small"],
        terms=VAE_TERMS["small"],
        batch=PAPER_TRAINING["small"].batch,
    ),
    "paper": PublishedRecipe(
        subjects=782,
        loop=PAPER_TRAINING["paper"].loop,
        # 28 coefficients of 782 subjects, each seen 100 times.
        vae_loop=LoopSettings(steps=100 * 782 * 28, learning_rate=1e-4, warm_up=0, checkpoint_every=5000),
        model=PAPER_SIZES["paper"],
        terms=replace(VAE_TERMS["paper"], perceptual=0.0),  # its weights are not to be had without a download
        batch=PAPER_TRAINING["paper"].batch,
    ),
}


@dataclass(frozen=True)
class Run:
    """What a recipe is carried out on; ``held`` is only looked at in the end."""

    subjects: Subjects
    library: BundleLibrary
    out: Path
    device: torch.device
    workers: Alone
    held: Subjects | None = None


@torch.no_grad()
def mean_loss(problem: Problem) -> float:
    """Over steps that training never draws, the same at every call."""
    return sum(float(problem.loss(generator_of(0, step, rank=997))) for step in range(_N_JUDGED)) / _N_JUDGED


def lazily(subjects: Subjects) -> list[Any]:
    """The subjects one after another, each read when it is asked for."""
    return [_Lazy(subjects, number) for number in range(len(subjects))]


class _Lazy:
    """A subject that is read anew at every look, so that hundreds need no memory."""

    def __init__(self, subjects: Subjects, number: int) -> None:
        self._subjects, self._number = subjects, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subjects[self._number], name)


def recipe_of(
    name: str,
    path: str | None = None,
    subjects: int | None = None,
    steps: int | None = None,
    minutes: float = 0.0,
    seed: int = 0,
    bfloat16: bool = False,
) -> Recipe:
    """The recipe of that name with what was asked for instead of its own.

    ``steps`` and ``minutes`` are those of the last stage; autoencoders take a tenth of the time, and of their steps as large a
    share as the last stage of its own.

    Raises
    ------
    UsageError
        E-TRAIN-PATH: the published model starts at noise.
    """
    recipe = RECIPES[name]
    if isinstance(recipe, PublishedRecipe) and path == "bridge":
        raise UsageError(
            f"The recipe {name} has no path called bridge",
            id="E-TRAIN-PATH",
            needed="flow or diffusion, or --recipe local",
        )
    share = 1.0 if steps is None else steps / recipe.loop.steps
    loop = replace(
        recipe.loop, steps=steps or recipe.loop.steps, minutes=float(minutes), seed=seed, bfloat16=bfloat16,
        warm_up=min(recipe.loop.warm_up, (steps or recipe.loop.steps) // 10),
    )  # fmt: skip
    recipe = replace(
        recipe, loop=loop, path=path or recipe.path, subjects=subjects if subjects is not None else recipe.subjects
    )
    if isinstance(recipe, LocalRecipe):
        return recipe
    vae_steps = max(1, round(recipe.vae_loop.steps * share))
    vae_loop = replace(
        recipe.vae_loop, steps=vae_steps, minutes=minutes / 10, seed=seed, bfloat16=bfloat16,
        warm_up=min(recipe.vae_loop.warm_up, vae_steps // 10),
    )  # fmt: skip
    return replace(recipe, vae_loop=vae_loop, loop=replace(loop, minutes=minutes * 0.9))


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """The schedule for the settings beside the weights."""
    facts: dict[str, Any] = {"loop": asdict(recipe.loop), "path": recipe.path}
    if isinstance(recipe, PublishedRecipe):
        facts["autoencoders"] = asdict(recipe.vae_loop)
    return facts
