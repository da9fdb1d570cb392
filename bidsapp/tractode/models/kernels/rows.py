"""Products of every voxel's row with one matrix, without a library's threads: a row's result depends on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from tractode.ops.compile import inner, kernel
from tractode.ops.lane_algebra import times


@inner
def workspace(size: int, like: Any) -> Any:
    """Zeros that begin on a 64-byte line."""
    item = like.itemsize
    whole = np.zeros(size + 64 // item, like.dtype)
    skip = ((64 - whole.ctypes.data % 64) % 64) // item
    return whole[skip : skip + size]


@kernel
def multiply(rows: Any, columns: Any, out: Any) -> None:
    """``out = rows @ Mᵀ`` in the type of ``columns``, which holds M by its columns, filled up to a multiple of 8 rows."""
    w, n_voxels, n, n_out = 64 // columns.itemsize, rows.shape[0], rows.shape[1], out.shape[1]
    n_rows = n_out + (-n_out) % 8
    x, product = workspace(n * w, columns), workspace(n_rows * w, columns)
    for begin in range(0, n_voxels, w):
        count = min(w, n_voxels - begin)
        for place in range(count):
            for k in range(n):
                x[k * w + place] = rows[begin + place, k]
        times(columns, x, product, n_rows, n, w)
        for place in range(count):
            for k in range(n_out):
                out[begin + place, k] = product[k * w + place]
