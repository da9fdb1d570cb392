"""Learned weights: a folder ``<name>-<version>`` of safetensors, settings and a card, checked by sha256 before use.

The format of safetensors (https://github.com/huggingface/safetensors) runs no code when it is read. Weights are stored as
float16 and read as float32; more than 16 MiB of them lie in several files. Weights under terms other than the code's have these
beside them (``LICENSE``).
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
MODEL, SETTINGS, CARD, SUMS, LICENCE = "model.safetensors", "settings.toml", "card.md", "sha256", "LICENSE"
LARGEST = 16 * 2**20
_HEADER_BYTES = 200  # a generous bound of what a file's header says of one tensor, its name left out
VERSIONS = {"codec": 1, "contrastive": 1, "gentract": 1}


def shipped(name: str) -> Path:
    """The folder of the weights that came with the installation."""
    return SHIPPED / f"{name}-{VERSIONS[name]}"


def write_weights(
    folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], card: str, licence: str = ""
) -> None:
    """Writes the files; the sums last, so that half a folder is never taken for a whole one."""
    halves = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in sorted(tensors.items())}
    summed = {**_model_files(halves), SETTINGS: tomli_w.dumps(dict(settings)).encode()}
    beside = {CARD: card.encode(), **({LICENCE: licence.encode()} if licence else {})}
    for name, content in (summed | beside).items():
        with atomic_path(folder / name) as path:
            path.write_bytes(content)
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in summed.items()]
    with atomic_path(folder / SUMS) as path:
        path.write_text("".join(lines), encoding="ascii")


def write_card(folder: Path, card: str) -> None:
    """Another card beside weights that are there."""
    with atomic_path(folder / CARD) as path:
        path.write_text(card, encoding="utf-8")


def _model_files(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """One file, or as many as it takes for none to be larger than ``LARGEST``."""
    parts: list[dict[str, Tensor]] = [{}]
    taken = 0
    for name, tensor in tensors.items():
        n_bytes = tensor.numel() * tensor.element_size() + len(name) + _HEADER_BYTES
        if parts[-1] and taken + n_bytes > LARGEST:
            parts.append({})
            taken = 0
        parts[-1][name] = tensor
        taken += n_bytes
    if len(parts) == 1:
        return {MODEL: save(parts[0])}
    return {f"model-{number:03d}.safetensors": save(part) for number, part in enumerate(parts, start=1)}


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (float32) and settings.

    Raises
    ------
    ResourceUnavailableError
        A file of the folder is missing.
    InputDataError
        A file is not what its sum says, or not safetensors.
    """
    sums = stored_sums(folder)
    missing = [name for name in (SETTINGS, *sums) if not (folder / name).is_file()]
    if missing or not sums:
        raise ResourceUnavailableError(
            f"The weights lack {', '.join(missing) or SUMS}",
            id="E-WEIGHTS-MISSING",
            path=folder,
            fix="reinstall tractode, or train them (tractode-train)",
        )
    contents = {name: (folder / name).read_bytes() for name in sums}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise InputDataError(
                f"{name} is not the file that was written: its sha256 differs from the stored one",
                id="E-WEIGHTS-SUM",
                path=folder,
                fix="reinstall tractode, or train the weights again",
            )
    try:
        tensors: dict[str, Tensor] = {}
        for name in sums:
            tensors |= {} if name == SETTINGS else load(contents[name])
        settings = tomllib.loads(contents[SETTINGS].decode())
    except (SafetensorError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputDataError(f"The weights cannot be read ({error})", id="E-WEIGHTS-READ", path=folder) from error
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}, settings


def stored_sums(folder: Path) -> dict[str, str]:
    """The sha256 of every file that must be there; empty unless settings and a model are among them."""
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    sums = {name: line[:64] for line in lines if (name := line[66:]) and Path(name).name == name}
    return sums if SETTINGS in sums and len(sums) > 1 else {}


def load_metric(name: str, folder: Path | None = None) -> SimilarityMetric:
    """A similarity metric by its name, with its learned weights where it has any (``folder``, else those shipped)."""
    kind = METRICS[name]
    if name not in VERSIONS:
        return kind()
    tensors, settings = read_weights(folder or shipped(name))
    return kind.from_weights(tensors, settings["network"])
