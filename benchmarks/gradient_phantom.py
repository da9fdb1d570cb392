"""The field on which `tracking_gradient.py` measures: fibres around an axis, crossed by weaker ones."""

from __future__ import annotations

import torch
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.sdstream import SDStream

DOUBLE = torch.float64


def fibres(directions: Tensor, width: float = 0.02) -> Tensor:
    degree = sh.degrees(8).to(directions)
    unit = directions / directions.norm(dim=-1, keepdim=True)
    return sh.basis(unit, 8) * torch.exp(-width * degree * (degree + 1))


def rings(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[ShField, Image, Image]:
    """Fibres around a vertical axis with a weaker crossing, a ring to seed in, 2 mm, oblique and left-handed."""
    affine = torch.tensor(
        [[-1.96, 0.35, -0.1, 31.0], [-0.34, -1.96, -0.3, 17.0], [-0.12, -0.22, 1.98, -44.0], [0, 0, 0, 1]]
    )
    grid = ImageGrid(shape, affine.double(), "phantom")
    p = grid.centres(DOUBLE) - grid.to_world((torch.tensor(shape, dtype=DOUBLE) - 1) / 2)
    main = torch.stack((-p[..., 1], p[..., 0], 0.5 + 0.02 * p[..., 0]), dim=-1)
    coeffs = fibres(main) + 0.4 * fibres(torch.tensor([0.1, 0.2, 1.0], dtype=DOUBLE))
    radius = p[..., :2].norm(dim=-1)
    extent = 0.8 * min(shape[:2])
    ring = (radius > 0.5 * extent) & (radius < 0.9 * extent) & (p[..., 2].abs() < 4)
    field = ShField(grid, coeffs.permute(3, 0, 1, 2).to(dtype).contiguous(), 8)
    return field, Image(grid, torch.ones(1, *shape, dtype=torch.bool)), Image(grid, ring[None])


def along_fibres(field: ShField, seeds: Tensor) -> Tensor:
    centre = field.grid.to_world((torch.tensor(field.grid.shape, dtype=DOUBLE) - 1) / 2)
    p = seeds - centre.to(seeds)
    return torch.stack((-p[:, 1], p[:, 0], torch.zeros_like(p[:, 0])), dim=-1) / p[:, :2].norm(dim=-1, keepdim=True)


def track(tracker: SDStream, field: ShField, seeds: Tensor, mask: Image, start: Tensor) -> Streamlines:
    return next(tracker.track(field, seeds, mask, directions=start))
