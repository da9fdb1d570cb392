"""Compiled products with ragged matrices: rows of entries, each an index and a value, or an atom of a dictionary."""

from __future__ import annotations

from tractode.ops.compile import kernel


@kernel
def rows_times(offsets, index, value, x, out):
    """``out[r] = Σ value · x[index]`` over the entries of row r."""
    for row in range(len(offsets) - 1):
        total = 0.0
        for entry in range(offsets[row], offsets[row + 1]):
            total += value[entry] * x[index[entry]]
        out[row] = total


@kernel
def atoms_times(offsets, line, atom, length, weights, atoms, first, last, out):
    """``out[v] = Σ length · weights[line] · atoms[atom]`` over the entries of voxels ``first`` to ``last``."""
    n = atoms.shape[1]
    for voxel in range(first, last):
        for m in range(n):
            out[voxel, m] = 0
        for entry in range(offsets[voxel], offsets[voxel + 1]):
            share = length[entry] * weights[line[entry]]
            if share != 0:
                for m in range(n):
                    out[voxel, m] += share * atoms[atom[entry], m]


@kernel
def atoms_dot(offsets, atom, length, residual, atoms, first, last, out):
    """``out[e] = length · ⟨atoms[atom], residual[v]⟩`` for every entry of voxels ``first`` to ``last``."""
    n = atoms.shape[1]
    for voxel in range(first, last):
        for entry in range(offsets[voxel], offsets[voxel + 1]):
            total = residual.dtype.type(0)
            for m in range(n):
                total += atoms[atom[entry], m] * residual[voxel, m]
            out[entry] = length[entry] * total
