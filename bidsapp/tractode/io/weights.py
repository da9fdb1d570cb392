"""Learned weights: a folder ``<name>-<version>`` of safetensors, settings and a card, checked by sha256 before use.

The format of safetensors (https://github.com/huggingface/safetensors) runs no code when it is read. Weights are stored as
float16 and read as float32.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import tractode
from tractode.contracts import SimilarityMetric
from tractode.errors import InputDataError, ResourceUnavailableError
from tractode.io.atomic import atomic_path
from tractode.registration import METRICS

SHIPPED = Path(tractode.__file__).parent / "weights"
MODEL, SETTINGS, CARD, SUMS = "model.safetensors", "settings.toml", "card.md", "sha256"
LARGEST = 16 * 2**20
VERSIONS = {"contrastive": 1, "gentract": 1}


def shipped(name: str) -> Path:
    """The folder of the weights that came with the installation."""
    return SHIPPED / f"{name}-{VERSIONS[name]}"


def write_weights(folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], card: str) -> None:
    """Writes the four files; the sums last, so that half a folder is never taken for a whole one."""
    halves = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in sorted(tensors.items())}
    data = save(halves)
    if len(data) > LARGEST:
        raise ValueError(f"The weights take {len(data) >> 20} MiB; {LARGEST >> 20} MiB is the most a file may take.")
    contents = {MODEL: data, SETTINGS: tomli_w.dumps(dict(settings)).encode(), CARD: card.encode()}
    for name, content in contents.items():
        with atomic_path(folder / name) as path:
            path.write_bytes(content)
    lines = [f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in (MODEL, SETTINGS)]
    with atomic_path(folder / SUMS) as path:
        path.write_text("".join(lines), encoding="ascii")


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (float32) and settings.

    Raises
    ------
    ResourceUnavailableError
        A file of the folder is missing.
    InputDataError
        A file is not what its sum says, or not safetensors.
    """
    missing = [name for name in (MODEL, SETTINGS, SUMS) if not (folder / name).is_file()]
    if missing:
        raise ResourceUnavailableError(
            f"The weights lack {', '.join(missing)}",
            id="E-WEIGHTS-MISSING",
            path=folder,
            fix="reinstall tractode, or train them (tractode-train)",
        )
    contents = {name: (folder / name).read_bytes() for name in (MODEL, SETTINGS)}
    lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    sums = {line[66:]: line[:64] for line in lines}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != sums.get(name):
            raise InputDataError(
                f"{name} is not the file that was written: its sha256 differs from the stored one",
                id="E-WEIGHTS-SUM",
                path=folder,
                fix="reinstall tractode, or train the weights again",
            )
    try:
        tensors = load(contents[MODEL])
        settings = tomllib.loads(contents[SETTINGS].decode())
    except (SafetensorError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputDataError(f"The weights cannot be read ({error})", id="E-WEIGHTS-READ", path=folder) from error
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}, settings


def load_metric(name: str, folder: Path | None = None) -> SimilarityMetric:
    """A similarity metric by its name, with its learned weights where it has any (``folder``, else those shipped)."""
    kind = METRICS[name]
    if name not in VERSIONS:
        return kind()
    tensors, settings = read_weights(folder or shipped(name))
    return kind.from_weights(tensors, settings["network"])
