"""What the training commands that learn from an atlas share: how they begin, and what they say of a finished descent."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tractode.errors import MissingInputError

if TYPE_CHECKING:
    import torch


def minutes(text: str) -> float:
    """A time above 0, for ``type=``."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes")
    return value


def need_atlas(folder: Path) -> None:
    """Raise `MissingInputError` unless there is such a folder."""
    if not folder.is_dir():
        raise MissingInputError(
            "There is no such folder",
            id="E-TRAIN-ATLAS",
            path=folder,
            needed="tractograms in MNI space, one a bundle",
        )


def begin(device: str, n_threads: int) -> torch.device:
    """The device that was asked for, with the process made ready for it; says so where it is another."""
    from tractode.cli import environment

    environment.prepare()
    environment.set_threads(n_threads)
    import torch

    torch.set_num_threads(n_threads)
    name, note = environment.resolve_device(device)
    if note:
        print(note)
    return torch.device(name)


def command_of(words: Sequence[str]) -> str:
    """The command without folders: where something lies on one machine is nobody else's business."""
    return shlex.join(["tractode-train", *(Path(word).name if "/" in word else word for word in words)])


def descent_of(checkpoint: Path, digits: int) -> dict[str, Any]:
    """Steps, minutes, and the mean loss of ten parts of the way."""
    import torch

    from tractode.training.loop import losses_of, seconds_of

    found = losses_of(checkpoint)
    parts = found.tensor_split(min(10, len(found)))
    ends = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
    return {
        "steps": len(found),
        "minutes": round(seconds_of(checkpoint) / 60, 1),
        "curve": [[end, round(float(part.mean()), digits)] for end, part in zip(ends, parts, strict=True)],
    }
