"""The masked voxels of a series, read volume by volume and handed out by slabs of voxels: memory is bounded whatever the series.

A series is stored volume after volume and a model wants all volumes of a voxel, so every slab needs the whole file. It is
read once: what lies in the mask is kept in memory where that is little, else in a nameless file on disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.io.nifti import close_voxels, stored_volumes
from tractode.io.nifti_header import read_header
from tractode.io.stream import ByteSource

IN_MEMORY = 1 << 30  # bytes of masked voxels that are kept in memory


@dataclass(frozen=True, eq=False)
class MaskedSeries:
    """``n_volumes`` float32 values of each of ``n_voxels`` voxels, in the order in which the mask ravels."""

    n_volumes: int
    n_voxels: int
    values: np.ndarray | None  # (n, v), or
    file: IO[bytes] | None

    def rows(self, start: int, stop: int) -> Float[Tensor, "v n"]:
        """The signals of some voxels in a row, at or above 0."""
        stop = min(stop, self.n_voxels)
        out = torch.empty(stop - start, self.n_volumes)
        for n in range(self.n_volumes):
            out[:, n] = torch.from_numpy(self._part(n, start, stop))
        return out

    def sample(self, at_most: int) -> Float[Tensor, "v n"]:
        """Evenly spaced voxels, all of them where there are no more than ``at_most``."""
        step = max(1, -(-self.n_voxels // at_most))
        out = torch.empty(len(range(0, self.n_voxels, step)), self.n_volumes)
        for n in range(self.n_volumes):
            out[:, n] = torch.from_numpy(self._part(n, 0, self.n_voxels)[::step].copy())
        return out

    def _part(self, volume: int, start: int, stop: int) -> np.ndarray:
        if self.values is not None:
            return self.values[volume, start:stop]
        assert self.file is not None
        itemsize = np.dtype(np.float32).itemsize
        offset = (volume * self.n_voxels + start) * itemsize
        return np.frombuffer(bytearray(os.pread(self.file.fileno(), (stop - start) * itemsize, offset)), np.float32)


@contextmanager
def masked_series(
    path: Path, mask: Bool[Tensor, "i j k"], folder: Path | None = None, *, in_memory: int = IN_MEMORY
) -> Iterator[MaskedSeries]:
    """The voxels of a 4-D image inside a mask; a file in ``folder`` takes them where they are more than ``in_memory`` bytes.

    Values that are not finite, or negative, become 0, as where a series is read whole.

    Raises
    ------
    MissingInputError, InputDataError
        The file is absent or cannot be trusted.
    """
    with ByteSource(path) as source:
        header = read_header(source)
        n_volumes, n_voxels = header.n_volumes, int(mask.sum())
        inside = mask.numpy()
        on_disk = n_volumes * n_voxels * 4 > in_memory
        with tempfile.TemporaryFile(dir=folder) if on_disk else _nothing() as file:
            values = None if on_disk else np.empty((n_volumes, n_voxels), np.float32)
            for n, volume in enumerate(stored_volumes(source, header)):
                kept = np.nan_to_num(volume[inside], copy=False, nan=0.0, posinf=0.0, neginf=0.0)
                np.maximum(kept, 0, out=kept)
                if values is not None:
                    values[n] = kept
                elif file is not None:
                    file.write(kept.tobytes())
            close_voxels(source, header)
            if file is not None:
                file.flush()
            yield MaskedSeries(n_volumes, n_voxels, values, file)


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
