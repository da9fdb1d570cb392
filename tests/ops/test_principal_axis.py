"""The principal axis: against LAPACK, and its derivative where others fail."""

from __future__ import annotations

import pytest
import torch

from tractode.ops import symmetric
from tractode.ops.principal_axis import principal_axis

DOUBLE = torch.float64


def directions(n: int, seed: int) -> torch.Tensor:
    d = torch.randn(n, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return d / d.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-13), (torch.float32, 1e-6)])
def test_axis_and_anisotropy_are_those_of_lapack(dtype: torch.dtype, tolerance: float) -> None:
    a = torch.randn(640, 3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    components = symmetric.from_matrix(1e-3 * a @ a.mT)
    reference = directions(640, 1)
    axis, anisotropy = principal_axis(components.mT.to(dtype), reference.mT.to(dtype))
    expected = symmetric.eigen(components)[1][..., 0]
    assert float((1 - (axis.mT * expected).sum(-1).abs()).max()) < tolerance
    assert ((axis.mT * reference).sum(-1) >= 0).all()
    torch.testing.assert_close(anisotropy.double(), symmetric.anisotropy(components), rtol=0, atol=10 * tolerance)


def test_an_isotropic_or_empty_tensor_is_finite_and_has_no_anisotropy() -> None:
    components = torch.tensor([[1.0, 0], [0, 0], [0, 0], [1, 0], [0, 0], [1, 0]], dtype=DOUBLE).repeat(1, 32)
    axis, anisotropy = principal_axis(components, directions(64, 2).mT)
    assert torch.isfinite(axis).all()
    assert float(anisotropy.abs().max()) < 1e-7


def test_derivative_is_that_of_finite_differences() -> None:
    a = torch.randn(64, 3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    components = symmetric.from_matrix(a @ a.mT).mT.clone().requires_grad_()
    reference = directions(64, 4).mT
    assert torch.autograd.gradcheck(lambda c: principal_axis(c, reference)[0], (components,), fast_mode=True)


def test_derivative_is_finite_and_right_where_the_other_eigenvalues_are_equal() -> None:
    d = directions(64, 5)
    matrices = 0.3 * torch.eye(3, dtype=DOUBLE) + 1.4 * d[:, :, None] * d[:, None, :]
    components = symmetric.from_matrix(matrices).mT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: principal_axis(c, d.mT)[0], (components,), fast_mode=True)
