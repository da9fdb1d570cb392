"""The known diffeomorphism from a participant's T1w space to the template: head position, individual shape, asymmetry.

Individual shape is the flow of a smooth Gaussian random velocity field; asymmetry is a torque (right frontal and left
occipital lobes larger and across the midline, Toga & Thompson, *Mapping brain asymmetry*, Nat Rev Neurosci 2003,
doi:10.1038/nrn1009) and a larger left lateral ventricle. Departure: the amounts are exaggerated, so that a mirrored
image can be told from its original.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Affine, Chain, Displacement, Flow, ImageGrid, VelocityField
from tractode.ops import smooth
from tractode.simulate.courses import Vector


@dataclass(frozen=True)
class WarpSettings:
    """Standard deviations of what varies between participants, and the mean asymmetry.

    ``shape_mm`` is the root-mean-square length of the random velocity, ``shape_sigma_mm`` its correlation length,
    ``asymmetry`` multiplies the mean torque and ventricle difference (0 for none).
    """

    rotation_deg: float = 4.0
    translation_mm: float = 5.0
    scale: float = 0.03
    shape_mm: float = 3.5
    shape_sigma_mm: float = 22.0
    asymmetry: float = 1.0
    grid_mm: float = 6.0


@dataclass(frozen=True)
class _Push:
    """Points near ``centre`` move by ``vector`` (mm) and towards it by the share ``shrink`` of their distance."""

    centre: Vector
    sigma: Vector
    vector: Vector = (0, 0, 0)
    shrink: float = 0.0


_STEPS = 4  # of fourth order: the inverse undoes the warp to 0.001 mm

# From the participant to the symmetric template, so a lobe that is longer in the participant is pushed inwards here.
_ASYMMETRY = (
    _Push((20, 62, 4), (28, 28, 32), vector=(4.5, -6.5, 0)),
    _Push((-20, -90, 2), (28, 28, 32), vector=(-4.5, 6.5, 0)),
    _Push((-17, -22, 20), (9, 26, 11), shrink=0.45),
    _Push((-30, -55, 5), (8, 16, 8), shrink=0.35),
)


def participant_warp(
    template: ImageGrid, subject_space: str, generator: torch.Generator, settings: WarpSettings | None = None
) -> Chain:
    """Points of ``subject_space`` → points of the template: affine, then individual flow, then asymmetry's flow."""
    settings = settings or WarpSettings()
    grid = velocity_grid(template, settings.grid_mm)
    aligned, symmetric = f"{subject_space}_aligned", f"{subject_space}_shaped"
    pose = head_position(subject_space, aligned, generator, settings)
    shape = Flow(random_velocity(grid.renamed(aligned), generator, settings), aligned, symmetric, steps=_STEPS)
    amount = settings.asymmetry * (1 + 0.1 * float(torch.randn(1, generator=generator).clamp(-2, 2)))
    torque = Flow(_asymmetric_velocity(grid.renamed(symmetric), amount), symmetric, template.space, steps=_STEPS)
    return Chain((pose, shape, torque))


def velocity_grid(template: ImageGrid, spacing: float) -> ImageGrid:
    """A coarse grid over the template and 24 mm around it."""
    corner = torch.tensor([[0.0, 0, 0], [n - 1 for n in template.shape]], dtype=torch.float64)
    low, high = template.to_world(corner).sort(dim=0).values
    low, high = low - 24, high + 24
    shape = ((high - low) / spacing).ceil().int() + 1
    affine = torch.eye(4, dtype=torch.float64) * spacing
    affine[:3, 3], affine[3, 3] = low, 1
    return ImageGrid((int(shape[0]), int(shape[1]), int(shape[2])), affine, template.space)


def head_position(source: str, target: str, generator: torch.Generator, settings: WarpSettings) -> Affine:
    """Rotation, translation and a different size along each axis."""
    draw = torch.randn(9, generator=generator, dtype=torch.float64).clamp(-2, 2)
    angles = draw[:3] * torch.deg2rad(torch.tensor(settings.rotation_deg, dtype=torch.float64))
    generator_matrix = torch.zeros(3, 3, dtype=torch.float64)
    for (i, j), angle in zip(((2, 1), (0, 2), (1, 0)), angles, strict=True):
        generator_matrix[i, j], generator_matrix[j, i] = angle, -angle
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.diag(torch.exp(draw[3:6] * settings.scale)) @ torch.linalg.matrix_exp(generator_matrix)
    matrix[:3, 3] = draw[6:] * settings.translation_mm
    return Affine(matrix, source, target)


def random_velocity(grid: ImageGrid, generator: torch.Generator, settings: WarpSettings) -> VelocityField:
    """White noise smoothed to the correlation length, of the given root-mean-square length, fading at the border."""
    noise = torch.randn(3, *grid.shape, generator=generator, dtype=torch.float64)
    sigma = settings.shape_sigma_mm / settings.grid_mm
    field = smooth.gaussian(noise, (sigma, sigma, sigma))
    field = field / field.square().sum(0).mean().sqrt() * settings.shape_mm
    return VelocityField(grid, (field * _fade(grid))[None])


def _asymmetric_velocity(grid: ImageGrid, amount: float) -> VelocityField:
    points = grid.centres(torch.float64)
    field = torch.zeros_like(points)
    for push in _ASYMMETRY:
        centre, sigma, vector = (
            torch.tensor(value, dtype=torch.float64) for value in (push.centre, push.sigma, push.vector)
        )
        offset = points - centre
        weight = torch.exp(-0.5 * (offset / sigma).square().sum(-1, keepdim=True))
        field = field + weight * (vector - push.shrink * offset)
    return VelocityField(grid, (amount * field.movedim(-1, 0) * _fade(grid))[None])


def _fade(grid: ImageGrid, width: int = 4) -> Float[Tensor, "i j k"]:
    """1 inside, 0 on the outermost voxels: a velocity that ends abruptly would not be continuous."""
    total = torch.ones(grid.shape, dtype=torch.float64)
    for axis, n in enumerate(grid.shape):
        index = torch.arange(n, dtype=torch.float64)
        ramp = (torch.minimum(index, n - 1 - index) / width).clamp(max=1)
        total = total * ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    return total


def tabulated(warp: Chain, grid: ImageGrid, spacing: float = 3.0) -> Displacement:
    """The warp as a displacement on a coarse grid that covers ``grid``: for images, where 0.05 mm do not matter.

    Streamlines and truth use the warp itself.
    """
    corners = torch.tensor(
        [
            [i * (grid.shape[0] - 1), j * (grid.shape[1] - 1), k * (grid.shape[2] - 1)]
            for i in (0, 1)
            for j in (0, 1)
            for k in (0, 1)
        ],
        dtype=torch.float64,
    )
    world = grid.to_world(corners)
    low, high = world.amin(0) - spacing, world.amax(0) + spacing
    shape = ((high - low) / spacing).ceil().int() + 1
    affine = torch.eye(4, dtype=torch.float64) * spacing
    affine[:3, 3], affine[3, 3] = low, 1
    table = ImageGrid((int(shape[0]), int(shape[1]), int(shape[2])), affine, warp.source)
    points = table.centres()
    return Displacement(table, (warp.map(points) - points).movedim(-1, 0).contiguous(), warp.source, warp.target)
