"""Components, quadratic forms and invariants agree with full matrices."""

from __future__ import annotations

import torch

from tractode.ops import symmetric


def _matrices(n: int = 10) -> torch.Tensor:
    m = torch.randn(n, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return m @ m.mT * 1e-3


def test_components_round_trip_and_forms() -> None:
    matrices = _matrices()
    components = symmetric.from_matrix(matrices)
    assert torch.equal(symmetric.to_matrix(components), matrices)
    g = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    torch.testing.assert_close(components @ symmetric.quadratic_form(g), g @ matrices @ g)


def test_anisotropy_known_answers() -> None:
    stick = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    ball = torch.tensor([1.0, 0, 0, 1, 0, 1], dtype=torch.float64)
    assert symmetric.anisotropy(torch.stack([stick, ball, 0 * ball])).tolist() == [1, 0, 0]
    tiny = symmetric.anisotropy((stick + 0.2 * ball).float() * 1e-12)
    values = torch.tensor([1.2, 0.2, 0.2], dtype=torch.float64)
    expected = (1.5 * (values - values.mean()).square().sum() / values.square().sum()).sqrt()
    torch.testing.assert_close(tiny.double(), expected, rtol=1e-6, atol=0)


def test_anisotropy_gradient_is_finite_for_a_ball() -> None:
    ball = torch.tensor([1.0, 0, 0, 1, 0, 1], dtype=torch.float64, requires_grad=True)
    symmetric.anisotropy(ball).backward()
    assert ball.grad is not None
    assert bool(torch.isfinite(ball.grad).all())


def test_eigen_is_sorted_and_rebuilds() -> None:
    components = symmetric.from_matrix(_matrices())
    values, vectors = symmetric.eigen(components)
    assert bool((values.diff(dim=-1) <= 0).all())
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, symmetric.to_matrix(components))
    torch.testing.assert_close(symmetric.eigenvalues(components), values)
