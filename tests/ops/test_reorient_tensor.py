"""Reorientation of tensors: R D Rᵀ for rotations, the first eigenvector to F e₁ under PPD, eigenvalues kept."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation

from tractode.ops import reorient_tensor, symmetric

SHEAR = torch.tensor([[1.0, 0.3, -0.1], [0.05, 0.9, 0.2], [0.0, -0.15, 1.2]], dtype=torch.float64)


def tensors(n: int = 6) -> torch.Tensor:
    frames = torch.from_numpy(Rotation.random(n, random_state=7).as_matrix())
    values = torch.tensor([1.7e-3, 0.5e-3, 0.2e-3], dtype=torch.float64)
    return symmetric.from_matrix(frames * values @ frames.mT)


@pytest.mark.parametrize("method", ["ppd", "fs"])
def test_a_rotation_is_exact(method: str) -> None:
    rotation = torch.from_numpy(Rotation.random(random_state=2).as_matrix())
    turned = reorient_tensor.reorient(tensors(), rotation[None], method)  # type: ignore[arg-type]
    torch.testing.assert_close(turned, symmetric.rotate(rotation, tensors()), atol=1e-15, rtol=1e-9)


@pytest.mark.parametrize("method", ["ppd", "fs"])
def test_eigenvalues_belong_to_the_tissue(method: str) -> None:
    turned = reorient_tensor.reorient(tensors(), SHEAR[None], method)  # type: ignore[arg-type]
    torch.testing.assert_close(symmetric.eigenvalues(turned), symmetric.eigenvalues(tensors()), atol=1e-12, rtol=1e-9)


def test_principal_directions_go_where_fibres_go() -> None:
    before, after = tensors(), reorient_tensor.reorient(tensors(), SHEAR[None], "ppd")
    first, second = symmetric.eigen(before)[1][..., 0], symmetric.eigen(before)[1][..., 1]
    now = symmetric.eigen(after)[1]
    carried = reorient_tensor.turn(first, SHEAR[None])
    torch.testing.assert_close((now[..., 0] * carried).sum(-1).abs(), torch.ones(6, dtype=torch.float64))
    # The plane of the first two is carried as a plane: its normal stays across F e₂ too.
    torch.testing.assert_close(
        (now[..., 2] * (second @ SHEAR.T)).sum(-1), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_finite_strain_is_the_nearest_rotation() -> None:
    u, _, vh = torch.linalg.svd(SHEAR)
    torch.testing.assert_close(reorient_tensor.nearest_rotation(SHEAR), u @ vh, atol=1e-12, rtol=0)


def test_isotropic_and_empty_tensors_stay() -> None:
    flat = torch.tensor([[0.0] * 6, [1e-3, 0, 0, 1e-3, 0, 1e-3]], dtype=torch.float64)
    assert torch.equal(reorient_tensor.reorient(flat, SHEAR[None], "ppd"), flat)


@pytest.mark.parametrize("method", ["ppd", "fs"])
def test_gradients_reach_tensors_and_map(method: str) -> None:
    components = (tensors(2) * 1e3).requires_grad_(True)
    forward = torch.stack([SHEAR, torch.eye(3, dtype=torch.float64)]).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda c, f: reorient_tensor.reorient(c, f, method),  # type: ignore[arg-type]
        (components, forward),
        atol=1e-6,
    )


def test_zero_vectors_stay_zero() -> None:
    directions = torch.tensor([[0.0, 0, 0], [0, 0, 1]], dtype=torch.float64, requires_grad=True)
    turned = reorient_tensor.turn(directions, SHEAR[None])
    assert turned[0].tolist() == [0, 0, 0]
    turned.sum().backward()
    assert bool(torch.isfinite(directions.grad).all())
