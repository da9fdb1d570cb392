"""Deformable registration: the flow of a velocity field that makes two images alike half-way between them, and never folds.

The scheme is that of instance optimisation with MIND (M. P. Heinrich et al., doi:10.1016/j.media.2012.05.008) on a stationary
velocity by Gauss–Newton (J. Ashburner, doi:10.1016/j.neuroimage.2007.07.007; see `gauss_newton`), or by Adam for any other
metric, regulariser or family of deformations (`descent`), compared symmetrically (`midpoint`).

Departures: the affine comes first and stays apart (transform = flow of the fixed space, then affine); descriptors are
computed once for each resolution and then warped, unless the metric says ``on_warped``; the result is examined by the
ten Jacobians of every cell at the fixed image's resolution, in both directions, and while any is not positive the last stage
is repeated with four times the regularisation; if that does not help, the registration fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import Regulariser, SimilarityMetric
from tractode.errors import InputDataError, SpaceMismatchError
from tractode.fields.image import Image, ImageGrid
from tractode.fields.transform import Affine, Chain, Flow
from tractode.fields.velocity import VelocityField
from tractode.ops import affine as aff
from tractode.ops import finite_difference
from tractode.registration import DEFORMATIONS, METRICS, REGULARISERS, gauss_newton, midpoint
from tractode.registration.affine import register_affine
from tractode.registration.deformation import Deformation, border_window
from tractode.registration.descent import Descent
from tractode.registration.metrics.channels import DescriptorChannels
from tractode.registration.metrics.descriptor import DescriptorMetric
from tractode.registration.metrics.mind import MIND
from tractode.registration.svf import StationaryVelocity

Progress = Callable[[int, int, float], None]
Images = Image | Sequence[Image]
Stiffness = Image | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """One resolution: voxels of the images and nodes of the velocity (mm), and at most so many Gauss–Newton steps."""

    voxel: float
    nodes: float
    iterations: int


@dataclass(frozen=True)
class Schedule:
    """How the descent goes.

    Parameters
    ----------
    weight
        Of the regulariser of the velocity; 0.8 mm² for bending.
    barrier
        Of the barrier against folding, as one more regulariser; Adam only.
    epsilon
        Ratio of volumes below which the barrier stands.
    margin
        Masks are widened by this much, mm.
    repeats
        How often the last stage is repeated, with four times the weight each time, while something folds.
    adam
        Steps of Adam that stand for one of Gauss–Newton, where Gauss–Newton cannot be used.
    step
        Of Adam, in the parameters' units; the family's own where it is None.
    points
        Compared at each step of Adam, at most.
    """

    stages: tuple[Stage, ...]
    weight: float = 0.8
    barrier: float = 0.0
    epsilon: float = 0.3
    margin: float = 4.0
    repeats: int = 4
    adam: int = 12
    step: float | None = None
    points: int = 40_000
    seed: int = 0


SLOPPY = Schedule((Stage(6.0, 12.0, 4),))
FAST = Schedule((Stage(4.0, 8.0, 3), Stage(2.0, 6.0, 2)))
COARSE = Schedule((Stage(6.0, 12.0, 5), Stage(4.0, 8.0, 5), Stage(2.0, 6.0, 5)))
FINE = Schedule((*COARSE.stages, Stage(1.0, 3.0, 4)))
# With the metric ``mind_intensity``: brightness says enough to be followed on closer nodes with a lighter hand.
SAME_CONTRAST = Schedule((*COARSE.stages[:2], Stage(2.0, 4.0, 8)), weight=0.1)


@dataclass(frozen=True, eq=False)
class Registration(Chain):
    """A registration's transform, with what it took: repeats of the last stage with more regularisation, the last cost."""

    repeats: int = 0
    cost: float = float("nan")


def register(
    fixed: Images,
    moving: Images,
    *,
    deformation: str | Callable[[ImageGrid], Deformation] = "svf",
    metric: str | SimilarityMetric | Sequence[tuple[SimilarityMetric, float]] = MIND(radius=1, dilation=1),  # noqa: B008
    regulariser: str | Regulariser = "bending",
    schedule: Schedule = COARSE,
    initial: Affine | None = None,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    fixed_weight: Image | None = None,
    moving_weight: Image | None = None,
    stiffness: Stiffness | None = None,
    progress: Progress | None = None,
) -> Registration:
    """The transform from ``fixed`` to ``moving`` space: a flow of the fixed space, then an affine.

    Parameters
    ----------
    fixed, moving
        One image, or several channels of one space (T1w, T2w, FA …), in the same order on both sides.
    deformation
        A name of `DEFORMATIONS`, or what makes a family from the grid of nodes.
    metric
        One for all channels, or a metric and a weight for each.
    initial
        The affine (fixed → moving); found by mutual information of the first channels where it is not given.
    fixed_mask, moving_mask
        The brain: where the images should agree. One is enough.
    fixed_weight, moving_weight
        What each place counts, 0 to 1; a lesion has 0.
    stiffness
        Multiplies the regulariser from place to place: an image of the fixed space, or a function of points there (mm).
    progress
        Called with stage, iteration and cost.

    Raises
    ------
    InputDataError (E-REG-FOLDS)
        If cells still fold after every repeat.
    """
    channels = [(image,) if isinstance(image, Image) else tuple(image) for image in (fixed, moving)]
    first, second = _check_channels(channels[0], channels[1])
    affine = register_affine(first, second, fixed_mask=fixed_mask) if initial is None else initial
    if (affine.source, affine.target) != (first.grid.space, second.grid.space):
        raise SpaceMismatchError(
            f"The initial transform goes {affine.source!r} → {affine.target!r}; "
            f"it must go {first.grid.space!r} → {second.grid.space!r}."
        )
    to_fixed, to_moving = midpoint.halved(affine)
    between = midpoint.middle(
        midpoint.Side(channels[0], fixed_mask, fixed_weight, to_fixed),
        midpoint.Side(channels[1], moving_mask, moving_weight, to_moving),
        schedule.margin,
    )
    penalty = REGULARISERS[regulariser]() if isinstance(regulariser, str) else regulariser
    family = DEFORMATIONS[deformation] if isinstance(deformation, str) else deformation
    search = _Search(between, _metric(metric), penalty, schedule, family, stiffness, progress)
    return search.until_unfolded(first.grid, affine)


def _check_channels(fixed: tuple[Image, ...], moving: tuple[Image, ...]) -> tuple[Image, Image]:
    counts = [[len(image.values) for image in side] for side in (fixed, moving)]
    if not fixed or counts[0] != counts[1]:
        raise SpaceMismatchError(f"Fixed and moving need the same channels in the same order; got {counts}.")
    for side in (fixed, moving):
        if len({image.grid.space for image in side}) > 1:
            raise SpaceMismatchError(
                f"The channels of one side must be of one space; got {[i.grid.space for i in side]}."
            )
    return fixed[0], moving[0]


def _metric(metric: str | SimilarityMetric | Sequence[tuple[SimilarityMetric, float]]) -> SimilarityMetric:
    if isinstance(metric, str):
        return METRICS[metric]()
    return metric if isinstance(metric, SimilarityMetric) else DescriptorChannels(tuple(metric))


# --- all stages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _State:
    """Where the search stands."""

    family: Deformation
    parameters: Tensor
    cost: float


@dataclass(frozen=True, eq=False)
class _Search:
    between: midpoint.Middle
    metric: SimilarityMetric
    regulariser: Regulariser
    schedule: Schedule
    deformation: Callable[[ImageGrid], Deformation]
    stiffness: Stiffness | None
    progress: Progress | None

    @property
    def solves(self) -> bool:
        """Whether Gauss–Newton can be used: squares of descriptors, a quadratic penalty, a stationary grid."""
        return (
            self.deformation is StationaryVelocity
            and isinstance(self.metric, DescriptorMetric)
            and type(self.metric).compare is DescriptorMetric.compare
            and self.schedule.barrier == 0
            and gauss_newton.is_quadratic(self.regulariser)
        )

    def until_unfolded(self, grid: ImageGrid, affine: Affine) -> Registration:
        """All stages; the last one again, stiffer, while a cell folds."""
        state = None
        for number, stage in enumerate(self.schedule.stages):
            state = self.run(stage, state, self.schedule.weight, number)
        assert state is not None
        for repeat in range(self.schedule.repeats + 1):
            found = self.transform(state, affine, repeat)
            flow = found.parts[0]
            assert isinstance(flow, Flow)
            if not _folds(flow, grid):
                return found
            weight = max(self.schedule.weight, 0.1) * 4 ** (repeat + 1)
            state = self.run(self.schedule.stages[-1], state, weight, len(self.schedule.stages))
        raise InputDataError(
            f"The registration still folds after {self.schedule.repeats} repeats with more regularisation",
            id="E-REG-FOLDS",
            needed="a deformation with ten positive Jacobians in every cell",
            fix="check that both images show the same kind of anatomy; else give a larger weight of the regulariser",
        )

    def run(self, stage: Stage, state: _State | None, weight: float, number: int) -> _State:
        """One stage, from the result of the stage before."""
        level = midpoint.level(self.between, stage.voxel, stage.nodes)
        described = isinstance(self.metric, DescriptorMetric) and not getattr(self.metric, "on_warped", False)
        if described:
            fixed, moving = (self.metric.describe(values) for values in (level.fixed, level.moving))  # type: ignore[attr-defined]
            level = replace(level, fixed=fixed.contiguous(), moving=moving.contiguous())
        penalty = self.penalty(level, weight)
        costs = [float("nan")]

        def report(iteration: int, cost: float) -> None:
            costs.append(cost)
            if self.progress is not None:
                self.progress(number, iteration, cost)

        family = StationaryVelocity(level.nodes, smoothing=0.0) if self.solves else self.deformation(level.nodes)
        device = level.weights.device
        start = family.parameters(device) if state is None else state.family.refined(state.parameters, family)
        if self.solves:
            describe = None if described else self.metric.describe  # type: ignore[attr-defined]
            window = border_window(level.nodes.shape).to(start)
            found = gauss_newton.descend(level, start[0], penalty, window, stage.iterations, report, describe)[None]
        else:
            descent = Descent(
                level,
                self.metric,
                penalty,
                described,
                self.schedule.barrier,
                self.schedule.epsilon,
                self.schedule.points,
                self.schedule.seed,
            )
            step = family.step if self.schedule.step is None else self.schedule.step
            found = descent.run(family, start, stage.iterations * self.schedule.adam, step, report)
        return _State(family, found, costs[-1])

    def penalty(self, level: midpoint.Level, weight: float) -> gauss_newton.Penalty:
        """The regulariser on this level's nodes."""
        covered = float(level.weights.amax(0).sum()) / level.ratio**3
        share = level.nodes.n_voxels / max(covered, 1.0)
        weights = None
        if self.stiffness is not None:
            points = aff.apply_affine(self.between.fixed.from_middle, level.nodes.centres(device=level.weights.device))
            given = self.stiffness
            weights = given.sample(points, outside="nearest")[..., 0] if isinstance(given, Image) else given(points)
        return gauss_newton.Penalty(self.regulariser, level.nodes.voxel_sizes, weight, share, weights)

    def transform(self, state: _State, affine: Affine, repeats: int) -> Registration:
        """The flow carried from the middle to the fixed space, then the affine: ``A^½ φ A^½ = A (A^−½ φ A^½)``."""
        flow = state.family.flow(state.parameters, "", "")
        back = self.between.fixed.from_middle
        fixed, moving = affine.source, affine.target
        grid = ImageGrid(flow.velocity.grid.shape, back @ flow.velocity.grid.affine, fixed)
        values = torch.einsum("ab,tbijk->taijk", back[:3, :3].to(flow.velocity.values), flow.velocity.values)
        name = f"{moving}@{fixed}"
        moved = Flow(VelocityField(grid, values), fixed, name, steps=flow.steps)
        return Registration((moved, Affine(affine.matrix, name, moving)), repeats=repeats, cost=state.cost)


def _folds(flow: Flow, grid: ImageGrid) -> bool:
    """Whether any of the ten Jacobians of any cell is not positive, forwards or backwards."""
    return any(_least_jacobian(way, grid, flow.velocity.values.device) <= 0 for way in (flow, flow.inverse()))


def _least_jacobian(flow: Flow, grid: ImageGrid, device: torch.device) -> float:
    positions: Float[Tensor, "i j k 3"] = aff.apply_affine(grid.inverse_affine, flow.map(grid.centres(device=device)))
    starts = range(0, grid.shape[0] - 1, 16)
    return min(float(finite_difference.ten_jacobians(positions[s : s + 17]).min()) for s in starts)
