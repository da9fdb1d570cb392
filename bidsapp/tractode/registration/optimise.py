"""Deformable registration by descent: the flow of a velocity field that makes two images alike, and never folds.

The scheme is that of instance optimisation with MIND (M. P. Heinrich et al., doi:10.1016/j.media.2012.05.008) on a stationary
velocity (J. Ashburner, doi:10.1016/j.neuroimage.2007.07.007); D. P. Kingma, J. Ba's Adam (2015) does the descent.

Departures: the affine comes first and stays apart (transform = flow of the fixed space, then affine), so the flow is small;
descriptors are computed once for each resolution and then warped; they are compared at points off the lattice, some of
them at each step (stochastic descent: S. Klein et al., doi:10.1109/TIP.2007.909412); the result is examined by the ten Jacobians of every cell
at the fixed image's resolution, and while any is not positive the last stage is repeated with more regularisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.contracts import Regulariser, SimilarityMetric
from tractode.errors import SpaceMismatchError
from tractode.fields.image import Image, ImageGrid
from tractode.fields.transform import Affine, Chain, Flow
from tractode.ops import affine as aff
from tractode.ops import finite_difference, interpolate, smooth
from tractode.registration import DEFORMATIONS, METRICS, REGULARISERS
from tractode.registration.affine import register_affine
from tractode.registration.metrics.mutual_information import unit_range
from tractode.registration.svf import StationaryVelocity, velocity_grid

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Stage:
    """One resolution: voxels of the images and nodes of the velocity (mm), and steps of the descent."""

    voxel: float
    nodes: float
    iterations: int


@dataclass(frozen=True)
class Schedule:
    """How the descent goes.

    Parameters
    ----------
    step
        Of Adam, mm of velocity.
    weight
        Of the regulariser, which sees the velocity.
    margin
        The fixed mask is widened by this much, mm.
    points
        Compared at each step of the descent, at most.
    repeats
        How often the last stage is repeated, with four times the weight each time, while something folds.
    """

    stages: tuple[Stage, ...]
    step: float = 0.3
    weight: float = 0.5
    margin: float = 4.0
    points: int = 40_000
    repeats: int = 3
    seed: int = 0


COARSE = Schedule((Stage(6.0, 12.0, 50), Stage(4.0, 8.0, 50), Stage(3.0, 4.0, 40)))
SLOPPY = Schedule((Stage(8.0, 12.0, 30), Stage(6.0, 8.0, 20)))


def register(
    fixed: Image,
    moving: Image,
    *,
    deformation: str = "svf",
    metric: str | SimilarityMetric = "mind",
    regulariser: str | Regulariser = "gradient",
    schedule: Schedule = COARSE,
    initial: Affine | None = None,
    fixed_mask: Image | None = None,
    progress: Progress | None = None,
) -> Chain:
    """The transform from ``fixed`` to ``moving`` space: a flow of the fixed space, then an affine.

    Parameters
    ----------
    initial
        The affine (fixed → moving); found by mutual information where it is not given.
    fixed_mask
        The brain in the fixed image: where the images should agree.
    progress
        Called with stage, iteration and cost.
    """
    measure = METRICS[metric]() if isinstance(metric, str) else metric
    penalty = REGULARISERS[regulariser]() if isinstance(regulariser, str) else regulariser
    affine = register_affine(fixed, moving, fixed_mask=fixed_mask) if initial is None else initial
    if (affine.source, affine.target) != (fixed.grid.space, moving.grid.space):
        raise SpaceMismatchError(
            f"The initial transform goes {affine.source!r} → {affine.target!r}; "
            f"it must go {fixed.grid.space!r} → {moving.grid.space!r}."
        )
    descent = _Descent(fixed, moving, fixed_mask, affine, measure, penalty, schedule, DEFORMATIONS[deformation])
    between = f"{moving.grid.space}@{fixed.grid.space}"
    flow = _descend_until_unfolded(descent, between, progress)
    return Chain((flow, Affine(affine.matrix, between, moving.grid.space)))


def _descend_until_unfolded(descent: _Descent, between: str, progress: Progress | None) -> Flow:
    """All stages; the last one again, stiffer, while a cell folds; then the same flow for a shorter time."""
    fixed, schedule = descent.fixed, descent.schedule
    model = parameters = None
    for number, stage in enumerate(schedule.stages):
        model, parameters = descent.run(stage, model, parameters, schedule.weight, number, progress)
    assert model is not None
    assert parameters is not None
    for repeat in range(1, schedule.repeats + 1):
        if not _folds(model.transform(parameters, fixed.grid.space, between), fixed.grid):
            break
        weight = schedule.weight * 4**repeat
        model, parameters = descent.run(schedule.stages[-1], model, parameters, weight, len(schedule.stages), progress)
    flow = model.transform(parameters, fixed.grid.space, between)
    while _folds(flow, fixed.grid):
        velocity = replace(flow.velocity, values=0.8 * flow.velocity.values)
        flow = replace(flow, velocity=velocity)
    return flow


def _folds(flow: Flow, grid: ImageGrid) -> bool:
    """Whether any of the ten Jacobians of any cell is not positive, forwards or backwards."""
    centres = grid.centres(device=flow.velocity.values.device)
    for way in (flow, flow.inverse()):
        positions = aff.apply_affine(grid.inverse_affine, way.map(centres))
        for start in range(0, grid.shape[0] - 1, 16):
            if bool((finite_difference.ten_jacobians(positions[start : start + 17]) <= 0).any()):
                return True
    return False


# --- one descent ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Level:
    """Descriptors at one resolution: the fixed ones and the weight at the points, the moving ones on the grid."""

    fixed: Float[Tensor, "d p 1 1"]
    weight: Float[Tensor, "p 1 1"]
    moving: Float[Tensor, "d i j k"]
    points_vox: Float[Tensor, "p 3"]
    grid: ImageGrid


@dataclass(frozen=True, eq=False)
class _Descent:
    fixed: Image
    moving: Image
    fixed_mask: Image | None
    affine: Affine
    metric: SimilarityMetric
    regulariser: Regulariser
    schedule: Schedule
    deformation: type[StationaryVelocity]

    def run(
        self,
        stage: Stage,
        model: StationaryVelocity | None,
        parameters: Tensor | None,
        weight: float,
        number: int,
        progress: Progress | None,
    ) -> tuple[StationaryVelocity, Tensor]:
        """One stage of the descent, from the result of the stage before."""
        level = self.level(stage.voxel)
        device = level.moving.device
        finer = self.deformation(velocity_grid(self.fixed.grid, stage.nodes))
        if model is None or parameters is None:
            start = finer.parameters(device)
        elif model.grid.shape == finer.grid.shape:
            start = parameters
        else:
            start = model.refined(parameters, finer)
        leaf = start.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([leaf], lr=self.schedule.step)
        blocks = _blocks(level, self.schedule.points)
        for iteration in range(stage.iterations):
            optimiser.zero_grad()
            velocity = finer.velocity(leaf)
            cost = self.cost(blocks[iteration % len(blocks)], finer, velocity)
            cost = cost + weight * self.regulariser(_along_axes(velocity, finer.grid), finer.grid.voxel_sizes)
            cost.backward()
            optimiser.step()
            if progress is not None:
                progress(number, iteration, float(cost.detach()))
        return finer, leaf.detach()

    def cost(self, level: _Level, model: StationaryVelocity, velocity: Tensor) -> Float[Tensor, ""]:
        """Dissimilarity of the fixed descriptors and the moving ones pulled back by the flow."""
        displacement = model.displacement(velocity)
        to_nodes = model.grid.inverse_affine @ level.grid.affine
        moved = interpolate.sample(displacement, aff.apply_affine(to_nodes, level.points_vox))
        # A displacement in nodes becomes one in voxels of the level by the linear part alone.
        there = level.points_vox + aff.rotate(torch.linalg.inv(to_nodes), moved)
        warped = interpolate.sample(level.moving, there, outside="nearest").mT[:, :, None, None]
        compare = getattr(self.metric, "compare", self.metric)
        return compare(level.fixed, warped, level.weight)

    def level(self, size: float) -> _Level:
        """Both images at voxels of about ``size`` mm, the moving one under the affine."""
        values, affine = smooth.reduce(self.fixed.values.to(torch.float32), self.fixed.grid.affine, size)
        shape = (values.shape[1], values.shape[2], values.shape[3])
        grid = ImageGrid(shape, affine, self.fixed.grid.space)
        coarse, coarse_affine = smooth.reduce(self.moving.values.to(torch.float32), self.moving.grid.affine, size)
        at = aff.apply_affine(torch.linalg.inv(coarse_affine), self.affine.map(grid.centres(device=values.device)))
        moving = interpolate.sample(coarse, at, outside="nearest").permute(3, 0, 1, 2)
        seen = interpolate.inside((coarse.shape[1], coarse.shape[2], coarse.shape[3]), at, margin=0.5)
        mask = self._mask(grid) & seen
        describe = getattr(self.metric, "describe", lambda image: image)
        fixed_descriptor, moving_descriptor = (describe(_unit(image, mask)) for image in (values, moving))
        generator = torch.Generator().manual_seed(self.schedule.seed)
        points = mask.nonzero().to(torch.float32)
        points = points[torch.randperm(len(points), generator=generator).to(points.device)]
        # In random order, so that every part of them covers the brain; off the lattice, as in the refinement of poses.
        points = points + torch.rand(points.shape, generator=generator).to(points) - 0.5
        picked = interpolate.sample(fixed_descriptor, points, outside="nearest").mT[:, :, None, None].contiguous()
        return _Level(picked, torch.ones_like(picked[0]), moving_descriptor.contiguous(), points, grid)

    def _mask(self, grid: ImageGrid) -> Bool[Tensor, "i j k"]:
        """The widened fixed mask on a coarser grid of the fixed space."""
        device = self.fixed.values.device
        if self.fixed_mask is None:
            return torch.ones(grid.shape, dtype=torch.bool, device=device)
        radii = [round(self.schedule.margin / edge) for edge in self.fixed_mask.grid.voxel_sizes]
        wide = smooth.dilate(self.fixed_mask.mask, (radii[0], radii[1], radii[2]))
        soft = Image(self.fixed_mask.grid, wide[None].to(torch.float32)).sample(grid.centres(device=device))
        return soft[..., 0] > 0.5


def _blocks(level: _Level, most: int) -> list[_Level]:
    """The level with a part of its points (which lie in random order) at a time."""
    n = -(-len(level.points_vox) // most)
    return [
        replace(
            level, fixed=level.fixed[:, b::n].contiguous(), weight=level.weight[b::n], points_vox=level.points_vox[b::n]
        )
        for b in range(n)
    ]


def _along_axes(vectors: Float[Tensor, "3 i j k"], grid: ImageGrid) -> Float[Tensor, "3 i j k"]:
    """World components → components along the grid's axes, still mm."""
    axes = aff.axis_directions(grid.affine).to(vectors)
    return torch.einsum("ab,bijk->aijk", torch.linalg.inv(axes), vectors)


def _unit(image: Float[Tensor, "c i j k"], mask: Bool[Tensor, "i j k"]) -> Float[Tensor, "c i j k"]:
    """Every channel scaled to [0, 1] by its quantiles inside the mask."""
    return torch.cat([unit_range(image[n : n + 1], mask[None]) for n in range(len(image))])
