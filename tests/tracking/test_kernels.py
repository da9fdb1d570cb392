"""The compiled loops: their look-ups and polynomials against those in torch, their lines against the torch march."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField
from tractode.ops import sh_polynomial as poly
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.kernels.polynomial import amplitude, contract, spread, workspace
from tractode.tracking.kernels.table import contains, field_arrays, interpolate, mask_arrays
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.stopping import MaskLookup

DOUBLE = torch.float64


def patchy(affine: Tensor, order: int, kind: torch.dtype = DOUBLE) -> tuple[ShField, Image]:
    """Noise with empty voxels, and a mask of half of the voxels."""
    grid = ImageGrid((5, 6, 4), affine, "phantom")
    generator = torch.Generator().manual_seed(order)
    coeffs = torch.randn(sh.n_coefficients(order), *grid.shape, dtype=DOUBLE, generator=generator)
    coeffs *= torch.rand(grid.shape, generator=generator) > 0.2
    return ShField(grid, coeffs.to(kind), order), Image(grid, torch.rand(1, *grid.shape, generator=generator) > 0.5)


def points_around(grid: ImageGrid, n: int) -> Tensor:
    """Points in and a little outside an image, (n, 3) mm."""
    size = torch.tensor(grid.shape, dtype=DOUBLE)
    within = torch.rand(n, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(n))
    return grid.to_world(within * (size + 1) - 1)


@pytest.mark.parametrize("order", [2, 6, 8, 10])
def test_interpolated_amplitudes_are_those_of_the_table(oblique_affine: Tensor, order: int) -> None:
    field, _ = patchy(oblique_affine, order)
    table = ComponentTable.of(field)
    points = points_around(field.grid, 60)
    directions = torch.nn.functional.normalize(points_around(field.grid, 60), dim=-1)
    components, has_data = table.sample(to_voxel(field.grid, points.mT.contiguous()))
    b = poly.contraction(components, directions.mT.contiguous())
    value = poly.dot(directions.mT, poly.apply(b, directions.mT))
    arrays = field_arrays(table)
    columns, grid, powers = workspace(arrays)
    assert 10 < int(has_data.sum()) < 55
    for n in range(len(points)):
        assert interpolate(arrays, *points[n].tolist(), columns) == bool(has_data[n])
        if has_data[n]:
            spread(arrays.starts, columns, grid)
            found = contract(arrays.starts, grid, powers, *directions[n].tolist())
            np.testing.assert_allclose(found, b[:, n], rtol=1e-11, atol=1e-11)
            found = amplitude(arrays.starts, grid, powers, *directions[n].tolist())
            assert found == pytest.approx(float(value[n]), rel=1e-11, abs=1e-11)


def test_masks_contain_the_same_points(oblique_affine: Tensor) -> None:
    field, mask = patchy(oblique_affine, 2)
    points = points_around(field.grid, 300)
    lookup = MaskLookup.of(mask, torch.device("cpu"))
    arrays = mask_arrays(lookup)
    found = [contains(arrays, *point) for point in points.tolist()]
    assert found == lookup.contains(points.mT.contiguous()).tolist()
    assert 50 < sum(found) < 150
    assert not contains(arrays, math.nan, 0.0, 0.0)
