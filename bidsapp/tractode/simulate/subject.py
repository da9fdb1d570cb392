"""One simulated participant: anatomy, bundles, orientation field and images, all from one seed, with their truth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields import DWI, Chain, GradientTable, Image, ImageGrid, Streamlines, Transform
from tractode.simulate import bundles as tubes
from tractode.simulate import signal
from tractode.simulate.fibres import FibreField, FibreSettings, fibre_field
from tractode.simulate.seeds import stream
from tractode.simulate.signal import TissueModel
from tractode.simulate.tissues import CSF, GREY, WHITE, Anatomy, averaged
from tractode.simulate.truth import BundleTruth, bundle_truth
from tractode.simulate.warp import WarpSettings, participant_warp, tabulated


@dataclass(frozen=True)
class SubjectSettings:
    """``snr`` is white matter at b=0 over the noise of one channel; ``None`` means no noise."""

    snr: float | None = 30.0
    t1w_snr: float | None = 40.0
    fibres_per_bundle: int = 300
    step_mm: float = 1.25
    bundles: tuple[str, ...] = ()
    white_matter_intensity: float = 1000.0
    end_radius_mm: float = 4.0
    warp: WarpSettings = field(default_factory=WarpSettings)
    fibres: FibreSettings = field(default_factory=FibreSettings)
    tissue: TissueModel = field(default_factory=TissueModel)


@dataclass(frozen=True, eq=False)
class Participant:
    """Images as a scanner would give them, and what they were made from."""

    t1w: Image
    t1w_mask: Image
    dwi: DWI
    noise_free: Float[Tensor, "n i j k"]
    warp: Chain
    fibres: FibreField
    bundles: dict[str, BundleTruth]


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The diffusion signal without noise, undistorted, and what it was made from."""

    grid: ImageGrid
    gtab: GradientTable
    signal: Float[Tensor, "n i j k"]
    fibres: FibreField
    bundles: dict[str, BundleTruth]

    @property
    def mask(self) -> Bool[Tensor, "i j k"]:
        return self.fibres.tissues.sum(0) > 0


def simulate(
    anatomy: Anatomy,
    t1w_grid: ImageGrid,
    dwi_grid: ImageGrid,
    gtab: GradientTable,
    seed: int,
    number: int,
    settings: SubjectSettings | None = None,
) -> Participant:
    """Participant ``number`` of a seed. Both grids are in scanner space, and the head has not moved between them."""
    settings = settings or SubjectSettings()
    template = anatomy.t1w.grid
    warp = participant_warp(template, t1w_grid.space, stream(seed, number, "warp"), settings.warp)
    t1w, t1w_mask = t1w_scan(anatomy, t1w_grid, warp, settings, stream(seed, number, "T1w noise"))
    lines = template_bundles(anatomy, settings, stream(seed, number, "bundles"))
    true = diffusion(anatomy, dwi_grid, gtab, warp, lines, settings)
    dwi = scanned(true, true.signal, settings, stream(seed, number, "dwi noise"))
    return Participant(t1w, t1w_mask, dwi, true.signal.float(), warp, true.fibres, true.bundles)


def diffusion(
    anatomy: Anatomy,
    grid: ImageGrid,
    gtab: GradientTable,
    warp: Chain,
    lines: dict[str, Streamlines],
    settings: SubjectSettings,
) -> Diffusion:
    """The signal of a head on a grid; ``warp`` maps the grid's points to the template, ``lines`` are in the template."""
    tissues = tissues_on(anatomy, grid, warp)
    tissues = tissues * (tissues.sum(0) > 0.5)
    back = warp.inverse()
    own = {name: line.moved(back) for name, line in lines.items()}
    fibres = fibre_field(grid, tissues, own, settings.fibres)
    truths = {name: bundle_truth(line, fibres, name, settings.end_radius_mm) for name, line in own.items()}
    return Diffusion(grid, gtab, clean_signal(fibres, gtab, settings), fibres, truths)


def scanned(
    true: Diffusion, seen: Float[Tensor, "n i j k"], settings: SubjectSettings, generator: torch.Generator
) -> DWI:
    """What is stored of the signal ``seen`` (the true one, or that distorted): with noise, in whole numbers."""
    values = noisy(seen, settings, generator)
    return DWI(true.grid, values, true.gtab, true.mask)


def noisy(
    seen: Float[Tensor, "n i j k"], settings: SubjectSettings, generator: torch.Generator
) -> Float[Tensor, "n i j k"]:
    """Diffusion-weighted signal with the noise asked for, as it is stored."""
    sigma = 0.0 if settings.snr is None else settings.white_matter_intensity * settings.tissue.s0_white / settings.snr
    values = signal.rician(seen, sigma, generator)
    return values.round().float() if sigma else values.float()


def tissues_on(
    anatomy: Anatomy, grid: ImageGrid, warp: Chain, table: Transform | None = None
) -> Float[Tensor, "3 i j k"]:
    """Grey, white and CSF fractions of each voxel (float64): means over points at most 1.3 mm apart.

    ``table`` is the warp tabulated, where it is at hand (``warp`` is not used then).
    """
    per_axis = max(1, math.ceil(max(grid.voxel_sizes) / 1.3))
    return averaged(anatomy.tissues, grid, table or tabulated(warp, grid), per_axis).double()


def unweighted(tissues: Float[Tensor, "3 i j k"], settings: SubjectSettings) -> Float[Tensor, "1 i j k"]:
    """The signal at b=0 of these tissues."""
    inside = tissues * (tissues.sum(0) > 0.5)
    model = settings.tissue
    total = model.s0_grey * inside[GREY] + model.s0_white * inside[WHITE] + model.s0_csf * inside[CSF]
    return (total * settings.white_matter_intensity)[None]


def field_of_view(
    anatomy: Anatomy,
    warp: Chain,
    spacing: tuple[float, float, float],
    axes: Float[Tensor, "3 3"],
    margin_mm: float | tuple[float, float, float],
    space: str,
) -> ImageGrid:
    """The grid of the given voxel size and axis directions (columns, RAS+) that holds the participant's brain.

    ``margin_mm`` is left around it on all sides, or on both sides along each axis of the grid.
    """
    brain = anatomy.tissues.values.sum(0)[::4, ::4, ::4] > 0.5
    index = brain.nonzero().double() * 4
    world = warp.inverse().map(anatomy.tissues.grid.to_world(index))
    along = world @ axes
    margin = torch.tensor(margin_mm, dtype=torch.float64)
    low, high = along.amin(0) - margin, along.amax(0) + margin
    size = torch.tensor(spacing, dtype=torch.float64)
    # Even sizes: scanners' matrices are, and later processing may halve them.
    shape = [2 * math.ceil(float(n) / 2) for n in (high - low) / size]
    middle = (low + high) / 2
    first = middle - size * (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = axes * size
    affine[:3, 3] = axes @ first
    return ImageGrid((shape[0], shape[1], shape[2]), affine, space)


def t1w_scan(
    anatomy: Anatomy, grid: ImageGrid, warp: Chain, settings: SubjectSettings, generator: torch.Generator
) -> tuple[Image, Image]:
    """The T1w with noise, and the brain mask."""
    table = tabulated(warp, grid)
    both = Image(anatomy.t1w.grid, torch.cat([anatomy.t1w.values, anatomy.tissues.values.sum(0, keepdim=True)]))
    values = averaged(both, grid, table, 1)
    sigma = 0.0 if settings.t1w_snr is None else float(anatomy.t1w.values.max()) / settings.t1w_snr
    noisy = signal.rician(values[:1], sigma, generator) * settings.white_matter_intensity
    return Image(grid, noisy.round()), Image(grid, values[1:] > 0.5)


def template_bundles(anatomy: Anatomy, settings: SubjectSettings, generator: torch.Generator) -> dict[str, Streamlines]:
    """Every bundle's fibres in the template. All are drawn, so that choosing some changes none of them."""
    chosen = settings.bundles or tuple(tubes.courses())
    found = {}
    for name, course in tubes.courses().items():
        n = settings.fibres_per_bundle * course.fibres
        lines = tubes.bundle(name, anatomy.white_matter, n, generator, settings.step_mm)
        if name in chosen:
            found[name] = Streamlines(lines.points.float(), lines.offsets, lines.space)
    return found


def clean_signal(fibres: FibreField, gtab: GradientTable, settings: SubjectSettings) -> Float[Tensor, "n i j k"]:
    """The signal without noise that fibres and tissues give with a table."""
    brain = fibres.tissues.sum(0) > 0
    signals = signal.predict(fibres.fod.coeffs[:, brain].mT, fibres.tissues[:, brain].mT, gtab, settings.tissue)
    out = torch.zeros(len(gtab), *brain.shape, dtype=torch.float64)
    out[:, brain] = signals.mT * settings.white_matter_intensity
    return out


def chosen_names(names: Iterable[str]) -> tuple[str, ...]:
    """Full bundle names; a name without side means both sides. Raises ``KeyError`` with the unknown name."""
    return matching_names(names, tubes.courses())


def matching_names(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Those of the known names that are asked for, by themselves or without their side. Raises ``KeyError`` as above."""
    known, found = tuple(known), list[str]()
    for name in names:
        matching = [full for full in known if full == name or full in (f"{name}L", f"{name}R")]
        if not matching:
            raise KeyError(name)
        found += [full for full in matching if full not in found]
    return tuple(found)
