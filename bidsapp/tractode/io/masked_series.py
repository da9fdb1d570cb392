"""The masked voxels of a series, handed out by blocks of voxels with all their volumes: memory is bounded whatever the series.

A series is stored volume after volume and a model wants all volumes of a voxel. Of a plain ``.nii`` each block is read where it
lies, once. A compressed file can only be read from its beginning: what lies in the mask is kept in memory where that is
little, else in a nameless file on disk. Voxels come in the order in which they are stored (first axis fastest).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields import Image
from tractode.io.nifti import close_voxels, stored_volumes
from tractode.io.nifti_header import Header, read_header
from tractode.io.stream import ByteSource
from tractode.ops.least_squares import in_threads

IN_MEMORY = 1 << 30  # bytes of masked voxels that are kept in memory
BLOCK = 1 << 16
_TILE = 1 << 14  # voxels read at once by a thread: fewer, and threads wait for the interpreter


@dataclass(eq=False)
class MaskedSeries:
    """``n_volumes`` float32 values, at or above 0, of the voxels ``index`` (into a volume as it is stored).

    One of ``values`` (in memory, ``(n, v)``), ``scratch`` (the same on disk) and ``plain`` (the file itself) holds them.
    """

    index: np.ndarray
    n_volumes: int
    values: np.ndarray | None = None
    scratch: IO[bytes] | None = None
    plain: tuple[IO[bytes], Header] | None = None
    _memory: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def blocks(self, n_voxels: int = BLOCK) -> Iterator[tuple[slice, Float[Tensor, "v n"]]]:
        """Which voxels, and their signals, which the next block overwrites."""
        for start in range(0, len(self), n_voxels):
            which = slice(start, min(start + n_voxels, len(self)))
            yield which, self.rows(which)

    def rows(self, which: slice) -> Float[Tensor, "v n"]:
        """The signals of voxels in a row; the next call overwrites them."""
        count = which.stop - which.start
        rows = self._reused(-1, (count, self.n_volumes))
        if self.values is not None:
            np.copyto(rows, self.values[:, which].T)
        else:
            in_threads(lambda begin, end: self._fill(rows, which.start, begin, end), count)
        return torch.from_numpy(rows)

    def sample(self, at_most: int) -> Float[Tensor, "v n"]:
        """Evenly spaced voxels, all of them where there are no more than ``at_most``."""
        step = max(1, -(-len(self) // at_most))
        parts = [signal[-which.start % step :: step].clone() for which, signal in self.blocks()]
        return torch.cat(parts) if parts else torch.zeros(0, self.n_volumes)

    def _fill(self, rows: np.ndarray, first: int, begin: int, end: int) -> None:
        """The rows from ``begin`` to ``end``; row 0 is the voxel ``first``. A tile at a time, so that it is turned round in the cache."""
        volumes = self._reused(begin, (self.n_volumes, min(_TILE, end - begin)))
        for start in range(begin, end, _TILE):
            stop = min(start + _TILE, end)
            tile = volumes[:, : stop - start]
            self._read(slice(first + start, first + stop), tile)
            np.copyto(rows[start:stop], tile.T)

    def _read(self, which: slice, target: np.ndarray) -> None:
        """All volumes ``(n, v)`` of voxels in a row."""
        if self.scratch is not None:
            for n, row in enumerate(target):
                os.preadv(self.scratch.fileno(), [row.data], (n * len(self) + which.start) * 4)
            return
        assert self.plain is not None
        stream, header = self.plain
        first, size = int(self.index[which.start]), header.dtype.itemsize
        stored = np.empty(int(self.index[which.stop - 1]) + 1 - first, header.dtype)
        chosen = self.index[which] - first
        for n, row in enumerate(target):
            offset = header.offset + n * (header.n_bytes // header.n_volumes) + first * size
            os.preadv(stream.fileno(), [stored.view(np.uint8).data], offset)
            np.copyto(row, stored.take(chosen, mode="clip"), casting="unsafe")
        if (header.slope, header.intercept) != (1.0, 0.0):
            target *= header.slope
            target += header.intercept
        cleaned(target)

    def _reused(self, user: int, shape: tuple[int, int]) -> np.ndarray:
        """The memory that the same user had for the block before: to touch fresh pages costs more than to copy into them."""
        size = shape[0] * shape[1]
        if user not in self._memory or self._memory[user].size < size:
            self._memory[user] = np.empty(size, np.float32)
        return self._memory[user][:size].reshape(shape)


def cleaned(values: np.ndarray) -> np.ndarray:
    """Values that are not finite, or negative, become 0 in place, as where a series is read whole."""
    np.fmax(values, 0, out=values)  # of a number and none, the number
    if values.size and values.max() == np.inf:
        values[values == np.inf] = 0
    return values


@contextmanager
def masked_series(
    path: Path, mask: Bool[Tensor, "i j k"], folder: Path | None = None, *, in_memory: int = IN_MEMORY
) -> Iterator[MaskedSeries]:
    """The voxels of a 4-D image inside a mask; a file in ``folder`` takes them where they are more than ``in_memory`` bytes.

    Raises
    ------
    MissingInputError, InputDataError
        The file is absent or cannot be trusted.
    """
    index = np.flatnonzero(mask.numpy().ravel(order="F"))
    with ByteSource(path) as source:
        header = read_header(source)
        if not source.is_compressed and source.largest_size >= header.offset + header.n_bytes:
            with path.open("rb", buffering=0) as stream:
                yield MaskedSeries(index, header.n_volumes, plain=(stream, header))
            return
        on_disk = header.n_volumes * len(index) * 4 > in_memory
        with tempfile.TemporaryFile(dir=folder) if on_disk else _nothing() as scratch:
            values = None if on_disk else np.empty((header.n_volumes, len(index)), np.float32)
            for n, volume in enumerate(stored_volumes(source, header)):
                kept = volume.T.reshape(-1)[index]
                if values is not None:
                    values[n] = cleaned(kept)
                elif scratch is not None:
                    scratch.write(cleaned(kept).data)
            close_voxels(source, header)
            if scratch is not None:
                scratch.flush()
            yield MaskedSeries(index, header.n_volumes, values, scratch)


def voxel_blocks(path: Path, mask: Image, n_voxels: int = BLOCK) -> Iterator[tuple[np.ndarray, Float[Tensor, "v n"]]]:
    """`MaskedSeries.blocks` of a file: which voxels (indices into a volume as it is stored), and their signals."""
    with masked_series(path, mask.mask) as series:
        for which, signal in series.blocks(n_voxels):
            yield series.index[which], signal


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
