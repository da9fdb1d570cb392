"""Small systems of many voxels at once against numpy; products of harmonics against their values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tractode.ops import sh_products, sphere
from tractode.ops import spherical_harmonics as sh
from tractode.ops.compile import kernel
from tractode.ops.lane_algebra import factorise, gather, solve, times


@kernel
def run(system: Any, right: Any, columns: Any, out: Any, n: int, n_rows: int, w: int) -> None:
    factorise(system, n, w)
    solve(system, right, n, w)
    times(columns, right, out, n_rows, n, w)


@kernel
def assemble(base: Any, first: Any, which: Any, weights: Any, x: Any, out: Any, w: int) -> None:
    gather(base, first, which, weights, x, out, w)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-4), (np.float64, 1e-12)])
@pytest.mark.parametrize("n", [4, 12, 20])
def test_every_voxel_has_its_own_systems_solution(dtype: type, tolerance: float, n: int) -> None:
    w = 64 // np.dtype(dtype).itemsize
    generator = np.random.default_rng(n)
    half = generator.normal(size=(w, n, n + 6))
    systems, right = half @ half.transpose(0, 2, 1), generator.normal(size=(w, n))
    matrix = generator.normal(size=(16, n))
    rows, columns = np.tril_indices(n)
    packed = np.ascontiguousarray(systems[:, rows, columns].T, dtype).ravel()
    x, out = np.ascontiguousarray(right.T, dtype).ravel(), np.zeros(16 * w, dtype)
    run(packed, x, np.ascontiguousarray(matrix.T, dtype).ravel(), out, n, 16, w)
    expected = np.linalg.solve(systems, right[..., None])[..., 0]
    np.testing.assert_allclose(x.reshape(n, w).T, expected, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(out.reshape(16, w).T, expected @ matrix.T, atol=20 * tolerance * np.abs(expected).max())


def test_a_sum_of_outer_products_comes_from_the_sums_of_harmonics_of_twice_the_order() -> None:
    order, w = 4, 8
    axes = sphere.directions(70)
    weights = torch.rand(w, 70, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, double = sh.basis(axes, order), sh.basis(axes, 2 * order)
    rows, columns = torch.tril_indices(15, 15)
    expected = weights @ (values[:, rows] * values[:, columns])
    found, gaunt = sh_products.products(order)
    first = torch.searchsorted(found[:, 0].contiguous(), torch.arange(len(rows) + 1))
    assert len(gaunt) < 0.2 * len(rows) * double.shape[1]
    sums = (weights @ double).mT.contiguous().ravel().numpy()
    out = np.zeros(len(rows) * w)
    assemble(np.zeros(len(rows)), first.numpy(), found[:, 1].contiguous().numpy(), gaunt.numpy(), sums, out, w)
    np.testing.assert_allclose(out.reshape(-1, w).T, expected.numpy(), atol=1e-12)
