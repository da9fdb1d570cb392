"""How one person's bundles differ from the library's: which exist, how dense, where they run, how wide they are.

No paper. Each bundle is shifted and bent by a random field of its own, a sum of a few waves (random Fourier features of a
Gaussian field, Rahimi & Recht 2007), and widened about its middle; what registration leaves is one smooth diffeomorphism
for everything: the flow of a random velocity as in `tractode.simulate.warp`, and a small affine map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields import Chain, Flow, ImageGrid
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.warp import WarpSettings, head_position, random_velocity, velocity_grid


@dataclass(frozen=True)
class VariationSettings:
    """Lengths in mm; displacements as standard deviations along each axis, ``residual_mm`` as root mean square length.

    ``sources`` are the probabilities that a subject has bundles of the atlas only, of the simulator only, and of both;
    ``shares`` between what limits the share of a bundle's lines that is kept, ``fewest`` how many are kept at least;
    ``lines`` which lines may exist at all.
    """

    sources: tuple[float, float, float] = (0.6, 0.25, 0.15)
    presence: float = 0.85
    shares: tuple[float, float] = (0.3, 1.0)
    fewest: int = 4
    shift_mm: float = 2.5
    bend_mm: float = 2.5
    wavelengths_mm: tuple[float, float] = (40.0, 100.0)
    width: float = 0.2
    residual_mm: tuple[float, float] = (0.5, 3.0)
    residual_length_mm: float = 20.0
    rotation_deg: float = 0.5
    scale: float = 0.01
    translation_mm: float = 1.0
    lines: Literal["training", "held-out", "all"] = "training"


NO_VARIATION = VariationSettings(
    sources=(0.0, 0.0, 1.0), presence=1.0, shares=(1.0, 1.0), shift_mm=0.0, bend_mm=0.0, width=0.0,
    residual_mm=(0.0, 0.0), rotation_deg=0.0, scale=0.0, translation_mm=0.0, lines="all",
)  # fmt: skip

_WAVES = 8


@dataclass(frozen=True, eq=False)
class Variation:
    """One person's version of the library; ``lines`` are given for all rows, ``residual`` maps the template to the person."""

    lines: Float[Tensor, "s 31 3"]
    present: Bool[Tensor, " b"]
    kept: Bool[Tensor, " s"]
    residual: Chain


def vary(
    library: BundleLibrary, template: ImageGrid, generator: torch.Generator, settings: VariationSettings | None = None
) -> Variation:
    """A person drawn at random. ``template`` is any grid of the template's space that holds the head."""
    settings = settings or VariationSettings()
    present = _present(library, generator, settings)
    kept = _kept(library, present, generator, settings)
    lines = displaced(library, generator, settings)
    residual = residual_warp(template, generator, settings)
    moved = residual.map(lines)
    return Variation(moved, present, kept, residual)


def displaced(
    library: BundleLibrary, generator: torch.Generator, settings: VariationSettings
) -> Float[Tensor, "s 31 3"]:
    """Every line as its bundle is widened, shifted and bent, in the template still."""
    n = len(library.names)
    counts = torch.bincount(library.bundle, minlength=n).clamp(min=1)
    middle = (
        torch.zeros(n, *library.lines.shape[1:]).index_add_(0, library.bundle, library.lines) / counts[:, None, None]
    )
    width = torch.exp(settings.width * torch.randn(n, generator=generator))
    centre = middle[library.bundle]
    lines = centre + (library.lines - centre) * width[library.bundle, None, None]
    shift = settings.shift_mm * torch.randn(n, 3, generator=generator)
    return lines + shift[library.bundle, None] + _bend(lines, library, generator, settings)


def _bend(
    lines: Float[Tensor, "s 31 3"], library: BundleLibrary, generator: torch.Generator, settings: VariationSettings
) -> Float[Tensor, "s 31 3"]:
    """A sum of waves in space for each bundle: ``u(x) = σ √(2/w) Σ a cos(k·x + φ)``, a and φ random, ``|k| = 2π/λ``."""
    n, (shortest, longest) = len(library.names), settings.wavelengths_mm
    direction = torch.randn(n, _WAVES, 3, generator=generator)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    wavelength = shortest + (longest - shortest) * torch.rand(n, _WAVES, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(n, _WAVES, generator=generator)
    amplitude = torch.randn(n, _WAVES, 3, generator=generator) * settings.bend_mm * math.sqrt(2 / _WAVES)
    waves = (2 * math.pi / wavelength) * direction
    angle = torch.einsum("spa,swa->spw", lines, waves[library.bundle]) + phase[library.bundle, None]
    return torch.einsum("spw,swa->spa", angle.cos(), amplitude[library.bundle])


def residual_warp(template: ImageGrid, generator: torch.Generator, settings: VariationSettings) -> Chain:
    """The template → the person as registration left them: a flow, then an affine map; both spaces bear one name."""
    low, high = settings.residual_mm
    amount = low + (high - low) * float(torch.rand((), generator=generator))
    grid = velocity_grid(template, _RESIDUAL_GRID_MM)
    warp = WarpSettings(
        rotation_deg=settings.rotation_deg, translation_mm=settings.translation_mm, scale=settings.scale,
        shape_mm=amount, shape_sigma_mm=settings.residual_length_mm, grid_mm=_RESIDUAL_GRID_MM,
    )  # fmt: skip
    shape = Flow(random_velocity(grid, generator, warp), template.space, template.space, steps=_RESIDUAL_STEPS)
    return Chain((shape, head_position(template.space, template.space, generator, warp)))


_RESIDUAL_GRID_MM = 8.0
_RESIDUAL_STEPS = 2  # of fourth order; the velocity is small against its length, so the inverse undoes it to 0.001 mm


def _present(library: BundleLibrary, generator: torch.Generator, settings: VariationSettings) -> Bool[Tensor, " b"]:
    draw = torch.rand(len(library.names), generator=generator)
    source = int(torch.multinomial(torch.tensor(settings.sources), 1, generator=generator))
    wanted = (~library.is_simulated, library.is_simulated, torch.ones_like(library.is_simulated))[source]
    return wanted & (draw < settings.presence)


def _kept(
    library: BundleLibrary, present: Bool[Tensor, " b"], generator: torch.Generator, settings: VariationSettings
) -> Bool[Tensor, " s"]:
    """A random share of the lines of each bundle that exists."""
    draw = torch.rand(len(library), generator=generator)
    low, high = settings.shares
    share = low + (high - low) * torch.rand(len(library.names), generator=generator)
    free = torch.ones_like(library.is_held_out)
    if settings.lines != "all":
        # The simulator's own bundles hold nothing out: all of their lines may stand for held-out ones.
        free = library.is_held_out if settings.lines == "held-out" else ~library.is_held_out
        free = free | library.is_simulated[library.bundle]
    kept = torch.zeros_like(free)
    for index in present.nonzero().ravel().tolist():
        rows = ((library.bundle == index) & free).nonzero().ravel()
        n = max(min(settings.fewest, len(rows)), round(float(share[index]) * len(rows)))
        kept[rows[draw[rows].argsort()[:n]]] = True
    return kept
