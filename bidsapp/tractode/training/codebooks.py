"""Fitting codebooks: no gradient, so not `loop`; resumable, and told of as `loop` is.

Every step draws lines, assigns their latents to codewords, and moves these (`residual_quantiser`). Each step draws from a
generator of its own, so a checkpoint holds the tables and nothing random; it can be read as the loop's can.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tractode.errors import ConfigurationError
from tractode.generative.codec_tables import CodecSettings, CodecTables
from tractode.io.atomic import atomic_path
from tractode.training.loop import Progress, generator_of

Draw = Callable[[int, torch.Generator], Float[Tensor, "n 31 3"]]
"""So many random lines of the template, in the one direction of `fields.line_shape.one_way`."""


@dataclass(frozen=True)
class CodebookSettings:
    """``n_first`` lines give the transform and begin the codebooks (k-means); each of ``steps`` draws ``n_lines``; of earlier ones
    ``decay`` is kept at a step. ``minutes`` is the time that the steps may take, all parts of a run together; 0 for as long as they need.
    """

    steps: int = 4000
    n_first: int = 65_536
    n_lines: int = 2048
    decay: float = 0.99
    checkpoint_every: int = 250
    seed: int = 0
    minutes: float = 0.0


def fit_codebooks(
    draw: Draw,
    codec: CodecSettings | None = None,
    settings: CodebookSettings | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> CodecTables:
    """The tables of a codec for lines as they are drawn; the same, in whatever parts the steps were taken.

    Raises
    ------
    ConfigurationError
        The checkpoint is of a run with other settings.
    """
    settings = settings or CodebookSettings()
    tables, spent = CodecTables(codec), 0.0
    losses: list[float] = []
    record = json.dumps({"codec": tables.settings.record(), "fit": asdict(settings)}, sort_keys=True)
    if checkpoint and checkpoint.is_file():
        losses, spent = _resume(tables, checkpoint, record)
    else:
        generator = generator_of(settings.seed, -1)
        tables.begin(draw(settings.n_first, generator), generator)
    start = time.monotonic() - spent
    while len(losses) < settings.steps and not 0 < 60 * settings.minutes <= time.monotonic() - start:
        losses.append(_step(tables, draw, settings, generator_of(settings.seed, len(losses))))
        if progress is not None:
            progress(len(losses) - 1, settings.steps, losses[-1])
        if checkpoint and len(losses) % settings.checkpoint_every == 0:
            _save(tables, losses, time.monotonic() - start, checkpoint, record)
    if checkpoint:
        _save(tables, losses, time.monotonic() - start, checkpoint, record)
    return tables


def _step(tables: CodecTables, draw: Draw, settings: CodebookSettings, generator: torch.Generator) -> float:
    """Moves the codebooks; returns the mean squared error of the points (mm²) at the rate that a code has by default."""
    lines = draw(settings.n_lines, generator)
    latents, quantiser = tables.latents(lines), tables.quantiser
    codes = quantiser.learn(latents, settings.decay, generator)
    decoded = tables.lines(quantiser.vectors(codes[:, : tables.settings.stages]))
    return float((decoded - lines).square().sum(-1).mean())


def _save(tables: CodecTables, losses: list[float], seconds: float, path: Path, record: str) -> None:
    tensors = {f"tables.{name}": value.contiguous() for name, value in tables.state_dict().items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float32)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"seconds": str(seconds), "record": record})


def _resume(tables: CodecTables, path: Path, record: str) -> tuple[list[float], float]:
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata() or {}
        if metadata.get("record") != record:
            raise ConfigurationError(
                "The checkpoint belongs to codebooks with other settings",
                id="E-TRAIN-CODEBOOKS",
                path=path,
                fix="repeat the command of that run, or give another output folder",
            )
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a mapping)
    tables.load_state_dict({k.removeprefix("tables."): v for k, v in tensors.items() if k.startswith("tables.")})
    return tensors["losses"].tolist(), float(metadata["seconds"])
