"""Orientation fields carried through transforms: they go where streamlines go, and keep what modulation promises."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.fields import Affine, Displacement, Flow, Image, ImageGrid, PeakField, ShField, TensorField, VelocityField
from tractode.fields.reorient import jacobian, reoriented, reoriented_axes
from tractode.ops import reorient_fod, sphere, symmetric
from tractode.ops import spherical_harmonics as sh

CENTRE = torch.tensor([5.0, -3.0, 8.0], dtype=torch.float64)
FIBRE = torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64)


def grid_of(affine: torch.Tensor, n: tuple[int, int, int], space: str, scale: float = 1.0) -> ImageGrid:
    moved = affine.clone()
    moved[:3, :3] *= scale
    moved[:3, 3] = CENTRE - moved[:3, :3] @ (torch.tensor(n, dtype=torch.float64) - 1) / 2
    return ImageGrid(n, moved, space)


@pytest.fixture
def moving(oblique_affine: torch.Tensor) -> ImageGrid:
    return grid_of(oblique_affine, (21, 19, 17), "dwi")


@pytest.fixture
def fixed(oblique_affine: torch.Tensor) -> ImageGrid:
    """Upright and right-handed, so that no axis is shared."""
    return grid_of(torch.diag(torch.tensor([2.0, 2.2, 2.4, 1.0]).double()), (13, 12, 11), "T")


def flow(space: str = "T", target: str = "dwi") -> Flow:
    nodes = grid_of(torch.diag(torch.tensor([4.0, 4, 4, 1]).double()), (21, 21, 21), space)
    offset = (nodes.centres(torch.float64) - CENTRE) / 12
    fade = torch.exp(-offset.square().sum(-1, keepdim=True) / 4)
    velocity = 6 * fade * torch.stack([offset[..., 1].sin(), offset[..., 2].cos(), (offset[..., 0] + 0.3).sin()], -1)
    return Flow(VelocityField(nodes, velocity.movedim(-1, 0)[None]), space, target)


def along(fibre: torch.Tensor, grid: ImageGrid, order: int = 8) -> ShField:
    coeffs = reorient_fod.point_spread(fibre, order)
    return ShField(grid, coeffs[:, None, None, None].expand(-1, *grid.shape).contiguous(), order)


def test_the_jacobian_of_an_affine_is_its_matrix(fixed: ImageGrid) -> None:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] += torch.tensor([[0.05, 0.2, -0.1], [-0.25, -0.1, 0.1], [0.1, 0.0, 0.05]]).double()
    found = jacobian(Affine(matrix, "T", "dwi"), fixed)
    torch.testing.assert_close(found, matrix[:3, :3].expand_as(found), atol=1e-12, rtol=0)
    thin = ImageGrid((1, 3, 1), fixed.affine, "T")
    torch.testing.assert_close(jacobian(Affine(matrix, "T", "dwi"), thin)[0, 0, 0], matrix[:3, :3], atol=1e-12, rtol=0)


def follow(directions: torch.Tensor, tangent: torch.Tensor) -> bool:
    """Degrees: the Jacobian is taken over two voxels of 2.2 mm, the line is 1 mm long, and the flow bends between."""
    apart = torch.rad2deg(sphere.angle(directions, tangent))
    return float(apart.mean()) < 1.2 and float(apart.max()) < 5


def test_directions_go_where_streamlines_go(moving: ImageGrid, fixed: ImageGrid) -> None:
    """A short line through a voxel's origin, along the fibre, mapped back point by point: every kind of field follows it."""
    transform = flow()
    there = transform.map(fixed.centres(torch.float64))
    back = transform.inverse()
    step = 0.5 * FIBRE
    tangent = back.map(there + step) - back.map(there - step)
    tangent = tangent / tangent.norm(dim=-1, keepdim=True)
    inner = (slice(3, -3),) * 3
    assert float(torch.rad2deg(sphere.angle(tangent, FIBRE.expand_as(tangent)))[inner].max()) > 15  # it does turn them
    matrix = 1.5e-3 * torch.outer(FIBRE, FIBRE) + 0.2e-3 * torch.diag(torch.tensor([1.0, 2.0, 1.5]).double())
    principal = torch.linalg.eigh(matrix)[1][:, 2]
    tensor = symmetric.from_matrix(matrix)[:, None, None, None].expand(-1, *moving.shape).contiguous()

    found = reoriented(along(FIBRE, moving), fixed, transform).coeffs[:, 3:-3, 3:-3, 3:-3].movedim(0, -1)
    best = sphere.directions(6000)
    peaks = best[(found @ sh.basis(best, 8).mT).argmax(-1)]
    apart = torch.rad2deg(sphere.angle(peaks, tangent[inner]))
    # A lobe of order 8 is 30° wide and the shear bends it: its top is not quite where its middle goes (MRtrix3's neither).
    assert float(apart.mean()) < 2.5
    assert float(apart.max()) < 6.0

    axes = Image(
        moving, FIBRE[:, None, None, None] * (torch.rand(1, *moving.shape).double() < 0.5).double().mul(2).sub(1)
    )
    moved = reoriented_axes(axes, fixed, transform).values.movedim(0, -1)[inner]
    assert follow(moved, tangent[inner])

    peak = PeakField(
        moving, FIBRE[None, :, None, None, None].expand(1, 3, *moving.shape), torch.ones(1, *moving.shape).double()
    )
    moved = reoriented(peak, fixed, transform).directions[0].movedim(0, -1)[inner]
    assert follow(moved, tangent[inner])

    turned = reoriented(TensorField(moving, tensor), fixed, transform).components.movedim(0, -1)[inner]
    first = symmetric.eigen(turned)[1][..., 0]
    line = back.map(there + 0.5 * principal) - back.map(there - 0.5 * principal)
    assert follow(first, (line / line.norm(dim=-1, keepdim=True))[inner])


def test_a_bundle_keeps_its_total_across_and_over_space(oblique_affine: torch.Tensor) -> None:
    """A Gaussian bundle along z under scaling and shear: ∫ over a plane across it ("fod"), over space ("jacobian")."""
    moving = grid_of(torch.diag(torch.tensor([1.0, 1, 1, 1]).double()), (41, 41, 41), "dwi")
    offset = moving.centres(torch.float64) - CENTRE
    radius = offset[..., :2].square().sum(-1)
    z = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    profile = torch.exp(-radius / 18) * torch.exp(-((offset[..., 2] / 9) ** 2))
    bundle = ShField(moving, reorient_fod.point_spread(z, 8)[:, None, None, None] * profile, 8)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.tensor([[0.8, 0.1, 0.25], [0.0, 1.1, -0.2], [0.0, 0.0, 1.15]])  # fixed → moving
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ CENTRE
    fixed = grid_of(torch.diag(torch.tensor([1.1, 1.1, 1.1, 1]).double()), (51, 51, 45), "T")
    carry = Affine(matrix, "T", "dwi")
    total = {m: reoriented(bundle, fixed, carry, modulation=m).coeffs[0] for m in ("none", "fod", "jacobian")}
    over_space = {m: float(v.sum()) * 1.1**3 / float(bundle.coeffs[0].sum()) for m, v in total.items()}
    assert over_space["jacobian"] == pytest.approx(1, rel=2e-3)
    # Across: the fibre now runs along F z; a plane of constant fixed z cuts it at an angle, so the area is times its cosine.
    fibre = torch.linalg.inv(matrix[:3, :3]) @ z
    cosine = float(fibre[2] / fibre.norm())
    middle = fixed.shape[2] // 2
    area = float(total["fod"][:, :, middle].sum()) * 1.1**2 * cosine
    assert area == pytest.approx(float(bundle.coeffs[0][:, :, 20].sum()), rel=2e-2)
    assert abs(over_space["none"] - 1) > 0.01


def test_nothing_depends_on_slabs_or_on_the_storage_of_the_grid(
    moving: ImageGrid, fixed: ImageGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = along(FIBRE, moving, 4)
    whole = reoriented(field, fixed, flow()).coeffs
    monkeypatch.setattr("tractode.fields.reorient._SLAB_VOXELS", 1)
    torch.testing.assert_close(reoriented(field, fixed, flow()).coeffs, whole, atol=1e-12, rtol=0)


def test_beyond_the_field_there_is_nothing(moving: ImageGrid, fixed: ImageGrid) -> None:
    far = torch.eye(4, dtype=torch.float64)
    far[0, 3] = 30.0
    found = reoriented(along(FIBRE, moving, 4), fixed, Affine(far, "T", "dwi")).coeffs
    assert bool((found[0] == 0).any())
    assert bool((found[0] > 0).any())
    with pytest.raises(SpaceMismatchError, match="needs a transform 'T' → 'dwi'"):
        reoriented(along(FIBRE, moving, 4), fixed, Affine(far, "dwi", "T"))


def test_gradients_reach_the_field_and_the_warp() -> None:
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1]).double())
    source, grid = (
        ImageGrid((3, 3, 3), affine, "dwi"),
        ImageGrid((2, 2, 1), affine * 0.9 + 0.1 * torch.diag(affine.diag()), "T"),
    )
    generator = torch.Generator().manual_seed(1)
    coeffs = torch.randn(6, 3, 3, 3, dtype=torch.float64, generator=generator).requires_grad_(True)
    shift = torch.diag(torch.tensor([1.0, 1, 1, 1]).double())
    shift[:3, 3] = -4.1
    nodes = ImageGrid((3, 3, 3), shift @ torch.diag(torch.tensor([5.0, 5, 5, 1]).double()), "T")
    warp = (0.31 + 0.3 * torch.randn(3, 3, 3, 3, dtype=torch.float64, generator=generator)).requires_grad_(True)

    def carried(c: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return reoriented(ShField(source, c, 2), grid, Displacement(nodes, u, "T", "dwi"), modulation="fod").coeffs

    assert bool((carried(coeffs, warp) != 0).any())
    assert torch.autograd.gradcheck(carried, (coeffs, warp))
