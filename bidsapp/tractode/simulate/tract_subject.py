"""A subject to learn generative tractography from: known streamlines, and the orientation field a scan of them would give.

No paper. Bundles of a library, varied for one person → fibre populations on an oblique grid of random voxel size, with the
template's tissues moved alike → diffusion signal of a random scheme with noise → response and CSD as in the app → the grid of
`tractode.generative.space`. Departures from the app, all for speed: the response is sought among fewer voxels, and the deconvolution
runs in single precision and to order 6, which is what models see (the app's order 8 is cut). Everything stays in world axes, so nothing has to be reoriented.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import GradientTable, ImageGrid, ShField, Streamlines
from tractode.fields.transform import Affine
from tractode.generative.space import ORDER, normalised, training_grid
from tractode.models.deconvolution import constrained_deconvolution
from tractode.models.response import Response, ResponseSettings, estimate_response, gaussian_response
from tractode.ops import interpolate
from tractode.simulate import signal
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.bundle_variation import Variation, VariationSettings, vary
from tractode.simulate.fibres import FibreField, FibreSettings, fibre_field
from tractode.simulate.gradients import multi_shell
from tractode.simulate.seeds import stream
from tractode.simulate.signal import TissueModel
from tractode.simulate.tissues import Anatomy, averaged
from tractode.simulate.warp import tabulated

Range = tuple[float, float]


@dataclass(frozen=True)
class TractSubjectSettings:
    """Between what limits a subject's scan is drawn. Voxels in mm, b in s/mm², diffusivities in mm²/s.

    ``thick`` is the share of scans with slices up to ``thickest`` times the voxel; ``bias`` the standard deviation of the
    logarithm of a smooth brightness; ``seen`` the share of white matter in the template from which a model sees anything.
    """

    seed: int = 0
    variation: VariationSettings = field(default_factory=VariationSettings)
    voxel_mm: Range = (2.75, 4.0)
    thick: float = 0.2
    thickest: float = 1.5
    oblique_deg: float = 5.0
    directions: tuple[int, int] = (12, 90)
    n_b0: tuple[int, int] = (2, 6)
    b: Range = (800.0, 3000.0)
    snr: Range = (8.0, 50.0)
    bias: float = 0.1
    smoothing_mm: Range = (1.2, 2.2)
    coherence: Range = (0.87, 0.93)
    background: Range = (0.45, 0.58)
    restricted: Range = (0.4, 0.6)
    parallel: Range = (1.7e-3, 2.1e-3)
    perpendicular: Range = (0.45e-3, 0.7e-3)
    step_mm: float = 1.5
    seen: float = 0.05


@dataclass(frozen=True, eq=False)
class TractSubject:
    """``coeffs`` on `training_grid`, `normalised`, 0 where nothing is seen; row i of ``lines`` is row i of the library."""

    coeffs: Float[Tensor, "28 i j k"]
    lines: Float[Tensor, "s 31 3"]
    present: Bool[Tensor, " b"]
    kept: Bool[Tensor, " s"]


_RESPONSE = ResponseSettings(n_single_fibre=80, n_candidates=400, max_iterations=4)
_RESPONSE_VOXELS = 8000


@lru_cache(maxsize=2)
def visible(anatomy: Anatomy, least: float = TractSubjectSettings.seen) -> Bool[Tensor, "i j k"]:
    """Voxels of the training grid that a model may see: those with some white matter in the template.

    Grey matter, fluid and what lies around the head say nothing about streamlines and differ most between scans.
    """
    grid = training_grid()
    same = Affine(torch.eye(4, dtype=torch.float64), grid.space, anatomy.tissues.grid.space)
    return averaged(anatomy.white_matter, grid, same, 3)[0] > least


def synthesise(
    library: BundleLibrary, anatomy: Anatomy, number: int, settings: TractSubjectSettings | None = None
) -> TractSubject:
    """Subject ``number`` of the settings' seed: the same at every call."""
    settings = settings or TractSubjectSettings()
    person = vary(library, anatomy.t1w.grid, stream(settings.seed, number, "bundle variation"), settings.variation)
    scan = stream(settings.seed, number, "tract scan")
    grid = _grid(anatomy, scan, settings)
    fibres = painted(library, anatomy, person, grid, scan, settings)
    shown = visible(anatomy, settings.seen)
    wanted = _reached(shown, grid) & (fibres.tissues.sum(0) > 0)
    gtab = _table(scan, settings)
    values = _scanned(fibres, wanted, gtab, scan, stream(settings.seed, number, "tract noise"), settings)
    coeffs = torch.zeros(_n_coefficients(), *grid.shape)
    coeffs[:, wanted] = _deconvolved(values, gtab, scan).mT
    return TractSubject(_carried(coeffs, grid, shown).coeffs, person.lines, person.present, person.kept)


def painted(
    library: BundleLibrary, anatomy: Anatomy, person: Variation, grid: ImageGrid, generator: torch.Generator,
    settings: TractSubjectSettings,
) -> FibreField:  # fmt: skip
    """The person's fibre populations and tissues on a grid of the template's space."""
    back = tabulated(person.residual.inverse(), grid, 6.0)
    per_axis = max(1, math.ceil(max(grid.voxel_sizes) / 2.0))
    tissues = averaged(anatomy.tissues, grid, back, per_axis)
    tissues = tissues * (tissues.sum(0) > 0.5)
    fibres = FibreSettings(
        smoothing_mm=_between(settings.smoothing_mm, generator),
        coherence=_between(settings.coherence, generator),
        background=_between(settings.background, generator),
    )
    return fibre_field(grid, tissues, bundles_of(library, person, grid.space, settings.step_mm), fibres)


def bundles_of(library: BundleLibrary, person: Variation, space: str, step_mm: float = 1.5) -> dict[str, Streamlines]:
    """The streamlines that exist in a person, by bundle, with points about ``step_mm`` apart."""
    found = {}
    for index in person.present.nonzero().ravel().tolist():
        rows = ((library.bundle == index) & person.kept).nonzero().ravel()
        if len(rows):
            found[library.names[index]] = finer(person.lines[rows], space, step_mm)
    return found


def finer(lines: Float[Tensor, "s p 3"], space: str, step_mm: float) -> Streamlines:
    """The same lines with the same number of points each, ``step_mm`` apart in the mean: cubic between the given ones."""
    n, last = lines.shape[1], lines.shape[1] - 1
    length = float(lines.diff(dim=1).norm(dim=-1).sum(1).mean())
    at = torch.linspace(0, last, max(n, round(length / step_mm) + 1))
    lower = at.floor().long().clamp(max=last - 1)
    t = (at - lower)[:, None]
    ends = torch.cat([2 * lines[:, :1] - lines[:, 1:2], lines, 2 * lines[:, -1:] - lines[:, -2:-1]], dim=1)
    before, first, second, after = (ends[:, lower + k] for k in range(4))
    # Catmull–Rom: through the points, with the slope of the chord of their neighbours.
    points = first + 0.5 * t * (
        second
        - before
        + t * (2 * before - 5 * first + 4 * second - after + t * (3 * (first - second) + after - before))
    )
    return Streamlines(points.reshape(-1, 3), torch.arange(len(lines) + 1) * len(at), space)


def _n_coefficients() -> int:
    return (ORDER + 1) * (ORDER + 2) // 2


def _between(limits: Range, generator: torch.Generator) -> float:
    low, high = limits
    return low + (high - low) * float(torch.rand((), generator=generator))


def _whole(limits: tuple[int, int], generator: torch.Generator) -> int:
    return int(torch.randint(limits[0], limits[1] + 1, (), generator=generator))


def _rotation(degrees: float, generator: torch.Generator) -> Float[Tensor, "3 3"]:
    """A turn by normal angles of that standard deviation about each axis."""
    x, y, z = (
        torch.randn(3, generator=generator, dtype=torch.float64).clamp(-2.5, 2.5) * math.radians(degrees)
    ).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def _grid(anatomy: Anatomy, generator: torch.Generator, settings: TractSubjectSettings) -> ImageGrid:
    """An oblique grid around all that is seen of the head, its first voxel anywhere within a voxel."""
    size = torch.full((3,), _between(settings.voxel_mm, generator), dtype=torch.float64)
    thicker = _between((1.0, settings.thickest), generator)
    if float(torch.rand((), generator=generator)) < settings.thick:
        size[2] *= thicker
    axes = _rotation(settings.oblique_deg, generator)
    known = training_grid()
    points = known.to_world(visible(anatomy, settings.seen).nonzero().double()) @ axes
    low = points.amin(0) - size * (1 + torch.rand(3, generator=generator, dtype=torch.float64))
    shape = ((points.amax(0) - low) / size + 2).ceil().long().tolist()
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3], affine[:3, 3] = axes * size, axes @ low
    return ImageGrid((shape[0], shape[1], shape[2]), affine, known.space)


def _table(generator: torch.Generator, settings: TractSubjectSettings) -> GradientTable:
    b = round(_between(settings.b, generator) / 50) * 50.0
    table = multi_shell(((b, _whole(settings.directions, generator)),), _whole(settings.n_b0, generator))
    return replace(table, bvecs=table.bvecs @ _rotation(60.0, generator).mT)


def _reached(shown: Bool[Tensor, "i j k"], grid: ImageGrid) -> Bool[Tensor, "r s t"]:
    """Voxels of a scan that have a share in what is seen on the training grid: within a voxel of it."""
    known = training_grid()
    reach = max(1.0, max(grid.voxel_sizes) / known.voxel_sizes[0])
    position = known.to_voxel(grid.centres())
    near = torch.zeros(grid.shape, dtype=torch.bool)
    for corner in range(8):
        offset = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1]).to(position) * 2 - 1
        near |= interpolate.sample(shown[None].float(), position + offset * 0.5 * reach)[..., 0] > 0
    return near


def _scanned(
    fibres: FibreField,
    wanted: Bool[Tensor, "i j k"],
    gtab: GradientTable,
    scan: torch.Generator,
    noise: torch.Generator,
    settings: TractSubjectSettings,
) -> Float[Tensor, "v n"]:
    """The signal of the wanted voxels, of a brain whose diffusivities are drawn too."""
    model = TissueModel(
        restricted_fraction=_between(settings.restricted, scan),
        parallel=_between(settings.parallel, scan),
        perpendicular=_between(settings.perpendicular, scan),
    )
    clean = signal.predict(fibres.fod.coeffs[:, wanted].mT, fibres.tissues[:, wanted].mT, gtab, model).float()
    brightness = torch.exp(settings.bias * _smooth_values(fibres.fod.grid.centres()[wanted], scan))
    low, high = settings.snr
    snr = math.exp(_between((math.log(low), math.log(high)), scan))
    return signal.rician(clean * brightness[:, None], model.s0_white / snr, noise)


def _smooth_values(points: Float[Tensor, "v 3"], generator: torch.Generator, n_waves: int = 6) -> Float[Tensor, " v"]:
    """A random function of place of variance 1, smooth over 10 cm."""
    waves = torch.randn(n_waves, 3, generator=generator) * (2 * math.pi / 300)
    phase = 2 * math.pi * torch.rand(n_waves, generator=generator)
    amplitude = torch.randn(n_waves, generator=generator) * math.sqrt(2 / n_waves)
    return (points @ waves.mT + phase).cos() @ amplitude


def _deconvolved(values: Float[Tensor, "v n"], gtab: GradientTable, generator: torch.Generator) -> Float[Tensor, "v l"]:
    """CSD with a response from the scan itself, to the order that models see; also of fewer directions than the app takes."""
    shell = (~gtab.is_b0).nonzero().ravel()
    response = _response(values, gtab, generator)
    return constrained_deconvolution(values[:, shell], gtab.bvecs[shell], response.coefficients, ORDER, torch.float32)


def _response(values: Float[Tensor, "v n"], gtab: GradientTable, generator: torch.Generator) -> Response:
    shell = (~gtab.is_b0).nonzero().ravel()
    some = torch.randperm(len(values), generator=generator)[:_RESPONSE_VOXELS]
    try:
        return estimate_response(values[some], gtab, shell, _RESPONSE)
    except InputDataError:
        # Too little looks like white matter in the worst scans; a tensor's response is what is left.
        return gaussian_response(float(gtab.bvals[shell].mean()), 1.7e-3, 0.4e-3, float(values[:, gtab.is_b0].median()))


def _carried(coeffs: Float[Tensor, "28 r s t"], grid: ImageGrid, shown: Bool[Tensor, "i j k"]) -> ShField:
    known = training_grid()
    out = torch.zeros(_n_coefficients(), *known.shape)
    out[:, shown] = interpolate.sample(coeffs, grid.to_voxel(known.centres()[shown].double())).mT
    return normalised(ShField(known, out, ORDER))
