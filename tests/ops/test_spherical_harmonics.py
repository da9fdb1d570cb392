"""The basis is orthonormal, MRtrix3's own, symmetric, and differentiable at the poles."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.ops import spherical_harmonics as sh


def _random_directions(n: int) -> torch.Tensor:
    points = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return points / points.norm(dim=-1, keepdim=True)


def _quadrature(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss–Legendre in z times equal steps in azimuth: exact for the polynomials used here."""
    z, weight = np.polynomial.legendre.leggauss(n)
    phi = 2 * np.pi * np.arange(2 * n) / (2 * n)
    radius = np.sqrt(1 - z**2)
    points = np.stack(
        [np.outer(radius, np.cos(phi)), np.outer(radius, np.sin(phi)), np.outer(z, np.ones_like(phi))], -1
    )
    weights = np.outer(weight, np.full_like(phi, np.pi / n))
    return torch.tensor(points.reshape(-1, 3)), torch.tensor(weights.ravel())


def test_orthonormal_on_the_sphere() -> None:
    directions, weights = _quadrature(14)
    values = sh.basis(directions, 12)
    gram = values.mT @ (weights[:, None] * values)
    torch.testing.assert_close(gram, torch.eye(91, dtype=torch.float64), rtol=0, atol=1e-12)


def test_antipodal_directions_agree() -> None:
    directions = _random_directions(9)
    torch.testing.assert_close(sh.basis(-directions, 8), sh.basis(directions, 8))


def test_gradient_is_finite_at_the_pole() -> None:
    pole = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: sh.basis(d, 6), pole)


def test_zonal_harmonics_are_the_m0_columns() -> None:
    directions = _random_directions(5)
    columns = [degree * (degree + 1) // 2 for degree in range(0, 9, 2)]
    torch.testing.assert_close(sh.zonal(8, directions[:, 2]), sh.basis(directions, 8)[:, columns])


def test_addition_theorem_gives_the_legendre_polynomial() -> None:
    a, b = _random_directions(2)
    cosine = torch.dot(a, b)
    in_degree_4 = sh.degrees(4) == 4
    total = (sh.basis(a, 4) * sh.basis(b, 4))[in_degree_4].sum()
    legendre = (35 * cosine**4 - 30 * cosine**2 + 3) / 8
    torch.testing.assert_close(total, 9 / (4 * torch.pi) * legendre)


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("sh2amp") is None, reason="MRtrix3 is not installed")
def test_amplitudes_equal_those_of_mrtrix(tmp_path: Path) -> None:
    directions = _random_directions(30)
    nib.save(nib.Nifti1Image(np.eye(45).reshape(45, 1, 1, 45), np.eye(4)), tmp_path / "unit.nii")
    np.savetxt(tmp_path / "directions.txt", directions.numpy())
    subprocess.run(
        ["sh2amp", "-quiet", tmp_path / "unit.nii", tmp_path / "directions.txt", tmp_path / "amplitudes.nii"],
        check=True,
    )
    theirs = torch.tensor(np.asarray(nib.load(tmp_path / "amplitudes.nii").dataobj)[:, 0, 0, :].T.astype(np.float64))
    torch.testing.assert_close(sh.basis(directions, 8), theirs, rtol=0, atol=1e-6)
