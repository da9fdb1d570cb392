"""``tractode-train codec --model tractode``: codebooks, then what names lines by their codes, then what new lines are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tractode.generative.codec import BundleCodec
from tractode.generative.codec_tables import CodecSettings
from tractode.simulate.line_samples import LineSamples, LineSampleSettings, false_lines
from tractode.simulate.seeds import stream
from tractode.training import naming
from tractode.training.bundle_prior import fit_prior
from tractode.training.codebooks import CodebookSettings, fit_codebooks
from tractode.training.codec_card import codec_card
from tractode.training.codec_recipes import CHECKPOINT, CodecRun, Tell
from tractode.training.loop import LoopSettings
from tractode.training.tract_subjects import SubjectCache


@dataclass(frozen=True)
class OwnRecipe:
    """How the shipped codec is made.

    ``subjects`` simulated participants, kept in ``cache``, are tracked for the namer's sake: many of those lines are of no
    bundle. With none it learns from lines that were made up only.
    """

    codec: CodecSettings = field(default_factory=CodecSettings)
    codebooks: CodebookSettings = field(default_factory=CodebookSettings)
    samples: LineSampleSettings = field(default_factory=lambda: LineSampleSettings(other=0.15, simulated=0.1))
    n_false: int = 16_000
    namer: naming.NamingSettings = field(default_factory=naming.NamingSettings)
    namer_loop: LoopSettings = naming.LOOP
    lines_per_bundle: int = 600
    subjects: int = 25
    cache: Path | None = None
    name: str = "own"

    def train(self, model: str, run: CodecRun, tell: Tell) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Codec, namer and prior, one after the other; fitting of the codebooks goes on where it stopped."""
        seed = self.codebooks.seed
        none = false_lines(run.library, self.n_false, stream(seed, 4, "atlas bundles"))
        samples = LineSamples(run.library, self.samples, none)
        tables = fit_codebooks(
            lambda n, generator: samples.draw(n, generator)[0],
            self.codec,
            self.codebooks,
            run.out / CHECKPOINT,
            tell("codebooks"),
        )
        codec = BundleCodec(tables)
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
            "codebooks": asdict(self.codebooks),
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
    """The recipe with what was asked for instead of its own; ``steps`` and ``minutes`` are the codebooks'."""
    own = OwnRecipe(cache=cache, subjects=OwnRecipe.subjects if subjects is None else subjects)
    books = replace(own.codebooks, steps=steps or own.codebooks.steps, minutes=float(minutes), seed=seed)
    return replace(own, codebooks=books, namer=replace(own.namer, seed=seed))
