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
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from tractode.errors import InputDataError, SpaceMismatchError
from tractode.fields.image import Image, check_same_grid
from tractode.fields.transform import Affine
from tractode.registration import poses
from tractode.registration.halfway import N_PARAMETERS, RADIUS, Dof, Halfway
from tractode.registration.linear_level import Level, Pair, thinned
from tractode.registration.point_costs import point_cost

# Less of either image seen by the other than this: nothing was registered.
LEAST_SEEN = 0.02


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
        *thinned(fixed, fixed_mask, settings.levels[-1]), *thinned(moving, moving_mask, settings.levels[-1]), settings
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
