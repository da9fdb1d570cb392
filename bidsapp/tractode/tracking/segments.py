"""Where streamlines run, voxel by voxel: the exact length and the direction of every stay of a streamline in a voxel.

Amanatides & Woo, *A fast voxel traversal algorithm for ray tracing*, Eurographics 1987, doi:10.2312/egtp.19871000.
Departure: a piece's voxel is that of its middle instead of a running index, so points that lie on a wall need no rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from tractode.errors import SpaceMismatchError
from tractode.fields import ImageGrid, Streamlines
from tractode.tracking.kernels.segments import cut_at_walls

CHUNK = 8192
"""Streamlines cut at a time: a stay takes 20 bytes while its chunk is worked on."""


@dataclass(frozen=True, eq=False)
class Stays:
    """Stays of streamlines in voxels, in order along each line; those of line ``s`` are ``offsets[s]:offsets[s + 1]``.

    ``voxel`` is the ravelled index (last axis fastest), ``length`` in mm, ``direction`` the unit chord of the stay (RAS+).
    A line that leaves a voxel and comes back has two stays there. What lies outside the grid is left out.
    """

    offsets: Int[np.ndarray, " s_plus_1"]
    voxel: Int[np.ndarray, " e"]
    length: Float[np.ndarray, " e"]
    direction: Float[np.ndarray, "e 3"]

    @property
    def line(self) -> Int[np.ndarray, " e"]:
        """The line each stay belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), np.diff(self.offsets))


def stays(lines: Streamlines, grid: ImageGrid) -> Stays:
    """All stays of a tractogram; raises `SpaceMismatchError` where lines and grid are of different spaces."""
    if lines.space != grid.space:
        raise SpaceMismatchError(
            f"Streamlines of {lines.space!r} cannot be laid over a grid of {grid.space!r}; move one of them first."
        )
    points = lines.points.detach().cpu().numpy()
    offsets = lines.offsets.cpu().numpy().astype(np.int64)
    inverse = np.ascontiguousarray(grid.inverse_affine.numpy()[:3])
    shape = np.array(grid.shape, dtype=np.int64)
    counts = np.zeros(len(lines), dtype=np.int64)
    none = np.empty(0, np.int32), np.empty(0, np.float32), np.empty((0, 3), np.float32)
    cut_at_walls(points, offsets, inverse, shape, counts, *none, False)
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    n = int(bounds[-1])
    filled = np.empty(n, np.int32), np.empty(n, np.float32), np.empty((n, 3), np.float32)
    cut_at_walls(points, offsets, inverse, shape, bounds[:-1].copy(), *filled, True)
    return Stays(bounds, *filled)


def stays_in_chunks(lines: Streamlines | Iterable[Streamlines], grid: ImageGrid, size: int = CHUNK) -> Iterator[Stays]:
    """The stays of at most ``size`` lines at a time, in order, so that memory does not grow with the tractogram's."""
    for batch in (lines,) if isinstance(lines, Streamlines) else lines:
        for first in range(0, len(batch), size):
            last = min(first + size, len(batch))
            low, high = int(batch.offsets[first]), int(batch.offsets[last])
            yield stays(Streamlines(batch.points[low:high], batch.offsets[first : last + 1] - low, batch.space), grid)


def voxel_ranges(voxel: NDArray[np.integer], n_voxels: int) -> Int[np.ndarray, " v_plus_1"]:
    """Where each voxel's entries begin in a list sorted by voxel."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(voxel, minlength=n_voxels))])
