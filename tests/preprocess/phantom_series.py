"""A small head with a fibre bundle, fluid and a rim, its diffusion signal by formulas, and how it is scanned when it moves."""

from __future__ import annotations

import torch
from torch import Tensor

from tractode.fields import DWI, GradientTable, ImageGrid
from tractode.ops import sphere
from tractode.ops import volume_pose as pose
from tractode.preprocess.eddy import PhaseEncoding, geometry

SHAPE = (34, 32, 26)


def grid_of(affine: Tensor) -> ImageGrid:
    """Voxels of the oblique affine, made 1.4 times as large."""
    larger = affine.clone()
    larger[:3, :3] *= 1.4
    return ImageGrid(SHAPE, larger, "sub-01_dwi")


def table(n: int = 20, n_b0: int = 3, b: float = 1000.0) -> GradientTable:
    """b=0 volumes spread over the series, directions spread over the sphere."""
    total = n + n_b0
    is_b0 = torch.zeros(total, dtype=torch.bool)
    is_b0[[round(k * total / n_b0) for k in range(n_b0)]] = True
    bvecs = torch.zeros(total, 3, dtype=torch.float64)
    bvecs[~is_b0] = sphere.directions(n)
    return GradientTable(torch.where(is_b0, 0.0, b).double(), bvecs, is_b0)


_FLUID = (((6.0, -5.0, 4.0), (7.0, 12.0, 6.0)), ((-6.0, 25.0, 12.0), (9.0, 4.0, 5.0)), ((24.0, 8.0, -14.0), (4.0, 8.0, 5.0)),
          ((-22.0, -16.0, -10.0), (6.0, 4.0, 7.0)), ((14.0, -22.0, 14.0), (7.0, 5.0, 4.0)))  # fmt: skip
_BUNDLES = (((-14.0, 6.0, 10.0), (8.0, 6.0, 9.0), (0.6, 0.64, 0.48)), ((16.0, 12.0, 6.0), (6.0, 9.0, 6.0), (0.0, 0.6, -0.8)),
            ((4.0, -12.0, -14.0), (12.0, 6.0, 6.0), (0.96, 0.0, 0.28)))  # fmt: skip


def head(points: Tensor, gtab: GradientTable, centre: Tensor) -> Tensor:
    """Signal (n, p) at points (mm): an ellipsoid of grey matter with bundles and fluid inside, soft at every border."""
    x = points - centre
    rest, b = _inside(x, (37.0, 33.0, 29.0)), gtab.bvals[:, None]
    signal = torch.zeros(len(gtab), len(points), dtype=torch.float64)
    for place, radii in _FLUID:
        part = rest * _inside(x - torch.tensor(place).double(), radii)
        signal, rest = signal + 2.5 * part * torch.exp(-b * 3e-3), rest - part
    for place, radii, direction in _BUNDLES:
        part = rest * _inside(x - torch.tensor(place).double(), radii)
        along = (gtab.bvecs @ torch.tensor(direction, dtype=torch.float64))[:, None]
        signal, rest = signal + part * torch.exp(-b * (0.4e-3 + 1.3e-3 * along**2)), rest - part
    return 1000 * (signal + 1.3 * rest * torch.exp(-b * 0.85e-3))


def _inside(x: Tensor, radii: tuple[float, float, float]) -> Tensor:
    r = (x / torch.tensor(radii).double()).norm(dim=-1)
    return torch.sigmoid((1 - r) * min(radii) / 1.2)


def scan(
    grid: ImageGrid,
    gtab: GradientTable,
    rigid: Tensor,
    eddy: Tensor,
    sigma: float = 0.0,
    encoding: PhaseEncoding | None = None,
) -> DWI:
    """What is stored when the head moves by ``rigid`` about the grid's middle and eddy currents shift along the second axis."""
    centre = middle(grid)
    place = geometry(grid, centre, encoding or PhaseEncoding(1))
    index = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid.shape))
    generator = torch.Generator().manual_seed(5)
    volumes = []
    for volume in range(len(gtab)):
        one = slice(volume, volume + 1)
        points = place.origin_of(index, rigid[volume], eddy[volume])
        turn = pose.rotations(rigid[one, 3:])[0]
        seen = GradientTable(gtab.bvals[one], gtab.bvecs[one] @ turn, gtab.is_b0[one])
        _, bright = place.read_at(points, rigid[one], eddy[one])
        volumes.append((head(points, seen, centre)[0] / bright[0]).reshape(grid.shape))
    signal = torch.stack(volumes)
    noise = sigma * torch.randn(2, *signal.shape, generator=generator, dtype=torch.float64)
    flat = head(grid.centres(torch.float64).reshape(-1, 3), gtab[:1], centre)[0]
    mask = (flat > 500).reshape(grid.shape)
    return DWI(grid, torch.hypot(signal + noise[0], noise[1]).float(), gtab, mask)


def middle(grid: ImageGrid) -> Tensor:
    return grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2)


def motions(n: int, largest_mm: float = 3.0, largest_deg: float = 3.0) -> Tensor:
    """A slow walk with one jump, the same every time."""
    generator = torch.Generator().manual_seed(2)
    walk = torch.randn(n, 6, generator=generator, dtype=torch.float64).cumsum(0)
    walk[n // 2 :] += 2
    walk = walk - walk[:1]
    limits = torch.tensor([largest_mm] * 3 + [largest_deg * torch.pi / 180] * 3, dtype=torch.float64)
    return walk / walk.abs().amax(0) * limits
