"""Directions are evenly spread and repeatable; angles are exact."""

from __future__ import annotations

import math

import pytest
import torch

from tractode.ops import sphere


def _smallest_angle(points: torch.Tensor, axial: bool) -> float:
    cosine = points @ points.mT
    cosine.fill_diagonal_(-2 if not axial else 0)
    return math.degrees(math.acos(float((cosine.abs() if axial else cosine).max())))


@pytest.mark.parametrize("n", [6, 30, 300])
@pytest.mark.parametrize("hemisphere", [True, False])
def test_directions_are_spread(n: int, hemisphere: bool) -> None:
    points = sphere.directions(n, hemisphere)
    assert points.shape == (n, 3)
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(n, dtype=torch.float64))
    # The best possible spacing of N points tends to sqrt(8π / (√3 N)); ask for 80 % of that bound.
    bound = math.degrees(math.sqrt(8 * math.pi / (math.sqrt(3) * n * (2 if hemisphere else 1))))
    assert _smallest_angle(points, hemisphere) > 0.8 * bound


def test_six_axes_are_those_of_the_icosahedron() -> None:
    assert _smallest_angle(sphere.directions(6, True), axial=True) == pytest.approx(63.4349, abs=0.1)


def test_directions_repeat_and_are_not_shared() -> None:
    first = sphere.directions(20)
    first[0] = 0
    assert float(sphere.directions(20)[0].norm()) == pytest.approx(1)


def test_hemisphere_is_upper() -> None:
    assert float(sphere.directions(100, True)[:, 2].min()) >= 0
    assert float(sphere.directions(100, False)[:, 2].min()) < -0.9


def test_angle_known_answers() -> None:
    x = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    tilted = torch.tensor([-math.cos(1e-6), math.sin(1e-6), 0.0], dtype=torch.float64)
    assert float(sphere.angle(x, tilted)) == pytest.approx(1e-6, rel=1e-9)
    assert float(sphere.angle(x, tilted, axial=False)) == pytest.approx(math.pi - 1e-6)


def test_frame_takes_each_axis_to_z() -> None:
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    axes = torch.cat([axes, sphere.directions(10, False)])
    frames = sphere.frame_to_z(axes)
    torch.testing.assert_close(
        (frames @ axes[..., None])[..., 0], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(axes)
    )
    torch.testing.assert_close(torch.linalg.det(frames), torch.ones(len(axes), dtype=torch.float64))
