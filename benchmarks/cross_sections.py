"""A phantom in which every bundle has a cross-section: the same area of fibres all along its course.

What streamline weights are to find is the cross-sectional area of a bundle's fibres. The phantom of `tractode.simulate`
has none: where its bundles cross or share a stem, a voxel's fibres are shared out among them, so that a bundle gets
thinner there. Here each fibre carries its area through every voxel it crosses, a voxel's fibre density is the sum over
fibres of area × length / volume, and tubes keep their thickness. Bundles differ in length, curvature, density and
thickness; two cross, two kiss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tractode.evaluate.connections import BundleRegions
from tractode.fields import DWI, GradientTable, Image, ImageGrid, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.simulate import bundles as tubes
from tractode.simulate import signal
from tractode.simulate.courses import Course, Station
from tractode.simulate.fibres import splat
from tractode.simulate.signal import TissueModel
from tractode.simulate.truth import near

FIBRES = 400
STEP_MM = 0.5
MEAN_SQUARE = 0.91  # cos² inside one population, as everywhere in the simulator
END_RADIUS_MM = 4.0
S0 = 1000.0


@dataclass(frozen=True)
class Tube:
    """Centre line in the plane at ``level`` (mm from the middle), radius (mm), share of the volume that is fibres."""

    name: str
    course: tuple[tuple[float, float], ...]
    level: float
    radius: float
    density: float
    seeding: float
    """Seeds a mm³ relative to the others', where seeding is uneven."""

    @property
    def area(self) -> float:
        """Of its fibres, mm²."""
        return self.density * math.pi * self.radius**2


def _straight(angle: float, half: float, y: float = 0.0) -> tuple[tuple[float, float], ...]:
    c, s = math.cos(angle), math.sin(angle)
    return tuple((t * half * c, t * half * s + y) for t in (-1.0, -0.33, 0.33, 1.0))


def _arc(sign: int) -> tuple[tuple[float, float], ...]:
    side = ((-24, 20.5), (-15, 10.5), (-6, 4.8), (0, 3.8), (6, 4.8), (15, 10.5), (24, 20.5))
    return tuple((float(x), sign * float(y)) for x, y in side)


TUBES = (
    Tube("CrossA", _straight(0.6, 27), -18, 4.0, 0.5, 1),
    Tube("CrossB", _straight(-0.6, 27), -18, 4.0, 0.35, 4),
    Tube("KissA", _arc(1), 0, 3.5, 0.8, 1),
    Tube("KissB", _arc(-1), 0, 3.5, 0.5, 4),
    Tube("Long", _straight(0.0, 27, 18.0), 18, 3.0, 0.8, 1),
    Tube("Short", _straight(0.0, 15, 7.0), 18, 4.0, 0.6, 4),
    Tube("Bend", ((-12, -25), (-11, -15), (-7, -8.5), (0, -6), (7, -8.5), (11, -15), (12, -25)), 18, 3.0, 0.7, 2),
)


@dataclass(frozen=True, eq=False)
class CrossSections:
    """The scan and what is true of it. ``seeding`` holds seeds a mm³ where seeding is uneven; areas are in mm²."""

    dwi: DWI
    white: Image
    single: Tensor
    seeding: Image
    regions: dict[str, BundleRegions]
    areas: Tensor


def cross_sections(gtab: GradientTable, size: int, snr: float, seed: int, space: str) -> CrossSections:
    """A cube of 60 mm with ``size`` voxels along an edge; the noise depends on the seed, the fibres do not."""
    voxel = 60 / size
    affine = torch.eye(4, dtype=torch.float64) * voxel
    affine[:3, 3], affine[3, 3] = -voxel * (size - 1) / 2, 1
    grid = ImageGrid((size, size, size), affine, space)
    generator = torch.Generator().manual_seed(0)
    lines = {tube.name: _fibres(tube, generator, space) for tube in TUBES}
    parts = {tube.name: _density(grid, lines[tube.name], tube.area / FIBRES) for tube in TUBES}
    fod = torch.stack([part[0] for part in parts.values()]).sum(0)
    share = {name: part[1] for name, part in parts.items()}
    white = torch.stack(list(share.values())).sum(0)
    inside = torch.zeros(grid.shape, dtype=torch.bool)
    inside[1:-1, 1:-1, 1:-1] = True
    tissues = torch.zeros(3, *grid.shape, dtype=torch.float64)
    tissues[0] = (1 - white).clamp(min=0)
    clean = torch.zeros(len(gtab), *grid.shape, dtype=torch.float64)
    model = TissueModel()
    clean[:, inside] = S0 * signal.predict(fod[:, inside].mT, tissues[:, inside].mT, gtab, model).mT
    noise = torch.Generator().manual_seed(1000 + seed)
    noisy = signal.rician(clean, S0 * model.s0_white / snr, noise).float()
    regions = {name: _regions(grid, share[name], lines[name]) for name in share}
    most = torch.stack(list(share.values())).amax(0)
    density = torch.stack([tube.seeding * share[tube.name] for tube in TUBES]).sum(0) / white.clamp(min=1e-6)
    wide = white > 0.25
    return CrossSections(
        DWI(grid, noisy, gtab, inside), Image(grid, wide[None]), (most > 0.9 * white) & (white > 0.5),
        Image(grid, torch.where(wide, density, 0.0)[None].float()), regions,
        torch.tensor([tube.area for tube in TUBES], dtype=torch.float64),
    )  # fmt: skip


def _fibres(tube: Tube, generator: torch.Generator, space: str) -> Streamlines:
    """Fibres spread evenly over a round cross-section at right angles to the course."""
    points = torch.tensor(tube.course, dtype=torch.float64)
    along = torch.gradient(points, dim=0)[0]
    along = along / along.norm(dim=-1, keepdim=True)
    stations = tuple(
        Station(
            (float(x), float(y), tube.level),
            (-float(b) * tube.radius, float(a) * tube.radius, 0.0),
            (0.0, 0.0, tube.radius),
        )
        for (x, y), (a, b) in zip(points, along, strict=True)
    )
    local = tubes.fibres(Course(tube.name, "paired", stations), tubes.disk(FIBRES, generator), STEP_MM)
    offsets = torch.arange(len(local) + 1) * local.shape[1]
    return Streamlines(local.reshape(-1, 3).float(), offsets, space)


def _density(grid: ImageGrid, lines: Streamlines, area: float) -> tuple[Tensor, Tensor]:
    """Harmonics of a bundle's fibres, which integrate to the share of each voxel that they fill, and that share."""
    points, owner = lines.points.double(), lines.streamline_of_point
    step = points.diff(dim=0)
    within = owner[1:] == owner[:-1]
    step, middle = step[within], ((points[1:] + points[:-1]) / 2)[within]
    length = step.norm(dim=-1, keepdim=True)
    factors = signal.watson(signal.concentration(torch.tensor([MEAN_SQUARE], dtype=torch.float64)), 8)[0]
    lobes = sh.basis(step / length, 8) * factors[sh.degrees(8) // 2]
    volume = abs(float(torch.det(grid.affine[:3, :3])))
    return splat(grid, middle, lobes * length * area / volume), splat(grid, middle, length * area / volume)[0]


def _regions(grid: ImageGrid, share: Tensor, lines: Streamlines) -> BundleRegions:
    first, last = lines.points[lines.offsets[:-1]], lines.points[lines.offsets[1:] - 1]
    return BundleRegions(
        grid, share > 0.05, near(grid, first, END_RADIUS_MM), near(grid, last, END_RADIUS_MM)
    )  # fmt: skip
