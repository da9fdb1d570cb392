"""Rigid, similarity and affine registration of images of any contrast, the same from either side.

C. Studholme et al., Pattern Recognition 32:71 (1999), doi:10.1016/S0031-3203(98)00091-0, on the multi-resolution scheme of
P. Thévenaz, M. Unser, IEEE TIP 9:2083 (2000), doi:10.1109/83.887976.

Departures: the cost is gathered from points of *both* images (fixed points mapped forward, moving points mapped back), so that a
slab inside a whole head keeps all of its own points and cannot gain by sliding out of view; a search over rotations and
shifts precedes the descent, which is L-BFGS on parameters scaled to millimetres in the space halfway between the images;
scales and shears carry a weak Gaussian prior, which decides where the images do not (a slab says little about the scale across it). Search,
points, cost, prior and steps treat both images alike: exchanging them gives the inverse, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from torch import Tensor

from tractode.errors import InputDataError, SpaceMismatchError
from tractode.fields.image import Image, ImageGrid, check_same_grid
from tractode.fields.transform import Affine
from tractode.ops import affine as aff
from tractode.ops import interpolate, smooth
from tractode.registration import poses
from tractode.registration.halfway import N_PARAMETERS, RADIUS, Dof, Halfway
from tractode.registration.metrics.mutual_information import unit_range
from tractode.registration.point_costs import PointCost, point_cost

# Less of either image seen by the other than this: nothing was registered.
LEAST_SEEN = 0.02
# Of the range of intensities: less is air.
_AIR = 0.1


@dataclass(frozen=True)
class AffineSettings:
    """How the search and the descent go.

    Parameters
    ----------
    levels
        Voxel sizes (mm) of the resolutions after the search; levels finer than both images are skipped.
    search_level
        Voxel size (mm) at which the starts are compared.
    points
        Points of each image in the histogram, at most.
    bins
        Bins of each image.
    search_scales
        Sizes of the moving head against the fixed one that the search tries (not for rigid); their inverses are among them.
    starts, finalists
        How many poses of each size are descended from with few freedoms, and how many of their ends with all.
    margin
        Masks are widened by this much (mm): the edge of the brain is most of what says where it is.
    search_margin
        The same for the search where both images have a mask; everything outside the masks is 0 there.
    size_sd, shape_sd
        Standard deviations of the prior on the logarithm of the size, and on logarithmic strains that keep it.
    prior_weight
        Weight of that prior against the normalised mutual information.
    """

    levels: tuple[float, ...] = (6.0, 4.0, 2.0)
    search_level: float = 8.0
    points: int = 24_000
    search_points: int = 1_500
    bins: int = 32
    search_bins: int = 20
    search_scales: tuple[float, ...] = (1 / 1.15, 1.0, 1.15)
    starts: int = 4
    finalists: int = 3
    margin: float = 3.0
    search_margin: float = 15.0
    size_sd: float = 0.2
    shape_sd: float = 0.07
    prior_weight: float = 0.01
    iterations: int = 40
    seed: int = 0


def register_affine(
    fixed: Image,
    moving: Image,
    *,
    dof: Dof = "affine",
    metric: str = "nmi",
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    initial: Affine | None = None,
    settings: AffineSettings | None = None,
) -> Affine:
    """The affine from ``fixed`` to ``moving`` space (RAS+ mm) that makes the images tell most of each other.

    Parameters
    ----------
    fixed, moving
        Images of one channel, any contrast, any part of a head; the first channel is used.
    metric
        ``nmi``, ``mi``, ``lmi``, ``cr`` or ``lncc`` (see ``registration/point_costs.py``); the search is by ``nmi``
        always.
    fixed_mask, moving_mask
        What to look at (a brain mask; widened by ``settings.margin``). Give the brain mask of at least one of the two
        when only one of them shows a whole head.
    initial
        Where to start (fixed → moving) in place of the search; the descent finds what is near it.

    Raises
    ------
    SpaceMismatchError
        ``initial`` joins other spaces.
    InputDataError
        A mask is empty, an image is uniform inside its mask, or the images do not meet where the descent ended.
    """
    settings = settings or AffineSettings()
    if initial is not None and (initial.source, initial.target) != (fixed.grid.space, moving.grid.space):
        raise SpaceMismatchError(
            f"The initial transform goes {initial.source!r} → {initial.target!r}; "
            f"it must go {fixed.grid.space!r} → {moving.grid.space!r}."
        )
    _check("fixed", fixed, fixed_mask)
    _check("moving", moving, moving_mask)
    pair = Pair(
        *_thinned(fixed, fixed_mask, settings.levels[-1]), *_thinned(moving, moving_mask, settings.levels[-1]), settings
    )
    start = poses.search(pair, dof) if initial is None else initial.matrix.to("cpu", torch.float64)
    finest = min(*fixed.grid.voxel_sizes, *moving.grid.voxel_sizes)
    sizes = [size for n, size in enumerate(settings.levels) if n == 0 or size > 0.7 * finest]
    for size in sizes:
        level = pair.level(size, settings.points, point_cost(metric, settings.bins))
        start, _ = descend(level, start, dof, settings)
    _check_seen(level, start)
    return Affine(start, fixed.grid.space, moving.grid.space)


def _check(which: str, image: Image, mask: Image | None) -> None:
    """There is something to look at."""
    values = image.values[0]
    if mask is not None:
        check_same_grid(mask.grid, image.grid, "The mask of an image to be registered")
        if not bool(mask.mask.any()):
            raise InputDataError(
                f"The mask of the {which} image is empty",
                id="E-REG-MASK",
                needed="at least one voxel to look at",
                fix="look at the mask; the brain may not have been found",
            )
        values = values[mask.mask]
    if not float(values.max()) > float(values.min()):
        raise InputDataError(
            f"The {which} image is uniform{' inside its mask' if mask is not None else ''}",
            id="E-REG-FLAT",
            needed="an image with contrast",
            fix="look at the image; a wrong volume or a wrong scaling may have been given",
        )


def _check_seen(level: Level, matrix: Float[Tensor, "4 4"]) -> None:
    """The images overlap."""
    _, share = level.evaluate(matrix)
    if float(share) < LEAST_SEEN:
        raise InputDataError(
            f"The images do not meet: each sees {100 * float(share):.0f} % of the other",
            id="E-REG-OVERLAP",
            needed="images of one part of a head",
            fix="start without an initial transform, or check that both show the same part",
        )


# --- one resolution -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Side:
    """One image at one resolution: intensity in [0, 1] and mask, and points drawn from it with both."""

    values: Float[Tensor, "2 i j k"]
    to_voxel: Float[Tensor, "4 4"]
    points: Float[Tensor, "g p 3"]
    weight: Float[Tensor, "g p"]
    prepared: Float[Tensor, "g p b"]
    centre: Float[Tensor, " 3"]

    def sample(self, points: Float[Tensor, "g p 3"]) -> tuple[Float[Tensor, "g p"], Float[Tensor, "g p"]]:
        """Intensity (the edge goes on) and weight (0 out of view) at world points."""
        at = aff.apply_affine(self.to_voxel, points)
        intensity = interpolate.sample(self.values[:1], at, outside="nearest")[..., 0]
        return intensity, interpolate.sample(self.values[1:], at)[..., 0]

    @property
    def middle(self) -> Float[Tensor, " 3"]:
        """Of the field of view."""
        middle = (torch.tensor(self.values.shape[1:], dtype=torch.float64) - 1) / 2
        return aff.apply_affine(torch.linalg.inv(self.to_voxel).cpu(), middle)


@dataclass(frozen=True, eq=False)
class Level:
    """Both images at one resolution, and the cost of a pose."""

    fixed: Side
    moving: Side
    measure: PointCost

    def evaluate(self, matrix: Float[Tensor, "4 4"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The cost over the points of both images, with a guard against sliding apart; and the larger share seen."""
        fixed, moving, measure = self.fixed, self.moving, self.measure
        forward = matrix.to(fixed.points)
        backward = torch.linalg.inv(matrix).to(fixed.points)
        there, seen = moving.sample(aff.apply_affine(forward, fixed.points))
        back, seen_back = fixed.sample(aff.apply_affine(backward, moving.points))
        weight, weight_back = seen * fixed.weight, seen_back * moving.weight
        share = weight.sum() / fixed.weight.sum().clamp_min(1e-6)
        share_back = weight_back.sum() / moving.weight.sum().clamp_min(1e-6)
        tally = measure.together(
            measure.tally(fixed.prepared, measure.prepare(there), weight),
            measure.tally(measure.prepare(back), moving.prepared, weight_back),
        )
        largest = torch.maximum(share, share_back)
        return (0.6 - largest).clamp_min(0) + measure.cost(tally), largest


@dataclass(frozen=True, eq=False)
class Pair:
    """The two images and where to look at them."""

    fixed: Image
    fixed_mask: Image | None
    moving: Image
    moving_mask: Image | None
    settings: AffineSettings
    stripped: bool = False

    def level(self, size: float, points: int, measure: PointCost) -> Level:
        """Both at voxels of about ``size`` mm, with at most ``points`` points of each."""
        # Each image draws from a generator of its own, so that its points do not depend on which side it stands on.
        sides = [
            _side(image, mask, size, points, self.settings, measure, self.stripped)
            for image, mask in ((self.fixed, self.fixed_mask), (self.moving, self.moving_mask))
        ]
        return Level(sides[0], sides[1], measure)


def _thinned(image: Image, mask: Image | None, size: float) -> tuple[Image, Image | None]:
    """Image and mask once at the finest voxel size that is used; every level starts from there."""
    values, affine = smooth.reduce(image.values[:1].to(torch.float32), image.grid.affine, size)
    shape = (values.shape[1], values.shape[2], values.shape[3])
    grid = ImageGrid(shape, affine, image.grid.space)
    if mask is None:
        return Image(grid, values), None
    steps = [round(float(n / o)) for n, o in zip(grid.voxel_sizes, image.grid.voxel_sizes, strict=True)]
    return Image(grid, values), Image(grid, mask.mask[None, :: steps[0], :: steps[1], :: steps[2]])


def _side(
    image: Image, mask: Image | None, size: float, n: int, settings: AffineSettings, measure: PointCost, stripped: bool
) -> Side:
    grid = image.grid
    values = image.values[:1].to(torch.float32)
    wide = torch.ones(grid.shape, dtype=torch.bool, device=values.device) if mask is None else mask.mask
    if mask is not None and settings.margin > 0:
        radii = [round(settings.margin / edge) for edge in grid.voxel_sizes]
        wide = smooth.dilate(wide, (radii[0], radii[1], radii[2]))
    unit = unit_range(values, wide[None])
    if mask is not None and stripped:
        unit = (0.3 + 0.7 * unit_range(values, mask.mask[None])) * mask.mask
    stacked, affine = smooth.reduce(torch.cat([unit, wide[None].to(unit)]), grid.affine, size)
    inside = stacked[1] > 0.5
    if mask is None:
        inside = inside & _not_air(stacked[0])
    at = _draw(inside, affine, n, size, measure, torch.Generator().manual_seed(settings.seed))
    drawn = interpolate.sample(stacked, at)
    return Side(
        stacked,
        torch.linalg.inv(affine).to(values.device),
        aff.apply_affine(affine, at),
        drawn[..., 1],
        measure.prepare(drawn[..., 0]),
        _centre(stacked, affine, has_mask=mask is not None),
    )


def _not_air(unit: Float[Tensor, "i j k"]) -> Bool[Tensor, "i j k"]:
    """Where there is something, and two voxels around it: points in air say little, and how many there are is chance."""
    near = smooth.dilate(unit > _AIR, (2, 2, 2))
    return near if float(near.float().mean()) > 0.02 else torch.ones_like(near)


def _draw(
    inside: Tensor, affine: Float[Tensor, "4 4"], n: int, size: float, measure: PointCost, generator: torch.Generator
) -> Float[Tensor, "g p 3"]:
    """Voxel coordinates of random points: one group of ``n``, or groups in cubes around random middles."""
    chosen = inside.nonzero()
    most = max(n // measure.group, 1) if measure.group else n
    if len(chosen) > most:
        order = torch.randperm(len(chosen), generator=generator)[:most]
        chosen = chosen[order.to(chosen.device)]
    shape = (len(chosen), max(measure.group, 1), 3)
    offsets = torch.rand(shape, generator=generator) - 0.5
    if measure.group:
        half = measure.width * size if measure.in_voxels else measure.width
        offsets = 2 * half * offsets / aff.voxel_sizes(affine).float()
    # Off the lattice by a random part of a voxel: points on it make the cost ripple with the voxel's period.
    at = chosen[:, None] + offsets.to(chosen.device)
    upper = torch.tensor(inside.shape, device=chosen.device) - 1
    at = torch.minimum(at.clamp_min(0), upper)
    return at if measure.group else at.transpose(0, 1)


def _centre(stacked: Float[Tensor, "2 i j k"], affine: Tensor, *, has_mask: bool) -> Float[Tensor, " 3"]:
    """Centre of mass of the mask, or of the intensity where there is none (float64, CPU)."""
    weights = (stacked[1] if has_mask else stacked[0]).double().cpu()
    total = weights.sum().clamp_min(1e-12)
    axes = [torch.arange(n, dtype=torch.float64) for n in weights.shape]
    sums = [weights.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)]
    index = torch.stack([(axis * along).sum() / total for axis, along in zip(axes, sums, strict=True)])
    return aff.apply_affine(affine, index)


# --- the cost's prior and the descent -------------------------------------------------------------------------------


def local_matrix(parameters: Float[Tensor, " p"], centre: Float[Tensor, " 3"]) -> Float[Tensor, "4 4"]:
    """Shift, turn, scale and shear about ``centre`` from 6, 7 or 12 parameters in mm at 80 mm from it."""
    shift, turn = parameters[:3], parameters[3:6] / RADIUS
    zero = torch.zeros((), dtype=parameters.dtype)
    x, y, z = turn
    skew = torch.stack([torch.stack([zero, -z, y]), torch.stack([z, zero, -x]), torch.stack([-y, x, zero])])
    linear = torch.linalg.matrix_exp(skew)
    if len(parameters) > 6:
        rest = parameters[6:] / RADIUS
        if len(parameters) == 7:
            stretch = torch.eye(3, dtype=parameters.dtype) * rest[0]
        else:
            a, b, c, d, e, f = rest
            stretch = torch.stack([torch.stack([a, d, e]), torch.stack([d, b, f]), torch.stack([e, f, c])])
        linear = linear @ torch.linalg.matrix_exp(stretch)
    top = torch.cat([linear, (centre + shift - linear @ centre)[:, None]], dim=1)
    return torch.cat([top, torch.tensor([[0, 0, 0, 1]], dtype=parameters.dtype)])


def _prior(matrix: Float[Tensor, "4 4"], settings: AffineSettings) -> Float[Tensor, ""]:
    """Half the squared logarithmic strain over its standard deviations: of size, and of shape."""
    return (_strain_cost(matrix, settings) + _strain_cost(torch.linalg.inv(matrix), settings)) / 2


def _strain_cost(matrix: Float[Tensor, "4 4"], settings: AffineSettings) -> Float[Tensor, ""]:
    # Without an SVD, whose gradient fails at equal values: for strains this small the second-order series of half the
    # logarithm of AᵀA will do.
    gram = matrix[:3, :3].mT @ matrix[:3, :3] - torch.eye(3, dtype=matrix.dtype)
    strain = 0.5 * gram - 0.25 * gram @ gram
    size = strain.diagonal().mean()
    shape = strain - size * torch.eye(3, dtype=matrix.dtype)
    squares = 3 * (size / settings.size_sd) ** 2 + (shape / settings.shape_sd).square().sum()
    return 0.5 * settings.prior_weight * squares


def descend(
    level: Level, start: Float[Tensor, "4 4"], dof: Dof, settings: AffineSettings
) -> tuple[Float[Tensor, "4 4"], float]:
    """L-BFGS from ``start``; returns the matrix and its cost."""
    around = Halfway(start, level.fixed.centre, level.moving.centre)

    def evaluate(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
        matrix = around.pose(leaf)
        cost = level.evaluate(matrix)[0].to("cpu", torch.float64)
        if dof != "rigid":
            cost = cost + _prior(matrix, settings)
        (gradient,) = torch.autograd.grad(cost, leaf)
        # The cost changes by about 0.01 per mm; scaled, one unit of cost is one step of L-BFGS's first line search.
        return 1e3 * cost.item(), 1e3 * gradient.numpy()

    result = minimize(
        evaluate,
        np.zeros(N_PARAMETERS[dof]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": settings.iterations, "ftol": 1e-7, "gtol": 1e-3},
    )
    return around.pose(torch.from_numpy(result.x)), float(result.fun) / 1e3
