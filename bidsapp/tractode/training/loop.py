"""The one loop that fits every learned model: resumable, and the same result whether it was interrupted or not.

I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019, doi:10.48550/arXiv.1711.05101, with a cosine schedule
(doi:10.48550/arXiv.1608.03983). Each step draws from a generator of its own, seeded by the run's seed and the step's number,
so a checkpoint holds weights, the optimiser's moments, a step number and the losses so far, and nothing random. Of several
processes (`devices`) each has generators of its own, and the first writes.

Averaged weights (B. T. Polyak, A. B. Juditsky, SIAM J Control Optim 1992, doi:10.1137/0330046) decay exponentially; departure:
the decay begins low, so that the first steps are soon forgotten. Where a run may take a given time only, the schedule follows
whichever is further on, the steps or the clock; such a run is not repeated to the bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tractode.errors import ConfigurationError
from tractode.io.atomic import atomic_path
from tractode.training.devices import Alone

Progress = Callable[[int, int, float], None]
"""Told after each step: its number from 0, how many there will be (a guess where the clock decides), its loss."""
_LONGEST_S = 300.0


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
    """Steps, and AdamW's learning rate at its highest; ``warm_up`` steps rise to it, the rest fall as a cosine to 0.

    Parameters
    ----------
    average
        Decay of the exponential average of the weights, 0.999 for instance; the module ends with the averaged ones. 0 for none.
    minutes
        The time the run may take, all its parts together; 0 for as long as the steps need.
    bfloat16
        On CUDA: products in bfloat16 where that is safe (autocast). Elsewhere it changes nothing.
    """

    steps: int = 1200
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    warm_up: int = 30
    largest_gradient: float = 1.0
    checkpoint_every: int = 50
    seed: int = 0
    average: float = 0.0
    minutes: float = 0.0
    bfloat16: bool = False

    def rate(self, step: int, spent: float = 0.0) -> float:
        """The learning rate; ``spent`` is the share of the time that is over."""
        rise = min(1.0, (step + 1) / max(self.warm_up, 1))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(max(step / self.steps, spent), 1.0)))


def fit(
    problem: Problem,
    settings: LoopSettings,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    workers: Alone | None = None,
) -> list[float]:
    """Fits ``problem.module`` in place; returns the losses of the steps that this call took (of several processes, the mean).

    Raises
    ------
    ConfigurationError
        The checkpoint is of a run with other settings, or the loss is no longer a number.
    """
    module, workers = problem.module, workers or Alone()
    optimiser = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    record = json.dumps({"loop": asdict(settings), "problem": problem.record()}, sort_keys=True)
    state = _State(_Average(module, settings.average) if settings.average else None)
    if checkpoint and checkpoint.is_file():
        _resume(module, optimiser, state, checkpoint, record)
    first, clock = state.step, _Clock(settings.minutes, state.seconds)
    saved = first
    whole, stepper = workers.set_up(_Loss(problem, settings.bfloat16), optimiser)
    while state.step < settings.steps and (spent := _share(clock, workers)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = settings.rate(state.step, spent)
        stepper.zero_grad()
        loss = whole(generator_of(settings.seed, state.step, workers.rank))
        workers.descend(loss)
        state.losses.append(_checked(workers.mean(loss.detach()), state.step))
        workers.clip(whole, stepper, settings.largest_gradient)
        stepper.step()
        if state.average:
            state.average.add(module, state.step)
        state.step += 1
        if progress is not None:
            progress(state.step - 1, _expected(settings.steps, state.step, spent), state.losses[-1])
        if checkpoint and workers.rank == 0 and (state.step % settings.checkpoint_every == 0 or clock.is_due()):
            _save(module, optimiser, state, checkpoint, record, clock.seconds())
            saved = state.step
    if state.step > saved and checkpoint and workers.rank == 0:
        _save(module, optimiser, state, checkpoint, record, clock.seconds())
    if state.average:
        state.average.place(module)
    return state.losses[first:]


def losses_of(checkpoint: Path) -> Float[Tensor, " n"]:
    """The losses of all steps up to a checkpoint, in order."""
    with safe_open(checkpoint, framework="pt") as stored:
        losses: Tensor = stored.get_tensor("losses")
    return losses


def seconds_of(checkpoint: Path) -> float:
    """The time that the steps up to a checkpoint took."""
    with safe_open(checkpoint, framework="pt") as stored:
        return float((stored.metadata() or {}).get("seconds", "0"))


def generator_of(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The random numbers of one step of one process."""
    # A large odd multiplier keeps the steps of neighbouring seeds apart, another the processes.
    return torch.Generator().manual_seed(seed * 1_000_003 + step + rank * 2_654_435_769)


class _Loss(nn.Module):
    """A problem as the module that several processes share: what it gives is the loss."""

    def __init__(self, problem: Problem, bfloat16: bool) -> None:
        super().__init__()
        self.module, self.loss = problem.module, problem.loss
        self.is_mixed = bfloat16 and next(problem.module.parameters()).device.type == "cuda"

    def forward(self, generator: torch.Generator) -> Float[Tensor, ""]:
        with torch.autocast("cuda", torch.bfloat16) if self.is_mixed else nullcontext():
            return self.loss(generator)


def _share(clock: _Clock, workers: Alone) -> float:
    """Of the time allowed, as the first process's clock has it."""
    return workers.agreed(clock.share()) if clock.limit else 0.0


def _expected(steps: int, step: int, spent: float) -> int:
    return min(steps, math.ceil(step / spent)) if spent else steps


def _checked(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise ConfigurationError(
            f"The loss of step {step + 1} is {loss}: the descent diverged",
            id="E-TRAIN-DIVERGED",
            fix="start again in another output folder with a lower learning rate",
        )
    return loss


class _Clock:
    """Time spent on a run, that of its earlier parts included."""

    def __init__(self, minutes: float, before: float) -> None:
        self.limit, self.start = 60 * minutes, time.monotonic() - before
        self.due = before + _LONGEST_S

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def is_due(self) -> bool:
        """Whether the last checkpoint is long ago: where steps are slow, little is to be lost."""
        now = self.seconds()
        is_due = now > self.due
        if is_due:
            self.due = now + _LONGEST_S
        return is_due

    def share(self) -> float:
        """Of the time allowed; 0 without a limit."""
        return self.seconds() / self.limit if self.limit else 0.0


class _Average:
    """The exponential average of a module's parameters; buffers are the module's own."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def add(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.named_parameters():
            self.values[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def place(self, module: nn.Module) -> None:
        for name, value in module.named_parameters():
            value.copy_(self.values[name])


@dataclass
class _State:
    """How far a run is."""

    average: _Average | None
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def _save(
    module: nn.Module, optimiser: torch.optim.Optimizer, state: _State, path: Path, record: str, seconds: float
) -> None:
    tensors = {f"module.{name}": value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimiser.state[parameter].items():
            tensors[f"{key}.{name}"] = torch.as_tensor(value).detach().cpu().clone().contiguous()
    if state.average:
        tensors |= {f"average.{name}": value.cpu() for name, value in state.average.values.items()}
    tensors["losses"] = torch.tensor(state.losses, dtype=torch.float32)
    metadata = {"step": str(state.step), "seconds": str(seconds), "record": record}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _resume(module: nn.Module, optimiser: torch.optim.Optimizer, state: _State, path: Path, record: str) -> None:
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
            key: value.to(parameter.device) if value.ndim else value
            for key in ("step", "exp_avg", "exp_avg_sq")
            if (value := tensors.get(f"{key}.{name}")) is not None
        }
        if state.average:
            state.average.values[name] = tensors[f"average.{name}"].to(parameter.device)
    state.step, state.seconds = int(metadata["step"]), float(metadata["seconds"])
    state.losses = tensors["losses"].tolist()
