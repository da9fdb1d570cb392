"""Rigid motions by rotation vectors, and the polynomial of eddy currents."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation

from tractode.ops import volume_pose as pose

SHAPE, SIZES = (20, 24, 15), (2.0, 2.3, 2.6)


def _motions(generator: torch.Generator, n: int = 7) -> torch.Tensor:
    return torch.randn(n, 6, generator=generator, dtype=torch.float64) * torch.tensor([4.0] * 3 + [0.6] * 3).double()


def test_rotations_are_scipys_and_come_back(generator: torch.Generator) -> None:
    vectors = _motions(generator)[:, 3:]
    expected = torch.from_numpy(Rotation.from_rotvec(vectors.numpy()).as_matrix())
    found = pose.rotations(vectors)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(pose.rotation_vectors(found), vectors, atol=1e-10)


def test_motions_undo_and_follow_each_other(generator: torch.Generator) -> None:
    first, second = _motions(generator), _motions(generator)
    centre = torch.tensor([10.0, -20.0, 30.0], dtype=torch.float64)
    points = 50 * torch.randn(11, 3, generator=generator, dtype=torch.float64)
    there = pose.moved(points, first, centre)
    for volume in range(len(first)):
        one = slice(volume, volume + 1)
        assert torch.allclose(pose.still(there[volume], first[one], centre)[0], points, atol=1e-9)
        twice = pose.moved(there[volume], second[one], centre)[0]
        assert torch.allclose(pose.moved(points, pose.then(first[one], second[one]), centre)[0], twice, atol=1e-9)
    nothing = pose.then(first, pose.inverse(first))
    assert torch.allclose(nothing, torch.zeros_like(nothing), atol=1e-10)
    matrices = pose.matrices(first, centre)
    assert torch.allclose(points @ matrices[0, :3, :3].mT + matrices[0, :3, 3], there[0], atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_polynomial_is_the_sum_of_its_terms_and_the_slope_its_derivative(
    generator: torch.Generator, axis: int
) -> None:
    index = 10 * torch.rand(3, 9, 3, generator=generator, dtype=torch.float64)
    coefficients = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    values, slope = pose.polynomial(index, coefficients, SHAPE, SIZES, axis)
    assert torch.allclose(values, (pose.terms(index, SHAPE, SIZES) * coefficients[:, None]).sum(-1), atol=1e-12)
    step = torch.zeros(3, dtype=torch.float64)
    step[axis] = 1e-4
    ahead = pose.polynomial(index + step, coefficients, SHAPE, SIZES, axis)[0]
    behind = pose.polynomial(index - step, coefficients, SHAPE, SIZES, axis)[0]
    assert torch.allclose((ahead - behind) / (2e-4 * SIZES[axis]), slope, atol=1e-7)


def test_a_term_is_one_at_100_mm() -> None:
    far = torch.tensor([[(SHAPE[0] - 1) / 2 + 50.0, (SHAPE[1] - 1) / 2, (SHAPE[2] - 1) / 2]], dtype=torch.float64)
    assert torch.allclose(pose.terms(far, SHAPE, SIZES)[0, [0, 3]], torch.ones(2, dtype=torch.float64))
