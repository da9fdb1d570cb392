"""The one loop that fits every learned model: resumable, and the same result whether it was interrupted or not.

I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019, doi:10.48550/arXiv.1711.05101, with a cosine schedule
(doi:10.48550/arXiv.1608.03983). Each step draws from a generator of its own, seeded by the run's seed and the step's number,
so a checkpoint holds weights, the optimiser's moments and a step number, and nothing random.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tractode.errors import ConfigurationError
from tractode.io.atomic import atomic_path

Progress = Callable[[int, int, float], None]


@runtime_checkable
class Problem(Protocol):
    """What is fitted: a module, and the loss of one step."""

    @property
    def module(self) -> nn.Module: ...

    def loss(self, generator: torch.Generator) -> Tensor:
        """The loss of one random batch."""

    def record(self) -> dict[str, Any]:
        """What was set, as plain data; a checkpoint of another record is refused."""


@dataclass(frozen=True)
class LoopSettings:
    """Steps, and AdamW's learning rate at its highest; ``warm_up`` steps rise to it, the rest fall as a cosine to 0."""

    steps: int = 1200
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    warm_up: int = 30
    largest_gradient: float = 1.0
    checkpoint_every: int = 50
    seed: int = 0

    def rate(self, step: int) -> float:
        rise = min(1.0, (step + 1) / max(self.warm_up, 1))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def fit(
    problem: Problem, settings: LoopSettings, checkpoint: Path | None = None, progress: Progress | None = None
) -> list[float]:
    """Fits ``problem.module`` in place; returns the losses of the steps that this call took.

    Raises
    ------
    ConfigurationError
        The checkpoint is of a run with other settings.
    """
    optimiser = torch.optim.AdamW(
        problem.module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    record = json.dumps({"loop": asdict(settings), "problem": problem.record()}, sort_keys=True)
    first = _resume(problem.module, optimiser, checkpoint, record) if checkpoint and checkpoint.is_file() else 0
    losses = []
    for step in range(first, settings.steps):
        # A large odd multiplier keeps the steps of neighbouring seeds apart.
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"] = settings.rate(step)
        optimiser.zero_grad()
        loss = problem.loss(generator)
        loss.backward()
        nn.utils.clip_grad_norm_(problem.module.parameters(), settings.largest_gradient)
        optimiser.step()
        losses.append(float(loss.detach()))
        if progress is not None:
            progress(step, settings.steps, losses[-1])
        if checkpoint and ((step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps):
            _save(problem.module, optimiser, checkpoint, step + 1, record)
    return losses


def _save(module: nn.Module, optimiser: torch.optim.Optimizer, path: Path, step: int, record: str) -> None:
    tensors = {f"module.{name}": value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimiser.state[parameter].items():
            tensors[f"{key}.{name}"] = torch.as_tensor(value).detach().cpu().clone().contiguous()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "record": record})


def _resume(module: nn.Module, optimiser: torch.optim.Optimizer, path: Path, record: str) -> int:
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata() or {}
        if metadata.get("record") != record:
            raise ConfigurationError(
                "The checkpoint belongs to a run with other settings or other data",
                id="E-TRAIN-RESUME",
                path=path,
                fix="repeat the command of that run, or give another output folder",
            )
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a mapping)
    module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    for name, parameter in module.named_parameters():
        optimiser.state[parameter] = {
            key.partition(".")[0]: value.to(parameter.device) if value.ndim else value
            for key, value in tensors.items()
            if key.partition(".")[2] == name and not key.startswith("module.")
        }
    return int(metadata["step"])
