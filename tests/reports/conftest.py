"""A lateralised world: a bright block on the patient's right, front and top, whatever the storage of the grid."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from tractode.fields import GradientTable, Image, ImageGrid, ShField, Streamlines
from tractode.ops.spherical_harmonics import basis

CENTRE = torch.tensor([7.0, -11.0, 23.0], dtype=torch.float64)  # of the head, off-origin
HALF = 40.0  # mm, half the head


def affine_of(storage: str, oblique: float, voxel: tuple[float, float, float] = (4.0, 4.5, 5.0)) -> torch.Tensor:
    """The affine of a storage order such as LAS or PSR, turned about all three axes by ``oblique`` degrees."""
    from scipy.spatial.transform import Rotation

    directions = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}
    linear = torch.zeros(3, 3, dtype=torch.float64)
    for column, letter in enumerate(storage):
        axis, sign = directions[letter]
        linear[axis, column] = sign * voxel[column]
    turn = Rotation.from_euler("zyx", [oblique, -oblique, oblique / 2], degrees=True).as_matrix()
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor(turn) @ linear
    return affine


def head_grid(storage: str, oblique: float = 0.0) -> ImageGrid:
    """A grid of 24³ voxels around the head."""
    affine = affine_of(storage, oblique)
    affine[:3, 3] = CENTRE - affine[:3, :3] @ torch.full((3,), 11.5, dtype=torch.float64)
    return ImageGrid((24, 24, 24), affine, "head")


def lateralised(grid: ImageGrid) -> tuple[Image, Image]:
    """A dim ball with a bright block on its right, front, upper side; and the ball as a mask."""
    offset = grid.centres(torch.float64) - CENTRE
    ball = offset.norm(dim=-1) < HALF
    block = ((offset - torch.tensor([18.0, 14.0, 12.0], dtype=torch.float64)).abs() < 9).all(-1)
    values = ball.to(torch.float32) * 0.3 + (block & ball) * 0.7
    return Image(grid, values[None]), Image(grid, ball[None])


def one_direction(grid: ImageGrid, direction: tuple[float, float, float], order: int = 8) -> ShField:
    """The same sharp distribution along one direction in every voxel."""
    vector = torch.nn.functional.normalize(torch.tensor([direction], dtype=torch.float64), dim=-1)
    coefficients = basis(vector, order)[0].to(torch.float32)
    return ShField(grid, coefficients[:, None, None, None].expand(-1, *grid.shape).clone(), order)


def pixels(body: bytes | str) -> np.ndarray:
    """An encoded picture as numbers (h, w, 3)."""
    assert isinstance(body, bytes)
    return np.asarray(Picture.open(io.BytesIO(body)).convert("RGB"), dtype=float)


@pytest.fixture
def table() -> GradientTable:
    directions = torch.nn.functional.normalize(torch.randn(12, 3, generator=torch.Generator().manual_seed(3)), dim=-1)
    bvecs = torch.cat([torch.zeros(1, 3), directions])
    bvals = torch.tensor([0.0] + [1000.0] * 6 + [2000.0] * 6)
    return GradientTable(bvals, bvecs, bvals == 0)


@pytest.fixture
def lines() -> Streamlines:
    """Forty straight lines from back to front on the patient's right."""
    lines = []
    for index in range(40):
        along = torch.linspace(-30, 30, 41, dtype=torch.float64)
        line = torch.stack(
            [torch.full_like(along, 20 + 0.3 * (index % 8)), along, torch.full_like(along, 0.5 * (index // 8))], -1
        )
        lines.append((line + CENTRE).to(torch.float32))
    return Streamlines.from_list(lines, "head")
