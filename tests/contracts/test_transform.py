"""The laws of transforms, over every kind: inverses undo, nothing folds, chains are successive maps, storage does not matter."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.evaluate.folding import certificate
from tractode.fields import Affine, Chain, Displacement, Flow, ImageGrid, Transform, VelocityField
from tractode.fields.image import Image
from tractode.fields.transform import resample


def smooth_vectors(points: torch.Tensor, size: float) -> torch.Tensor:
    """A smooth vector field in closed form, fading 40 mm from (5, −3, 8)."""
    x, y, z = (points - torch.tensor([5.0, -3.0, 8.0]).to(points)).unbind(-1)
    fade = torch.exp(-(x**2 + y**2 + z**2) / (2 * 22.0**2))
    swirl = torch.stack([torch.sin(y / 15) + 0.4, torch.cos(z / 17) - z / 40, torch.sin(x / 13) - 0.3], dim=-1)
    return size * fade[..., None] * swirl


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    affine = oblique_affine.clone()
    affine[:3, :3] *= 1.5
    affine[:3, 3] = torch.tensor([5.0, -3.0, 8.0]).double() - affine[:3, :3] @ torch.tensor([17.0, 15.0, 14.0]).double()
    return ImageGrid((35, 31, 29), affine, "a")


def make(kind: str, grid: ImageGrid) -> Transform:
    points = grid.centres(torch.float64)
    if kind == "affine":
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] += torch.tensor([[0.1, 0.2, 0.0], [-0.15, -0.1, 0.1], [0.05, 0.0, 0.05]]).double()
        matrix[:3, 3] = torch.tensor([4.0, -7.0, 2.0])
        return Affine(matrix, "a", "b")
    if kind == "displacement":
        return Displacement(grid, smooth_vectors(points, 3.0).movedim(-1, 0), "a", "b")
    if kind == "flow":
        return Flow(VelocityField(grid, smooth_vectors(points, 7.0).movedim(-1, 0)[None]), "a", "b")
    if kind == "time-dependent flow":
        values = torch.stack([smooth_vectors(points, size).movedim(-1, 0) for size in (6.0, -3.0, 4.0)])
        return Flow(VelocityField(grid, values), "a", "b", steps=12)
    first, second = make("flow", grid), make("affine", grid)
    return Chain((first, Affine(second.matrix, "b", "c")))  # type: ignore[attr-defined]


KINDS = ["affine", "displacement", "flow", "time-dependent flow", "chain"]


@pytest.fixture
def points(grid: ImageGrid) -> torch.Tensor:
    spread = torch.rand(400, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.5
    return torch.tensor([5.0, -3.0, 8.0]).double() + 50 * spread


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_undoes_both_ways_and_swaps_spaces(kind: str, grid: ImageGrid, points: torch.Tensor) -> None:
    transform = make(kind, grid)
    back = transform.inverse()
    assert (back.source, back.target) == (transform.target, transform.source)
    assert float((transform.map(points) - points).norm(dim=-1).max()) > 1  # it does move them
    torch.testing.assert_close(back.map(transform.map(points)), points, atol=5e-3, rtol=0)
    torch.testing.assert_close(transform.map(back.map(points)), points, atol=5e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_folds(kind: str, grid: ImageGrid) -> None:
    found = certificate(make(kind, grid), grid)
    assert found.is_diffeomorphic
    assert found.min_jacobian > 0.1


def test_chain_is_successive_maps(grid: ImageGrid, points: torch.Tensor) -> None:
    chain = make("chain", grid)
    first, second = chain.parts  # type: ignore[attr-defined]
    assert torch.equal(chain.map(points), second.map(first.map(points)))
    assert torch.equal(first.then(second).map(points), chain.map(points))
    with pytest.raises(SpaceMismatchError, match="insert a transform from 'c' to 'a'"):
        Chain((chain, first))


@pytest.mark.parametrize("kind", ["displacement", "flow"])
def test_storage_order_of_the_grid_does_not_matter(kind: str, grid: ImageGrid, points: torch.Tensor) -> None:
    """The same vectors stored with axes permuted and one reversed are the same transform."""
    order = torch.tensor([2, 0, 1])
    affine = grid.affine.clone()
    affine[:3, :3] = grid.affine[:3, order]
    affine[:3, 3] += affine[:3, 1] * (grid.shape[0] - 1)
    affine[:3, 1] *= -1
    other = ImageGrid((grid.shape[2], grid.shape[0], grid.shape[1]), affine, "a")
    first, second = make(kind, grid), make(kind, other)
    torch.testing.assert_close(first.map(points), second.map(points), atol=1e-9, rtol=0)


def test_flow_of_a_linear_velocity_is_the_matrix_exponential(grid: ImageGrid) -> None:
    """An absolute anchor: v = M (x − c) has the closed-form flow c + exp(M) (x − c)."""
    centre = torch.tensor([5.0, -3.0, 8.0], dtype=torch.float64)
    generator = torch.tensor([[0.1, -0.3, 0.05], [0.25, -0.05, 0.1], [0.0, 0.15, 0.08]], dtype=torch.float64)
    velocity = ((grid.centres(torch.float64) - centre) @ generator.mT).movedim(-1, 0)[None]
    flow = Flow(VelocityField(grid, velocity), "a", "b", steps=10)
    points = centre + torch.tensor([[10.0, 0, 0], [-8, 12, 5], [3, -15, 9]], dtype=torch.float64)
    expected = centre + (points - centre) @ torch.linalg.matrix_exp(generator).mT
    torch.testing.assert_close(flow.map(points), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(flow.inverse().map(expected), points, atol=1e-5, rtol=0)


def test_tabulated_flow_is_the_flow(grid: ImageGrid, points: torch.Tensor) -> None:
    flow = make("flow", grid)
    table = flow.as_displacement(grid.resampled(2.0))  # type: ignore[attr-defined]
    torch.testing.assert_close(table.map(points), flow.map(points), atol=0.06, rtol=0)
    torch.testing.assert_close(table.inverse().map(points), flow.inverse().map(points), atol=0.06, rtol=0)


def test_gradients_reach_the_velocity(grid: ImageGrid, points: torch.Tensor) -> None:
    coarse = ImageGrid((3, 3, 3), torch.diag(torch.tensor([20.0, 20, 20, 1]).double()), "a")
    values = torch.rand(1, 3, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    some = torch.tensor([[21.0, 33.0, 18.0], [30.0, 27.0, 31.0]], dtype=torch.float64)

    def end(v: torch.Tensor) -> torch.Tensor:
        return Flow(VelocityField(coarse, v), "a", "b", steps=1).map(some)

    assert torch.autograd.gradcheck(end, (values.requires_grad_(True),))


def test_resampling_needs_the_right_direction(grid: ImageGrid) -> None:
    transform = make("affine", grid)
    image = Image(grid.renamed("b"), torch.ones(1, *grid.shape))
    with pytest.raises(SpaceMismatchError, match="needs a transform 'a' → 'b'"):
        resample(image, grid, transform.inverse())
