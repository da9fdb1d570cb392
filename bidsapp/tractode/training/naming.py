"""Fitting the namer of streamlines on the codes of a finished codec, and making its probabilities true.

No paper. Lines of all bundles are drawn as often, with lines of none: false ones that were made up and those that a tracker
followed in simulated subjects. The temperature (C. Guo et al. 2017, doi:10.48550/arXiv.1706.04599) is fitted on lines of the
atlas and on subjects that the network never saw; lines that the library holds out are not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tractode.generative.naming import BundleNamer
from tractode.simulate.bundle_library import N_POINTS, BundleLibrary
from tractode.simulate.line_samples import LineSamples, LineSampleSettings, augmented, false_lines
from tractode.simulate.seeds import stream
from tractode.simulate.tissues import Anatomy
from tractode.simulate.tract_subject import TractSubject
from tractode.training.loop import LoopSettings, Progress, fit
from tractode.training.tracked_lines import LEFT_OUT, TrackedSettings, labelled, tracked

_TILE = 4096
Lines = tuple[Float[Tensor, "n 31 3"], Int[Tensor, " n"]]


@runtime_checkable
class LatentCodec(Protocol):
    """What naming needs of a codec."""

    def latents(self, lines: Float[Tensor, "s 31 3"]) -> Float[Tensor, "s d"]: ...

    def quantise(self, latents: Float[Tensor, "s d"]) -> Int[Tensor, "s c"]: ...

    def dequantise(self, codes: Int[Tensor, "s c"]) -> Float[Tensor, "s d"]: ...


SAMPLES = LineSampleSettings(
    evenness=1.0, other=0.25, simulated=0.0, misaligned=0.8, graded=True, rotation_deg=6.0, translation_mm=6.0, scale=0.06
)  # fmt: skip


@dataclass(frozen=True)
class NamingSettings:
    """How a step's lines are drawn. ``n_tracked`` of them are a tracker's; every ``calibration``-th training line is kept for the temperature."""

    n_lines: int = 768
    n_tracked: int = 256
    n_false: int = 16_000
    smoothing: float = 0.02
    calibration: int = 8
    calibration_lines: int = 8192
    width: int = 256
    blocks: int = 2
    seed: int = 0
    samples: LineSampleSettings = field(default_factory=lambda: SAMPLES)
    tracked: TrackedSettings = field(default_factory=TrackedSettings)


LOOP = LoopSettings(steps=6000, learning_rate=2e-3, weight_decay=1e-2, warm_up=100, average=0.995, checkpoint_every=500)


class NamingProblem:
    """The namer, and the lines that it learns from. ``tracked_lines`` and ``tracked_label`` are those of the training subjects."""

    def __init__(
        self, codec: LatentCodec, library: BundleLibrary, tracked_lines: Lines, settings: NamingSettings | None = None
    ) -> None:
        self.codec, self.settings = codec, settings or NamingSettings()
        self.samples = self._samples(_without(library, self.settings.calibration), 0)
        self._library = library
        self._mirror = _mirror(library, len(self.samples.names))
        lines, label = tracked_lines
        clear = label != LEFT_OUT
        self._tracked, self._tracked_label = lines[clear], label[clear]
        self._tracked_chance = _even(self._tracked_label, len(self.samples.names))
        first = self.batch(torch.Generator().manual_seed(self.settings.seed))[0]
        latents = self.seen(first)
        self._error = latents - self._exact(first)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self.module = BundleNamer(self.samples.names, latents.shape[1], self.settings.width, self.settings.blocks)
        self.module.mean.copy_(latents.mean(0))
        self.module.spread.copy_(latents.std(0).clamp(min=1e-3))

    def _samples(self, library: BundleLibrary, which: int) -> LineSamples:
        settings = self.settings
        made = false_lines(library, settings.n_false, stream(settings.seed, which, "atlas bundles"))
        return LineSamples(library, settings.samples, made)

    def record(self) -> dict[str, Any]:
        return {"naming": asdict(self.settings), "bundles": list(self.samples.names), "tracked": len(self._tracked)}

    def batch(self, generator: torch.Generator) -> Lines:
        """Lines of a step with their labels."""
        lines, label = self.samples.draw(self.settings.n_lines, generator)
        n = self.settings.n_tracked if len(self._tracked) else 0
        if not n:
            return lines, label
        rows = torch.multinomial(self._tracked_chance, n, replacement=True, generator=generator)
        more = augmented(
            self._tracked[rows],
            self._tracked_label[rows],
            self._mirror,
            _tracked_augmentation(self.settings),
            generator,
        )
        return torch.cat([lines, more[0]]), torch.cat([label, more[1]])

    @torch.no_grad()
    def seen(self, lines: Float[Tensor, "n 31 3"]) -> Float[Tensor, "n d"]:
        """What is left of lines in their codes."""
        parts = [self.codec.dequantise(self.codec.quantise(self.codec.latents(part))) for part in lines.split(_TILE)]
        return torch.cat(parts).float()

    @torch.no_grad()
    def _exact(self, lines: Float[Tensor, "n 31 3"]) -> Float[Tensor, "n d"]:
        return self.codec.latents(lines).float()

    def loss(self, generator: torch.Generator) -> Float[Tensor, ""]:
        lines, label = self.batch(generator)
        # Quantising takes longer than all the rest: a step adds the errors that other lines' codes have.
        error = self._error[torch.randint(len(self._error), (len(lines),), generator=generator)]
        return functional.cross_entropy(
            self.module(self._exact(lines) + error), label, label_smoothing=self.settings.smoothing
        )

    def calibrate(self, tracked_lines: Lines) -> float:
        """Fits the temperature on lines of the atlas that no step saw and on a tracker's lines in other subjects; gives it."""
        held = _samples_of_calibration(self, self._library)
        generator = stream(self.settings.seed, 2, "atlas bundles")
        lines, label = held.draw(self.settings.calibration_lines, generator)
        more, its_label = tracked_lines
        clear = its_label != LEFT_OUT
        if bool(clear.any()):
            rows = clear.nonzero().ravel()
            rows = rows[torch.randperm(len(rows), generator=generator)[: self.settings.calibration_lines // 4]]
            lines, label = torch.cat([lines, more[rows]]), torch.cat([label, its_label[rows]])
        with torch.no_grad():
            logits = self.module(self.seen(lines)).double()
        temperature = best_temperature(logits, label)
        self.module.temperature.fill_(temperature)
        return temperature


def best_temperature(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> float:
    """The temperature of the least cross-entropy, between 1/4 and 8 in steps of 2 %."""
    tried = torch.exp(torch.arange(-1.4, 2.1, 0.02, dtype=logits.dtype))
    loss = torch.stack([functional.cross_entropy(logits / t, label) for t in tried])
    return float(tried[loss.argmin()])


def train_namer(
    codec: LatentCodec,
    library: BundleLibrary,
    tracked_lines: tuple[Lines, Lines],
    settings: NamingSettings | None = None,
    loop: LoopSettings = LOOP,
    progress: Progress | None = None,
) -> BundleNamer:
    """A namer for a finished codec; ``tracked_lines`` are those to learn from and those for calibration (`tracked_sets`)."""
    problem = NamingProblem(codec, library, tracked_lines[0], settings)
    fit(problem, loop, None, progress)
    problem.module.eval().requires_grad_(False)
    problem.calibrate(tracked_lines[1])
    return problem.module


def tracked_sets(
    subject: Callable[[int], TractSubject],
    numbers: tuple[int, ...],
    library: BundleLibrary,
    anatomy: Anatomy,
    settings: TrackedSettings | None = None,
    n_calibration: int = 5,
) -> tuple[Lines, Lines]:
    """SD_STREAM's lines in simulated subjects with their labels: those of the first subjects, and those of the last ``n_calibration``."""
    found: list[Lines] = []
    for number in numbers:
        one = subject(number)
        lines = tracked(one, anatomy, stream(_TRACKED_SEED, number, "tract scan"), settings)
        found.append((lines, labelled(lines, one, library, settings)))
    first = len(found) - n_calibration
    return _joined(found[:first]), _joined(found[first:])


_TRACKED_SEED = 6


def no_tracked_lines() -> tuple[Lines, Lines]:
    """In the place of `tracked_sets` where there are no subjects."""
    return _joined([]), _joined([])


def _joined(parts: list[Lines]) -> Lines:
    if not parts:
        return torch.zeros(0, N_POINTS, 3), torch.zeros(0, dtype=torch.long)
    return torch.cat([lines for lines, _ in parts]), torch.cat([label for _, label in parts])


def _samples_of_calibration(problem: NamingProblem, library: BundleLibrary) -> LineSamples:
    settings = problem.settings
    others = false_lines(library, settings.n_false // 4, stream(settings.seed, 1, "atlas bundles"))
    return LineSamples(_without(library, settings.calibration, only=True), settings.samples, others)


def _without(library: BundleLibrary, every: int, only: bool = False) -> BundleLibrary:
    """A library that holds out every so-manieth training line too, or all others."""
    rows = (~library.is_held_out & ~library.is_simulated[library.bundle]).nonzero().ravel()
    kept = torch.zeros_like(library.is_held_out)
    kept[rows[every // 2 :: every]] = True
    return replace(library, is_held_out=~kept if only else library.is_held_out | kept)


def _mirror(library: BundleLibrary, n: int) -> Int[Tensor, " b"]:
    return torch.cat([library.mirror[:n], torch.tensor([n])])


def _even(label: Int[Tensor, " n"], none: int, share_of_none: float = 0.6) -> Float[Tensor, " n"]:
    """Chances by which lines of bundles are drawn by the root of their number, and lines of none as ``share_of_none``."""
    counts = torch.bincount(label, minlength=none + 1).float()
    chance = counts.clamp(min=1).rsqrt()[label]
    is_none = label == none
    for part, share in ((is_none, share_of_none), (~is_none, 1 - share_of_none)):
        total = chance[part].sum()
        chance = torch.where(part, chance * share / total.clamp(min=1e-9), chance)
    return chance


def _tracked_augmentation(settings: NamingSettings) -> LineSampleSettings:
    """A tracker's lines end early by themselves and waver enough."""
    return replace(settings.samples, cut=0.0, waver_mm=0.3)
