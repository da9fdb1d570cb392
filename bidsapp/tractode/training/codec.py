"""Fitting the bundle codec, then what names lines by its codes and what new lines are drawn from.

Codebooks follow what is assigned to them, the finishing network learns by gradient.
The first draw fixes the transform and begins the codebooks (k-means); then every step draws lines, moves the codebooks
(exponential averages, `residual_quantiser`) and takes a gradient step on the mean squared error of the points in mm, at a rate
that is drawn too, so that any first stages of a code decode well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.generative.codec import BundleCodec
from tractode.generative.codec_network import CodecNetwork, CodecSettings
from tractode.simulate.line_samples import LineSamples, LineSampleSettings, false_lines
from tractode.simulate.seeds import stream
from tractode.training import naming
from tractode.training.bundle_prior import fit_prior
from tractode.training.codec_card import codec_card
from tractode.training.codec_recipes import CHECKPOINT, CodecRun, Tell
from tractode.training.loop import LoopSettings, fit, generator_of
from tractode.training.tract_subjects import SubjectCache

Draw = Callable[[int, torch.Generator], Float[Tensor, "n 31 3"]]
"""So many random lines of the template, in the one direction of `fields.line_shape.one_way`."""

LOOP = LoopSettings(steps=8000, learning_rate=1e-3, warm_up=100, checkpoint_every=500, average=0.998)


@dataclass(frozen=True)
class CodecBatches:
    """``n_first`` lines begin the codebooks, ``n_lines`` are drawn at each step; of those ``decay`` is kept from the steps before."""

    n_first: int = 65_536
    n_lines: int = 2048
    decay: float = 0.99
    fewest_stages: int = 6


class CodecProblem:
    """The codec's network, and the lines it learns from."""

    def __init__(
        self,
        draw: Draw,
        network: CodecSettings | None = None,
        batches: CodecBatches | None = None,
        seed: int = 0,
    ) -> None:
        self.draw, self.batches = draw, batches or CodecBatches()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = CodecNetwork(network)
        generator = generator_of(seed, -1)
        self.module.begin(draw(self.batches.n_first, generator), generator)

    def record(self) -> dict[str, Any]:
        return {"network": self.module.settings.record(), "batch": asdict(self.batches)}

    def loss(self, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean over the points of the squared error, mm²."""
        lines = self.draw(self.batches.n_lines, generator)
        latents, quantiser = self.module.latents(lines), self.module.quantiser
        codes = quantiser.learn(latents, self.batches.decay, generator)
        settings = self.module.settings
        fewest = min(self.batches.fewest_stages, settings.most_stages)
        stages = int(torch.randint(fewest, settings.most_stages + 1, (), generator=generator))
        decoded = self.module.lines(quantiser.vectors(codes[:, :stages]))
        return (decoded - lines).square().sum(-1).mean()


@dataclass(frozen=True)
class OwnRecipe:
    """How the shipped codec is made. ``subjects`` simulated participants, kept in ``cache``, are tracked for the namer's sake: half of
    those lines are of no bundle. With none it learns from lines that were made up only.
    """

    loop: LoopSettings = LOOP
    network: CodecSettings = field(default_factory=CodecSettings)
    batches: CodecBatches = field(default_factory=CodecBatches)
    samples: LineSampleSettings = field(default_factory=lambda: LineSampleSettings(other=0.15, simulated=0.1))
    n_false: int = 16_000
    namer: naming.NamingSettings = field(default_factory=naming.NamingSettings)
    namer_loop: LoopSettings = naming.LOOP
    lines_per_bundle: int = 600
    subjects: int = 25
    cache: Path | None = None
    name: str = "own"

    def train(self, model: str, run: CodecRun, tell: Tell) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Codec, namer and prior, one after the other; the codec's own descent is resumed where it stopped."""
        seed = self.loop.seed
        none = false_lines(run.library, self.n_false, stream(seed, 4, "atlas bundles"))
        samples = LineSamples(run.library, self.samples, none)
        problem = CodecProblem(lambda n, generator: samples.draw(n, generator)[0], self.network, self.batches, seed)
        fit(problem, self.loop, run.out / CHECKPOINT, tell("codec"))
        codec = BundleCodec(problem.module.requires_grad_(False))
        codec.namer = naming.train_namer(
            codec, run.library, self._tracked(run, tell), self.namer, self.namer_loop, tell("namer")
        )
        codec.prior = fit_prior(codec, run.library, self.lines_per_bundle, seed=seed)
        return codec.weights()

    def _tracked(self, run: CodecRun, tell: Tell) -> tuple[naming.Lines, naming.Lines]:
        if not self.subjects:
            return naming.no_tracked_lines()
        cache, bar = SubjectCache(self.cache or run.out / "subjects", run.library), tell("participants")
        numbers: list[int] = []
        number = 0
        while len(numbers) < self.subjects:
            # Participants made of the atlas only: the simulator's courses lie where the atlas's bundles do, under other names.
            if not bool(cache[number].present[run.library.is_simulated].any()):
                numbers.append(number)
                bar(len(numbers) - 1, self.subjects, float("nan"))
            number += 1
        return naming.tracked_sets(cache.__getitem__, tuple(numbers), run.library, cache.anatomy)

    def facts(self) -> dict[str, Any]:
        return {
            "loop": asdict(self.loop),
            "batch": asdict(self.batches),
            "namer_steps": self.namer_loop.steps,
            "n_subjects": self.subjects,
        }

    def card(self, training: Mapping[str, Any]) -> str:
        return codec_card(training)


def own_recipe(
    steps: int | None = None,
    minutes: float = 0.0,
    seed: int = 0,
    subjects: int | None = None,
    cache: Path | None = None,
) -> OwnRecipe:
    """The recipe with what was asked for instead of its own; ``minutes`` is the time that the codec's descent may take."""
    own = OwnRecipe(cache=cache, subjects=OwnRecipe.subjects if subjects is None else subjects)
    loop = replace(own.loop, steps=steps or own.loop.steps, minutes=float(minutes), seed=seed)
    return replace(own, loop=loop, namer=replace(own.namer, seed=seed))
