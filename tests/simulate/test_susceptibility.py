"""The field of air spheres against the dipole's closed form, and the shim."""

from __future__ import annotations

import pytest
import torch

from tractode.simulate.susceptibility import SusceptibilitySettings, field_of_air, shimmed

DOUBLE = torch.float64


def test_a_sphere_of_air_has_the_field_of_a_dipole() -> None:
    one = SusceptibilitySettings(tesla=3.0, air=(((5.0, -3.0, 2.0), 10.0),))
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE)
    centre = torch.tensor([5.0, -3.0, 2.0], dtype=DOUBLE)
    at = torch.stack((centre + 20 * axis, centre + torch.tensor([20.0, 0, 0]), centre + 3 * axis))
    found = field_of_air(at, axis, one)
    surface = 42.577e6 * 3 * 9.4e-6 / 3  # 400 Hz
    assert found.tolist() == pytest.approx([2 * surface / 8, -surface / 8, 0.0])
    # At the magic angle there is none.
    magic = torch.tensor([(2 / 3) ** 0.5, 0.0, (1 / 3) ** 0.5], dtype=DOUBLE)
    assert float(field_of_air((centre + 25 * magic)[None], axis, one)) == pytest.approx(0.0, abs=1e-9)
    assert float(field_of_air((centre + 25 * magic)[None], magic, one)) == pytest.approx(2 * surface * 0.4**3)


def test_the_shim_takes_away_constant_and_slopes_only() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 80 * torch.rand(6, 7, 8, 3, dtype=DOUBLE, generator=generator)
    weight = (points[..., 0] > 20).double()
    plane = 3.0 + points @ torch.tensor([0.5, -0.2, 0.1], dtype=DOUBLE)
    torch.testing.assert_close(shimmed(plane, points, weight), torch.zeros_like(plane), atol=1e-8, rtol=0)
    bump = torch.exp(-((points - 40) / 10).square().sum(-1))
    torch.testing.assert_close(shimmed(plane + bump, points, weight), shimmed(bump, points, weight), atol=1e-8, rtol=0)
