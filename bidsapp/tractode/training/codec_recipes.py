"""Ready settings for ``tractode-train codec``: the five published codecs as published, and put right.

``faithful`` follows A. Lizarraga et al., "Differentiable VQ-VAE's for robust white matter streamline encodings"
(github.com/drewrl3v/diff-vq-vae). ``corrected`` has the same networks at a stated rate (160 bits a streamline, unless it is asked for
another), without noise in use, and with a temperature that falls until entries are chosen. Our own codec has its recipes in
`codec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tractode.errors import UsageError
from tractode.fields import ImageGrid
from tractode.generative import CODECS
from tractode.generative.resnet_codec import GroupCodec, ResNetSettings
from tractode.generative.space import training_grid
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.line_groups import TO_LEARN, Groups, person
from tractode.training.codec_paper import GroupProblem, GroupSettings
from tractode.training.loop import LoopSettings, Progress, fit

CHECKPOINT = "checkpoint.safetensors"
PUBLISHED = ("ae", "vae", "vq", "vq_ema", "vq_diff")
# A stage's name, then what the loop tells.
Tell = Callable[[str], Progress]


@dataclass(frozen=True)
class CodecRun:
    """What a recipe is carried out on."""

    library: BundleLibrary
    out: Path
    device: torch.device
    grid: ImageGrid = field(default_factory=training_grid)


class Recipe(Protocol):
    """What ``tractode-train codec`` carries out; it leaves its checkpoint in the run's folder as `CHECKPOINT`."""

    @property
    def name(self) -> str: ...

    def train(self, model: str, run: CodecRun, tell: Tell) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings to store."""

    def facts(self) -> dict[str, Any]:
        """The schedule, for the settings beside the weights."""

    def card(self, training: Mapping[str, Any]) -> str:
        """The model card."""


@dataclass(frozen=True)
class PaperRecipe:
    """``bottleneck`` is what the method's settings are made of, ``persons`` how many are varied from the library."""

    resnet: ResNetSettings
    bottleneck: Mapping[str, Any]
    loop: LoopSettings
    batch: GroupSettings
    persons: int = 64
    name: str = "corrected"

    def train(self, model: str, run: CodecRun, tell: Tell) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Fits the codec; its weights and settings."""
        kind: type[GroupCodec] = CODECS[model]
        codec = kind.untrained(self.resnet, kind.settings_of(self.bottleneck), self.loop.seed)
        problem = GroupProblem(codec, self._groups(run, tell), self.batch, run.device)
        bar = tell("fitting")

        def told(step: int, steps: int, loss: float) -> None:
            problem.advance((step + 1) / steps)
            bar(step, steps, loss)

        fit(problem, self.loop, run.out / CHECKPOINT, told)
        problem.module.eval()
        return codec.weights()

    def card(self, training: Mapping[str, Any]) -> str:
        return paper_card(training)

    def facts(self) -> dict[str, Any]:
        """The schedule, for the settings beside the weights."""
        return {"loop": asdict(self.loop), "batch": asdict(self.batch), "n_persons": self.persons}

    def _groups(self, run: CodecRun, tell: Tell) -> Groups:
        bar, persons = tell("persons"), []
        for number in range(self.persons):
            persons.append(person(run.library, run.grid, number, TO_LEARN))
            bar(number, self.persons, float("nan"))
        return Groups(persons)


_AS_PUBLISHED = LoopSettings(
    steps=15_000, learning_rate=1e-3, weight_decay=0.0, warm_up=0, largest_gradient=1e6, checkpoint_every=500
)
_PUT_RIGHT = LoopSettings(steps=15_000, learning_rate=1e-3, warm_up=50, checkpoint_every=500)
_ONE_TABLE = {"size": 512, "tables": 1, "revives": False}
_BOTTLENECKS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "faithful": {
        "ae": {"bits": 0},
        "vae": {"dims": 20, "kept": 0, "bits": 0, "divergence": 1e-7},
        "vq": _ONE_TABLE,
        "vq_ema": _ONE_TABLE,
        "vq_diff": {**_ONE_TABLE, "temperature": 10.0, "chooses_from": 1.0, "is_mixture": True},
    },
    "corrected": {
        "ae": {"bits": 5},
        "vae": {"dims": 0, "kept": 5, "bits": 8, "divergence": 1e-7},
        "vq": {"size": 32, "tables": 8},
        "vq_ema": {"size": 32, "tables": 8},
        "vq_diff": {"size": 32, "tables": 8},
    },
}
_CHANNELS = {"ae": 8}  # of the corrected latent; 64 else
PAPER_RECIPES = tuple(_BOTTLENECKS)


def paper_recipe(
    model: str,
    name: str,
    steps: int | None = None,
    minutes: float = 0.0,
    seed: int = 0,
    batch: int | None = None,
    persons: int | None = None,
    is_short: bool = False,
    rate: Mapping[str, int] | None = None,
) -> PaperRecipe:
    """The recipe of that name with what was asked for instead of its own.

    ``rate`` may say ``channels`` and ``bits`` (ae, vae) or ``size`` and ``tables`` (the others).

    Raises
    ------
    UsageError
        E-TRAIN-RATE: the model or the recipe has no such setting.
    """
    bottleneck = dict(_BOTTLENECKS[name][model])
    channels = _CHANNELS.get(model, 64) if name == "corrected" else 64
    for key, value in (rate or {}).items():
        if name == "faithful" or key not in _RATES[model]:
            raise UsageError(
                f"The rate of {model} ({name}) is not set by {key}",
                id="E-TRAIN-RATE",
                needed=f"the recipe corrected, and {' or '.join(_RATES[model])}",
            )
        if model == "ae" and key == "channels":
            channels = value
        else:
            bottleneck["kept" if key == "channels" else key] = value
    loop = _AS_PUBLISHED if name == "faithful" else _PUT_RIGHT
    n_steps = steps or loop.steps
    return PaperRecipe(
        ResNetSettings(channels=channels, is_skip_rectified=name == "faithful"),
        bottleneck,
        replace(loop, steps=n_steps, minutes=float(minutes), seed=seed, warm_up=min(loop.warm_up, n_steps // 10)),
        GroupSettings(batch or (256 if name == "faithful" else 32), is_short),
        persons or PaperRecipe.persons,
        name,
    )


_RATES = {
    "ae": ("channels", "bits"), "vae": ("channels", "bits"),
    "vq": ("size", "tables"), "vq_ema": ("size", "tables"), "vq_diff": ("size", "tables"),
}  # fmt: skip


def paper_card(training: Mapping[str, Any]) -> str:
    """The card of a published codec."""
    curve = "\n".join(f"| {int(step):,} | {loss:.5f} |" for step, loss in training["curve"])
    return f"""# Published bundle codec {training["model"]} ({training["recipe"]})

After A. Lizarraga et al., "Differentiable VQ-VAE's for robust white matter streamline encodings" (github.com/drewrl3v/diff-vq-vae), made anew from the
paper; for comparisons. {training["n_parameters"]:,} parameters, {training["bits_per_streamline"]:g} bits a streamline.

**Data.** {training["n_persons"]} persons varied from the bundles of `{training["atlas"]}` and the simulator's courses; every third line of each bundle of the atlas
was left out. What may be done with the weights depends on that folder's terms.

**Training.** {training["steps"]:,} steps of {training["batch"]["batch"]} groups of 64 streamlines in {training["minutes"]:.3g} minutes on {training["device"]}, seed
{training["seed"]}, torch {training["torch"]}:

```
{training["command"]}
```

| up to step | mean loss |
|---|---|
{curve}
"""
