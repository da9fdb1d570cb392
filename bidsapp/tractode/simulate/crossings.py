"""A small phantom of tubes that cross, kiss, bend and share a bottleneck: what whole heads take minutes for, in a second.

No paper: the tubes are built of the parts that simulated participants are made of (fibre populations, signal, noise).
Two straight tubes cross at 60°, an arch kisses one of them, and two tubes run side by side through a bottleneck before
they part again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from tractode.fields import DWI, GradientTable, ImageGrid, Streamlines
from tractode.ops import smooth
from tractode.simulate import signal
from tractode.simulate.bundles import disk
from tractode.simulate.fibres import FibreField, FibreSettings, fibre_field, splat
from tractode.simulate.signal import TissueModel

Knots = tuple[tuple[float, float, float], ...]

COURSES: dict[str, Knots] = {
    "straight": ((-44, -6, 0), (-15, -6, 0), (15, -6, 0), (44, -6, 0)),
    "oblique": ((-24, -42, 2), (-8, -14, 1), (8, 14, -1), (24, 42, -2)),
    "arch": ((-40, 38, 0), (-26, 18, 0), (-8, 6.5, 0), (8, 6.5, 0), (26, 18, 0), (40, 38, 0)),
    "upper": ((38, -42, 12), (34, -18, 5), (33, 2, 3.5), (34, 22, 5), (38, 42, 12)),
    "lower": ((38, -42, -12), (34, -18, -5), (33, 2, -3.5), (34, 22, -5), (38, 42, -12)),
}


@dataclass(frozen=True)
class PhantomSettings:
    """Lengths in mm; ``snr`` is white matter at b=0 over the noise of one channel, ``None`` for no noise."""

    voxel: float = 3.0
    half_size: tuple[float, float, float] = (51.0, 49.0, 24.0)
    radius: float = 5.0
    fibres: int = 250
    step: float = 1.0
    end_radius: float = 5.0
    snr: float | None = 15.0
    intensity: float = 1000.0
    bundles: tuple[str, ...] = tuple(COURSES)


@dataclass(frozen=True, eq=False)
class Tube:
    """A bundle on the grid: where it is, and the two regions in which its fibres end."""

    streamlines: Streamlines
    mask: Bool[Tensor, "i j k"]
    start: Bool[Tensor, "i j k"]
    end: Bool[Tensor, "i j k"]


@dataclass(frozen=True, eq=False)
class Phantom:
    """The scan, the truth about orientation, the voxels of white matter and the tubes."""

    dwi: DWI
    noise_free: Float[Tensor, "n i j k"]
    fibres: FibreField
    white: Bool[Tensor, "i j k"]
    tubes: dict[str, Tube]


def phantom(gtab: GradientTable, seed: int, settings: PhantomSettings | None = None) -> Phantom:
    """The phantom in one realisation of the noise; the tubes are the same for every seed."""
    settings = settings or PhantomSettings()
    grid = _grid(settings)
    lines = {name: _tube(COURSES[name], grid.space, settings) for name in settings.bundles}
    tissues = torch.zeros(3, *grid.shape, dtype=torch.float64)
    tissues[0] = 1.0
    fibres = fibre_field(grid, tissues, lines, FibreSettings(raised=0.9))
    flat = signal.predict(fibres.fod.coeffs.flatten(1).mT, fibres.tissues.flatten(1).mT, gtab, TissueModel(s0_grey=1.1))
    clean = (flat.mT * settings.intensity).reshape(-1, *grid.shape)
    sigma = 0.0 if settings.snr is None else settings.intensity / settings.snr
    noisy = signal.rician(clean, sigma, torch.Generator().manual_seed(seed))
    brain = torch.ones(grid.shape, dtype=torch.bool)
    tubes = {name: _truth(line, fibres, name, grid, settings) for name, line in lines.items()}
    white = fibres.tissues[1] > 0.5
    return Phantom(DWI(grid, noisy.float(), gtab, brain), clean.float(), fibres, white, tubes)


def _grid(settings: PhantomSettings) -> ImageGrid:
    shape = [max(1, round(2 * half / settings.voxel)) for half in settings.half_size]
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] *= settings.voxel
    affine[:3, 3] = -settings.voxel * (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    return ImageGrid((shape[0], shape[1], shape[2]), affine, "phantom")


def _tube(knots: Knots, space: str, settings: PhantomSettings) -> Streamlines:
    """Copies of the centre line, each shifted across it: the normal in the plane of the course, and z."""
    at = np.asarray(knots)
    chord = np.concatenate([[0], np.linalg.norm(np.diff(at, axis=0), axis=1).cumsum()])
    spline = CubicSpline(chord, at, bc_type="natural")
    where = np.linspace(0, chord[-1], int(chord[-1] / settings.step) + 2)
    centre, tangent = torch.from_numpy(spline(where)), torch.from_numpy(spline(where, 1))
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand_as(tangent)
    across = torch.linalg.cross(tangent, up)
    across = across / across.norm(dim=-1, keepdim=True)
    above = torch.linalg.cross(across, tangent)
    above = above / above.norm(dim=-1, keepdim=True)
    place = disk(settings.fibres, torch.Generator().manual_seed(0)) * settings.radius
    lines = centre + place[:, :1, None] * across + place[:, 1:, None] * above
    counts = torch.arange(len(lines) + 1) * lines.shape[1]
    return Streamlines(lines.reshape(-1, 3), counts, space)


def _truth(lines: Streamlines, fibres: FibreField, name: str, grid: ImageGrid, settings: PhantomSettings) -> Tube:
    mask = fibres.occupancy[name] > 0.5
    ends = lines.points[lines.offsets[:-1]], lines.points[lines.offsets[1:] - 1]
    start, end = (_near(grid, points, settings.end_radius) for points in ends)
    return Tube(lines, mask, start, end)


def _near(grid: ImageGrid, points: Float[Tensor, "p 3"], radius: float) -> Bool[Tensor, "i j k"]:
    """Voxels that points fall into or next to, widened by whole voxels up to the radius."""
    hit = splat(grid, points, torch.ones(len(points), 1, dtype=torch.float64))[0] > 0
    reach = max(0, round(radius / max(grid.voxel_sizes)) - 1)
    return smooth.dilate(hit, (reach, reach, reach)) if reach else hit
