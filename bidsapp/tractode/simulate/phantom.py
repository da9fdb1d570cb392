"""Small phantoms with known truth: bundles that cross, that kiss, and that squeeze through a bottleneck.

No paper; the three configurations are those that Maier-Hein et al., *The challenge of mapping the human connectome
based on diffusion tractography*, Nat Commun 2017, doi:10.1038/s41467-017-01285-x, name as what misleads tractography.
Bundles are the tubes of `bundles`, voxels and signal those of `fibres` and `signal`; what no bundle fills is grey matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import ShapeError
from tractode.fields import DWI, GradientTable, Image, ImageGrid, Streamlines
from tractode.simulate import bundles as tubes
from tractode.simulate import signal
from tractode.simulate.courses import Course, Number, Station
from tractode.simulate.fibres import FibreField, FibreSettings, fibre_field
from tractode.simulate.gradients import multi_shell
from tractode.simulate.signal import TissueModel
from tractode.simulate.tissues import GREY, WHITE
from tractode.simulate.truth import BundleTruth, bundle_truth

REGIONS = ("crossing", "kissing", "bottleneck")
_LEVELS_MM = {"crossing": -17.0, "kissing": 0.0, "bottleneck": 17.0}


@dataclass(frozen=True)
class PhantomSettings:
    """A cube of ``size`` voxels of ``voxel_mm``; ``snr`` is white matter at b=0 over one channel's noise (``None``: none).

    The bundles are laid out for a cube of 60 mm and scaled with it, thickness included. ``crossing_angle`` in radians.
    """

    regions: tuple[str, ...] = REGIONS
    size: int = 30
    voxel_mm: float = 2.0
    snr: float | None = 20.0
    crossing_angle: float = 1.2
    fibres_per_bundle: int = 150
    step_mm: float = 1.0
    end_radius_mm: float = 4.0
    white_matter_intensity: float = 1000.0
    fibres: FibreSettings = field(default_factory=lambda: FibreSettings(raised=1.0))
    tissue: TissueModel = field(default_factory=TissueModel)


@dataclass(frozen=True, eq=False)
class Phantom:
    """Images and what they were made from. ``white_matter`` is a mask: where bundles fill more than half of a voxel."""

    dwi: DWI
    noise_free: Float[Tensor, "n i j k"]
    fibres: FibreField
    bundles: dict[str, BundleTruth]
    white_matter: Image


def phantom(
    gtab: GradientTable | None = None,
    settings: PhantomSettings | None = None,
    seed: int = 0,
    affine: Float[Tensor, "4 4"] | None = None,
    space: str = "phantom",
) -> Phantom:
    """A phantom in about a second; the same seed gives the same voxels.

    ``gtab`` defaults to 6 b=0 volumes and 60 directions at b = 2500 s/mm². ``affine`` (voxel to RAS+ mm, any
    orientation and origin) replaces the centred grid of ``voxel_mm``; the bundles turn with its axes. Raises
    `ShapeError` for an unknown region.
    """
    settings = settings or PhantomSettings()
    gtab = multi_shell(((2500.0, 60),), 6) if gtab is None else gtab
    grid = _grid(settings, affine, space)
    generator = torch.Generator().manual_seed(seed)
    lines = {name: _lines(course, grid, settings, generator) for name, course in _courses(settings).items()}
    tissues = torch.zeros(3, *grid.shape, dtype=torch.float64)
    tissues[GREY, 1:-1, 1:-1, 1:-1] = 1
    fibres = fibre_field(grid, tissues, lines, settings.fibres)
    brain = tissues.sum(0) > 0
    clean = torch.zeros(len(gtab), *grid.shape, dtype=torch.float64)
    values = signal.predict(fibres.fod.coeffs[:, brain].mT, fibres.tissues[:, brain].mT, gtab, settings.tissue)
    clean[:, brain] = values.mT * settings.white_matter_intensity
    sigma = 0.0 if settings.snr is None else settings.white_matter_intensity * settings.tissue.s0_white / settings.snr
    noisy = signal.rician(clean, sigma, generator).float()
    truths = {name: bundle_truth(line, fibres, name, settings.end_radius_mm) for name, line in lines.items()}
    white = Image(grid, fibres.tissues[WHITE : WHITE + 1] > 0.5)
    return Phantom(DWI(grid, noisy, gtab, brain), clean.float(), fibres, truths, white)


def _grid(settings: PhantomSettings, affine: Float[Tensor, "4 4"] | None, space: str) -> ImageGrid:
    n = settings.size
    if affine is None:
        affine = torch.eye(4, dtype=torch.float64) * settings.voxel_mm
        affine[:3, 3], affine[3, 3] = -settings.voxel_mm * (n - 1) / 2, 1
    return ImageGrid((n, n, n), affine, space)


def _lines(course: Course, grid: ImageGrid, settings: PhantomSettings, generator: torch.Generator) -> Streamlines:
    """The bundle's fibres, from the cube's own axes (60 mm an edge) to the world."""
    local = tubes.fibres(course, tubes.disk(settings.fibres_per_bundle, generator), settings.step_mm)
    share = local.reshape(-1, 3) / 60  # of the cube's edge, from its middle
    shape = torch.tensor(grid.shape, dtype=torch.float64)
    points = grid.to_world(share * shape + (shape - 1) / 2).float()
    offsets = torch.arange(len(local) + 1) * local.shape[1]
    return Streamlines(points, offsets, grid.space)


def _courses(settings: PhantomSettings) -> dict[str, Course]:
    unknown = [region for region in settings.regions if region not in REGIONS]
    if unknown:
        raise ShapeError(f"There is no region {unknown[0]!r}; choose from {', '.join(REGIONS)}.")
    made = {"crossing": _crossing(settings.crossing_angle), "kissing": _kissing(), "bottleneck": _bottleneck()}
    return {course.name: course for region in settings.regions for course in made[region]}


def _crossing(angle: float) -> list[Course]:
    """Two straight bundles through one point, ``angle`` apart."""
    half = torch.tensor(angle / 2, dtype=torch.float64)
    c, s = float(half.cos()), float(half.sin())
    ends = [-27, -9, 9, 27]
    return [
        _tube(name, [(t * c, sign * t * s) for t in ends], [4.0] * 4, _LEVELS_MM["crossing"])
        for name, sign in (("CrossA", 1), ("CrossB", -1))
    ]


def _kissing() -> list[Course]:
    """Two arcs that come near, touch in the middle and part again on their own sides."""
    side: list[tuple[Number, Number]] = [
        (-24, 20.5),
        (-15, 10.5),
        (-6, 4.8),
        (0, 3.8),
        (6, 4.8),
        (15, 10.5),
        (24, 20.5),
    ]
    width = [4.0, 3.8, 3.5, 3.5, 3.5, 3.8, 4.0]
    level = _LEVELS_MM["kissing"]
    return [_tube(name, [(x, sign * y) for x, y in side], width, level) for name, sign in (("KissA", 1), ("KissB", -1))]


def _bottleneck() -> list[Course]:
    """Three bundles from apart through one stem and out again, their order kept."""
    profile = [(-25, 1.0), (-17, 0.6), (-7, 0.15), (0, 0.11), (7, 0.15), (17, 0.6), (25, 1.0)]
    width = [4.5, 4.0, 3.0, 2.8, 3.0, 4.0, 4.5]
    level = _LEVELS_MM["bottleneck"]
    places = (("NeckA", 21.0), ("NeckB", 0.0), ("NeckC", -21.0))
    return [_tube(name, [(x, share * y) for x, share in profile], width, level) for name, y in places]


def _tube(name: str, centres: Sequence[tuple[Number, Number]], radii: Sequence[float], level: float) -> Course:
    """A round tube in the plane at ``level``: cross-sections at right angles to its course."""
    points = torch.tensor(centres, dtype=torch.float64)
    along = torch.gradient(points, dim=0)[0]
    along = along / along.norm(dim=-1, keepdim=True)
    stations = tuple(
        Station((float(x), float(y), level), (-float(b) * r, float(a) * r, 0.0), (0.0, 0.0, r))
        for (x, y), (a, b), r in zip(points, along, radii, strict=True)
    )
    return Course(name, "paired", stations)
