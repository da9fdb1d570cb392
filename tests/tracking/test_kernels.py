"""The compiled loops: their look-ups and polynomials against those in torch, their lines against the torch march."""

from __future__ import annotations

import math
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from tractode.evaluate.agreement import compare_lines
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import compile as compilation
from tractode.ops import sh_polynomial as poly
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.kernels.polynomial import amplitude, contract, spread, workspace
from tractode.tracking.kernels.table import contains, field_arrays, interpolate, mask_arrays
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.sdstream import SDStream
from tractode.tracking.seeds import seeds_in_mask
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


def crossing(affine: Tensor, kind: torch.dtype) -> tuple[ShField, Image]:
    """A bundle that bends and a straight one that crosses it, in a ball."""
    grid = ImageGrid((14, 13, 9), affine, "phantom")
    p = grid.centres(DOUBLE) - grid.to_world(torch.tensor([6.5, 6.0, 4.0], dtype=DOUBLE))
    hub = torch.tensor([-25.0, 5.0, 3.0], dtype=DOUBLE)
    arc = torch.linalg.cross(torch.tensor([0.1, 0.2, 1.0], dtype=DOUBLE).expand_as(p), p - hub)
    straight = torch.tensor([0.9, 0.3, 0.2], dtype=DOUBLE).expand_as(p)
    degree = sh.degrees(8).double()
    blur = torch.exp(-0.015 * degree * (degree + 1))
    parts = [sh.basis(v / v.norm(dim=-1, keepdim=True), 8) * blur for v in (arc, straight)]
    ball = p.norm(dim=-1) < 11
    coeffs = ((0.6 * parts[0] + 0.4 * parts[1]) * ball[..., None]).permute(3, 0, 1, 2)
    return ShField(grid, coeffs.to(kind).contiguous(), 8), Image(grid, ball[None])


def tracked(tracker: SDStream, field: ShField, mask: Image, n: int) -> Streamlines:
    seeds = seeds_in_mask(mask, n, torch.Generator().manual_seed(1))
    return Streamlines.concatenate(tracker.track(field, seeds, mask, torch.Generator().manual_seed(2)), "phantom")


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("integration", ["euler", "rk4"])
def test_compiled_lines_are_those_of_the_torch_march(
    oblique_affine: Tensor, kind: torch.dtype, integration: str
) -> None:
    field, mask = crossing(oblique_affine, kind)
    settings = {"integration": integration, "step_mm": 0.5, "min_length": 3.0, "angle": 0.6}
    compiled = tracked(SDStream(**settings), field, mask, 80)
    marched = tracked(SDStream(**settings, compiled=False), field, mask, 80)
    found = compare_lines(compiled, marched)
    assert found.n > 30
    assert found.median_hausdorff_mm < (1e-4 if kind == torch.float32 else 1e-9)
    assert found.share_within_01mm >= (0.95 if kind == torch.float32 else 1.0)
    if kind == torch.float64:
        torch.testing.assert_close(compiled.points, marched.points, rtol=0, atol=1e-6)
        assert torch.equal(compiled.per_streamline["seed_point"], marched.per_streamline["seed_point"])


def test_one_way_lines_and_radii_are_alike_too(oblique_affine: Tensor) -> None:
    field, mask = crossing(oblique_affine, DOUBLE)
    settings = {"step_mm": 0.5, "min_length": 2.0, "one_way": True, "min_radius": 3.0, "max_length": 9.0}
    compiled = tracked(SDStream(**settings), field, mask, 60)
    marched = tracked(SDStream(**settings, compiled=False), field, mask, 60)
    assert len(compiled) > 20
    torch.testing.assert_close(compiled.points, marched.points, rtol=0, atol=1e-6)


def test_lines_are_the_same_bytes_for_any_batch_and_thread_count(oblique_affine: Tensor) -> None:
    field, mask = crossing(oblique_affine, torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for n_threads, batch in ((1, 2000), (2, 2000), (2, 77)):
            torch.set_num_threads(n_threads)
            found.append(tracked(SDStream(step_mm=0.5, min_length=3.0, batch_size=batch), field, mask, 900))
    finally:
        torch.set_num_threads(threads)
    assert len(found[0]) > 300
    for other in found[1:]:
        assert torch.equal(found[0].points, other.points)
        assert torch.equal(found[0].offsets, other.offsets)
        assert torch.equal(found[0].per_streamline["seed"], other.per_streamline["seed"])


@pytest.mark.parametrize(("integration", "across", "along"), [("euler", 1, 1), ("rk4", 3, 2)])
def test_steps_converge_with_their_order(oblique_affine: Tensor, integration: str, across: float, along: float) -> None:
    """Within one cell of voxel centres the interpolated field is smooth: eight fibres that fan and turn.

    A Runge-Kutta step is made as long as its arc, not as its chord: the line is right to the third order at least, the
    place on it to the second.
    """
    affine = oblique_affine.clone()
    affine[:3, :3] *= 20
    grid = ImageGrid((2, 2, 2), affine, "cell")
    corner = grid.centres(DOUBLE) - grid.to_world(torch.tensor([0.5, 0.5, 0.5], dtype=DOUBLE))
    turned = torch.stack((torch.full_like(corner[..., 0], 60.0), corner[..., 0], corner[..., 1]), dim=-1)
    degree = sh.degrees(8).double()
    fibres = sh.basis(turned / turned.norm(dim=-1, keepdim=True), 8) * torch.exp(-0.06 * degree * (degree + 1))
    field = ShField(grid, fibres.permute(3, 0, 1, 2).contiguous(), 8)
    mask = Image(grid, torch.ones(1, 2, 2, 2, dtype=torch.bool))
    seed = grid.to_world(torch.tensor([[0.3, 0.45, 0.55]], dtype=DOUBLE))

    def end(step: float) -> tuple[Tensor, Tensor]:
        """The point after 12 mm, and the way there from the point before."""
        tracker = SDStream(step_mm=step, integration=integration, one_way=True, min_length=1.0, max_length=13.0)
        lines = next(tracker.track(field, seed, mask, directions=torch.tensor([[1.0, 0.0, 0.0]], dtype=DOUBLE)))
        at = int(lines.per_streamline["seed_point"][0]) - round(12.0 / step)
        return lines[0][at], (lines[0][at] - lines[0][at + 1]) / step

    exact, tangent = end(0.0625 if integration == "rk4" else 0.01)
    errors = []
    for step in (2.0, 1.0):
        error = end(step)[0] - exact
        errors.append((float((error - (error @ tangent) * tangent).norm()), abs(float(error @ tangent))))
    assert min(errors[0]) > 1e-7
    # The line of the phantom is all but plane and its steps are better than their order: only the least is asked for.
    assert math.log2(errors[0][0] / errors[1][0]) > across - 0.1
    assert math.log2(errors[0][1] / errors[1][1]) == pytest.approx(along, abs=0.35)


def test_kernels_compile_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with_numba = numba.njit

    def without_folder(*arguments: object, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_with_numba(*arguments, **options)

    monkeypatch.setattr(compilation.numba, "njit", without_folder)

    def double(x: float) -> float:
        return x + x

    assert compilation.kernel(double)(1.5) == 3.0


def test_numba_is_imported_only_where_lines_are_followed() -> None:
    code = "import sys, tractode.tracking.sdstream; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
