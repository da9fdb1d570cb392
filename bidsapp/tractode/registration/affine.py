"""Rigid and affine registration of images of any contrast by normalised mutual information.

C. Studholme et al., Pattern Recognition 32:71 (1999), doi:10.1016/S0031-3203(98)00091-0, on the multi-resolution scheme of
P. Thévenaz, M. Unser, IEEE TIP 9:2083 (2000), doi:10.1109/83.887976.

Departures: the histogram is gathered from points of *both* images (fixed points mapped forward, moving points mapped back),
so that a slab inside a whole head keeps all of its own points and cannot gain by sliding out of view; a search over
rotations and shifts precedes the descent, which is L-BFGS on parameters scaled to millimetres; scales and shears carry a
weak Gaussian prior, which decides where the images do not (a slab says little about the scale across it).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from tractode.errors import SpaceMismatchError
from tractode.fields.image import Image, ImageGrid, check_same_grid
from tractode.fields.transform import Affine
from tractode.ops import affine as aff
from tractode.ops import interpolate, smooth
from tractode.registration.metrics.mutual_information import normalised_mutual_information, parzen, unit_range

Dof = Literal["rigid", "similarity", "affine"]
N_PARAMETERS = {"rigid": 6, "similarity": 7, "affine": 12}
# One unit of every parameter moves a point this far (mm) from the centre by about one millimetre.
_RADIUS = 80.0


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
        Sizes of the moving head against the fixed one that the search tries (not for rigid).
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
    search_scales: tuple[float, ...] = (0.85, 1.0, 1.15)
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
    fixed_mask, moving_mask
        What to look at (a brain mask; widened by ``settings.margin``). Give the brain mask of at least one of the two
        when only one of them shows a whole head.
    initial
        Where to start (fixed → moving) in place of the search; the descent finds what is near it.
    """
    settings = settings or AffineSettings()
    if initial is not None and (initial.source, initial.target) != (fixed.grid.space, moving.grid.space):
        raise SpaceMismatchError(
            f"The initial transform goes {initial.source!r} → {initial.target!r}; "
            f"it must go {fixed.grid.space!r} → {moving.grid.space!r}."
        )
    pair = _Pair(
        *_thinned(fixed, fixed_mask, settings.levels[-1]), *_thinned(moving, moving_mask, settings.levels[-1]), settings
    )
    start = _search(pair, dof, settings) if initial is None else initial.matrix.to("cpu", torch.float64)
    finest = min(*fixed.grid.voxel_sizes, *moving.grid.voxel_sizes)
    sizes = [size for n, size in enumerate(settings.levels) if n == 0 or size > 0.7 * finest]
    for size in sizes:
        start, _ = _descend(pair.level(size, settings.points, settings.bins), start, dof, settings)
    return Affine(start, fixed.grid.space, moving.grid.space)


# --- one resolution -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Side:
    """One image at one resolution: intensity in [0, 1] and mask, and points drawn from it with both."""

    values: Float[Tensor, "2 i j k"]
    to_voxel: Float[Tensor, "4 4"]
    points: Float[Tensor, "n 3"]
    weight: Float[Tensor, " n"]
    window: Float[Tensor, "n bins"]
    centre: Float[Tensor, " 3"]

    def sample(self, points: Float[Tensor, "n 3"]) -> tuple[Tensor, Tensor]:
        """Intensity (the edge goes on) and weight (0 out of view) at world points."""
        at = aff.apply_affine(self.to_voxel, points)
        intensity = interpolate.sample(self.values[:1], at, outside="nearest")[:, 0]
        return intensity, interpolate.sample(self.values[1:], at)[:, 0]


@dataclass(frozen=True, eq=False)
class _Level:
    fixed: _Side
    moving: _Side
    bins: int


@dataclass(frozen=True, eq=False)
class _Pair:
    """The two images and where to look at them."""

    fixed: Image
    fixed_mask: Image | None
    moving: Image
    moving_mask: Image | None
    settings: AffineSettings
    stripped: bool = False

    def level(self, size: float, points: int, bins: int) -> _Level:
        """Both at voxels of about ``size`` mm, with at most ``points`` points of each."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        settings = replace(self.settings, bins=bins)
        return _Level(
            _side(self.fixed, self.fixed_mask, size, points, settings, generator, self.stripped),
            _side(self.moving, self.moving_mask, size, points, settings, generator, self.stripped),
            bins,
        )


def _thinned(image: Image, mask: Image | None, size: float) -> tuple[Image, Image | None]:
    """Image and mask once at the finest voxel size that is used; every level starts from there."""
    values, affine = smooth.reduce(image.values[:1].to(torch.float32), image.grid.affine, size)
    shape = (values.shape[1], values.shape[2], values.shape[3])
    grid = ImageGrid(shape, affine, image.grid.space)
    if mask is None:
        return Image(grid, values), None
    steps = [round(float(n / o)) for n, o in zip(grid.voxel_sizes, image.grid.voxel_sizes, strict=True)]
    check_same_grid(mask.grid, image.grid, "The mask of an image to be registered")
    return Image(grid, values), Image(grid, mask.mask[None, :: steps[0], :: steps[1], :: steps[2]])


def _side(
    image: Image,
    mask: Image | None,
    size: float,
    n: int,
    settings: AffineSettings,
    generator: torch.Generator,
    stripped: bool,
) -> _Side:
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
    chosen = (stacked[1] > 0.5).nonzero()
    if len(chosen) > n:
        order = torch.randperm(len(chosen), generator=generator)[:n]
        chosen = chosen[order.to(chosen.device)]
    # Off the lattice by a random part of a voxel: points on it make the cost ripple with the voxel's period.
    jitter = torch.rand(len(chosen), 3, generator=generator).to(chosen.device) - 0.5
    upper = torch.tensor(stacked.shape[1:], device=chosen.device) - 1
    at = torch.minimum((chosen + jitter).clamp_min(0), upper)
    drawn = interpolate.sample(stacked, at)
    return _Side(
        stacked,
        torch.linalg.inv(affine).to(values.device),
        aff.apply_affine(affine, at),
        drawn[:, 1],
        parzen(drawn[:, 0], settings.bins),
        _centre(stacked, affine, has_mask=mask is not None),
    )


def _centre(stacked: Float[Tensor, "2 i j k"], affine: Tensor, *, has_mask: bool) -> Float[Tensor, " 3"]:
    """Centre of mass of the mask, or of the intensity where there is none (float64, CPU)."""
    weights = (stacked[1] if has_mask else stacked[0]).double().cpu()
    total = weights.sum().clamp_min(1e-12)
    axes = [torch.arange(n, dtype=torch.float64) for n in weights.shape]
    sums = [weights.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)]
    index = torch.stack([(axis * along).sum() / total for axis, along in zip(axes, sums, strict=True)])
    return aff.apply_affine(affine, index)


# --- the cost and its descent ---------------------------------------------------------------------------------------


def _cost(level: _Level, matrix: Float[Tensor, "4 4"]) -> Float[Tensor, ""]:
    """Minus the normalised mutual information over the points of both images, with a guard against sliding apart."""
    fixed, moving = level.fixed, level.moving
    forward = matrix.to(fixed.points)
    backward = torch.linalg.inv(matrix).to(fixed.points)
    there, seen = moving.sample(aff.apply_affine(forward, fixed.points))
    back, seen_back = fixed.sample(aff.apply_affine(backward, moving.points))
    weight, weight_back = seen * fixed.weight, seen_back * moving.weight
    # Each image counts by what the other sees of it, so that neither set of points outweighs the other.
    share = weight.sum() / fixed.weight.sum().clamp_min(1e-6)
    share_back = weight_back.sum() / moving.weight.sum().clamp_min(1e-6)
    joint = (fixed.window * weight[:, None]).mT @ parzen(there, level.bins)
    joint = joint + (parzen(back, level.bins) * weight_back[:, None]).mT @ moving.window
    guard = (0.6 - torch.maximum(share, share_back)).clamp_min(0)
    return guard - normalised_mutual_information(joint)


def local_matrix(parameters: Float[Tensor, " p"], centre: Float[Tensor, " 3"]) -> Float[Tensor, "4 4"]:
    """Shift, turn, scale and shear about ``centre`` from 6, 7 or 12 parameters in mm at 80 mm from it."""
    shift, turn = parameters[:3], parameters[3:6] / _RADIUS
    zero = torch.zeros((), dtype=parameters.dtype)
    x, y, z = turn
    skew = torch.stack([torch.stack([zero, -z, y]), torch.stack([z, zero, -x]), torch.stack([-y, x, zero])])
    linear = torch.linalg.matrix_exp(skew)
    if len(parameters) > 6:
        rest = parameters[6:] / _RADIUS
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
    # Without an SVD, whose gradient fails at equal values: for strains this small the second-order series of half the
    # logarithm of AᵀA will do.
    gram = matrix[:3, :3].mT @ matrix[:3, :3] - torch.eye(3, dtype=matrix.dtype)
    strain = 0.5 * gram - 0.25 * gram @ gram
    size = strain.diagonal().mean()
    shape = strain - size * torch.eye(3, dtype=matrix.dtype)
    squares = 3 * (size / settings.size_sd) ** 2 + (shape / settings.shape_sd).square().sum()
    return 0.5 * settings.prior_weight * squares


def _descend(
    level: _Level, start: Float[Tensor, "4 4"], dof: Dof, settings: AffineSettings
) -> tuple[Float[Tensor, "4 4"], float]:
    """L-BFGS from ``start``; returns the matrix and its cost."""
    centre = level.fixed.centre

    def evaluate(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
        matrix = start @ local_matrix(leaf, centre)
        cost = _cost(level, matrix).to("cpu", torch.float64)
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
    return start @ local_matrix(torch.from_numpy(result.x), centre), float(result.fun) / 1e3


# --- the search -----------------------------------------------------------------------------------------------------


def _search(pair: _Pair, dof: Dof, settings: AffineSettings) -> Float[Tensor, "4 4"]:
    """The start of the descent: a grid of poses, then short descents from the best of them that lie well apart."""
    # With one mask, strictly inside it: at its rim, brain against nothing rivals head against air, and heads come out
    # too large. With two, each brain is cut out and its outline says most of where and how large it is.
    both = pair.fixed_mask is not None and pair.moving_mask is not None
    pair = replace(pair, stripped=both, settings=replace(settings, margin=settings.search_margin if both else 0.0))
    level = pair.level(settings.search_level, settings.search_points, settings.search_bins)
    finer = pair.level(settings.search_level, 2 * settings.search_points, settings.search_bins)
    few: Dof = "rigid" if dof == "rigid" else "similarity"
    ends = []
    for scale in (1.0,) if dof == "rigid" else settings.search_scales:
        for start in _starts(level, scale, settings.starts):
            held, _ = _descend(finer, start, "rigid", settings)
            ends.append(_descend(finer, held, few, settings) if few != "rigid" else (held, _cost(finer, held).item()))
    finalists = _apart(_sorted(ends), level, settings.finalists, 4.0)
    if len(finalists) == 1:
        return finalists[0]
    level = pair.level(settings.levels[0], settings.points // 2, settings.bins)
    return _sorted([_descend(level, start, dof, settings) for start in finalists])[0]


def _starts(level: _Level, scale: float, n: int) -> list[Float[Tensor, "4 4"]]:
    """The best poses of one size that lie well apart."""
    ranked = _rank(level, _pitched(level, scale))
    turned = [
        matrix @ local_matrix(_turn(0.0, yaw, roll), level.fixed.centre)
        for matrix in _apart(ranked, level, 2 * n)
        for yaw, roll in ((0.0, 0.0), (-20.0, 0.0), (20.0, 0.0), (0.0, -20.0), (0.0, 20.0))
    ]
    return _apart(_rank(level, turned), level, n)


def _pitched(level: _Level, scale: float) -> list[Float[Tensor, "4 4"]]:
    """Poses over guesses of the centres, shifts, and nods of the head (its commonest turn)."""
    fixed, moving = level.fixed, level.moving
    pairs = [(fixed.centre, moving.centre), (_middle(fixed), _middle(moving)), (fixed.centre, fixed.centre)]
    shifts = [(0, 0, 0), (0, 0, 20), (0, 0, -20), (0, 0, 40), (0, 0, -40), (0, 20, 0), (0, -20, 0)]
    poses = []
    for (source, target), shift, pitch in itertools.product(pairs, shifts, (-30.0, -15.0, 0.0, 15.0, 30.0)):
        move = target - source + torch.tensor(shift, dtype=torch.float64)
        size = torch.tensor([_RADIUS * np.log(scale)], dtype=torch.float64)
        pose = torch.cat([move, _turn(pitch, 0.0, 0.0)[3:], size])
        poses.append(local_matrix(pose if scale != 1 else pose[:6], source))
    return poses


def _turn(pitch: float, yaw: float, roll: float) -> Float[Tensor, " 6"]:
    """Parameters of a turn about x (nodding), z and y, in degrees."""
    angles = torch.deg2rad(torch.tensor([pitch, roll, yaw], dtype=torch.float64))
    return torch.cat([torch.zeros(3, dtype=torch.float64), angles * _RADIUS])


def _rank(level: _Level, poses: Sequence[Float[Tensor, "4 4"]]) -> list[Float[Tensor, "4 4"]]:
    """The poses, best first."""
    with torch.no_grad():
        return _sorted([(pose, _cost(level, pose).item()) for pose in poses])


def _sorted(scored: Sequence[tuple[Tensor, float]]) -> list[Tensor]:
    return [matrix for matrix, _ in sorted(scored, key=lambda item: item[1])]


def _apart(ranked: Sequence[Tensor], level: _Level, n: int, distance: float = 12.0) -> list[Tensor]:
    """The first ``n`` poses that move the fixed points by ``distance`` mm or more on average from one another."""
    points = level.fixed.points[:: max(1, len(level.fixed.points) // 50)].double().cpu()
    kept: list[tuple[Tensor, Tensor]] = []
    for matrix in ranked:
        here = aff.apply_affine(matrix, points)
        if all(float((here - there).norm(dim=-1).mean()) >= distance for _, there in kept):
            kept.append((matrix, here))
        if len(kept) == n:
            break
    return [matrix for matrix, _ in kept]


def _middle(side: _Side) -> Float[Tensor, " 3"]:
    """The middle of the field of view."""
    middle = (torch.tensor(side.values.shape[1:], dtype=torch.float64) - 1) / 2
    return aff.apply_affine(torch.linalg.inv(side.to_voxel).cpu(), middle)
