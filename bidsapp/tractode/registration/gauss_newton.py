"""Gauss–Newton descent on a stationary velocity, for metrics that are sums of squared differences of descriptors.

J. Ashburner, "A fast diffeomorphic image registration algorithm", NeuroImage 38:95 (2007), doi:10.1016/j.neuroimage.2007.07.007
(Gauss–Newton on a velocity, section 2.3); the mean of both images' slopes as the Jacobian: T. Vercauteren et al., NeuroImage 45:S61
(2009), doi:10.1016/j.neuroimage.2008.10.040, equation 8 (efficient second-order minimisation).

With ``A = F ∘ φ(½→0)``, ``B = M ∘ φ(½→1)`` and ``r = A − B``, a change δ of the velocity changes r by about
``−½ (∇A + ∇B) · δ``: each step solves ``(Σ J Jᵀ + w R'') δ = Σ J r − w R'(v)`` on the nodes by conjugate gradients.

Departures: ``Σ J Jᵀ`` is lumped on the nodes (its rows' sums); the change of the path by δ is taken at the middle only; a
regulariser's second derivative is probed once as a stencil, which is exact for quadratic ones; a step that makes the cost larger is halved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tractode.contracts import Regulariser
from tractode.ops import interpolate
from tractode.registration.deformation import half_flows
from tractode.registration.midpoint import Level

_SLAB = 8  # slices worked on at a time: what fits a processor's cache
_REACH = 2  # of a regulariser's stencil, nodes
Describe = Callable[[Tensor], Tensor]
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True, eq=False)
class Penalty:
    """A regulariser of a velocity on nodes, times its weight; per node that the images cover.

    Parameters
    ----------
    weights
        How much each node counts (spatially varying stiffness), or None.
    share
        Nodes in the regulariser's mean ÷ nodes that the images cover: the balance does not depend on the margin.
    """

    regulariser: Regulariser
    voxel_sizes: tuple[float, float, float]
    weight: float
    share: float
    weights: Float[Tensor, "i j k"] | None = None

    def __call__(self, velocity: Float[Tensor, "3 i j k"]) -> Float[Tensor, ""]:
        return self.weight * self.share * self.regulariser(velocity, self.voxel_sizes, self.weights)

    def slope(self, velocity: Float[Tensor, "3 i j k"]) -> tuple[float, Float[Tensor, "3 i j k"]]:
        """Value and derivative."""
        leaf = velocity.detach().requires_grad_(True)
        cost = self(leaf)
        return float(cost.detach()), torch.autograd.grad(cost, leaf)[0]

    def stiffness(self, shape: tuple[int, ...], like: Tensor) -> Stiffness:
        """The second derivative: the slope that a bump in the middle of the grid meets."""
        bump = torch.zeros(3, *shape, dtype=like.dtype, device=like.device)
        centre = [n // 2 for n in shape]
        bump[0, centre[0], centre[1], centre[2]] = 1
        bump.requires_grad_(True)
        slope = torch.autograd.grad(self.regulariser(bump, self.voxel_sizes), bump)[0][0]
        i, j, k = (slice(c - _REACH, c + _REACH + 1) for c in centre)
        root = None if self.weights is None else self.weights.sqrt()
        return Stiffness(slope[i, j, k] * (self.weight * self.share), root)


@dataclass(frozen=True, eq=False)
class Stiffness:
    """The second derivative of a penalty as an operator on one component after the other."""

    stencil: Float[Tensor, "r r r"]
    root: Float[Tensor, "i j k"] | None

    @property
    def diagonal(self) -> Float[Tensor, ""]:
        return self.stencil[_REACH, _REACH, _REACH]

    def __call__(self, x: Float[Tensor, "3 i j k"]) -> Float[Tensor, "3 i j k"]:
        inside = x if self.root is None else self.root * x
        out = functional.conv3d(inside[:, None], self.stencil[None, None], padding=_REACH)[:, 0]
        return out if self.root is None else self.root * out


def is_quadratic(regulariser: Regulariser) -> bool:
    """Whether twice the field costs four times as much, and some field costs something."""
    field = torch.randn(3, 7, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, two = float(regulariser(field, (1.0, 1.0, 1.0))), float(regulariser(2 * field, (1.0, 1.0, 1.0)))
    small = float(regulariser(1e-3 * field, (1.0, 1.0, 1.0)))
    return one > 0 and abs(two - 4 * one) < 1e-6 * two and abs(small - 1e-6 * one) < 1e-9 * one


@dataclass(frozen=True, eq=False)
class Normal:
    """The normal equations at a velocity: cost, ``Σ J Jᵀ`` (xx yy zz xy xz yz) and ``Σ J r`` on the nodes."""

    cost: float
    matrix: Float[Tensor, "6 i j k"]
    right: Float[Tensor, "3 i j k"]


def descend(
    level: Level,
    start: Float[Tensor, "3 i j k"],
    penalty: Penalty,
    window: Float[Tensor, "i j k"],
    iterations: int,
    report: Callable[[int, float], None],
    describe: Describe | None = None,
) -> Float[Tensor, "3 i j k"]:
    """The velocity (mm, RAS+) after at most ``iterations`` steps; ends when a step gains less than 1/1000 of the cost.

    ``describe``: the level holds intensities, which are warped and then described, at every step anew.
    """
    to_node = 1 / level.nodes.voxel_sizes[0]
    velocity, step, best = start, torch.zeros_like(start), float("inf")
    stiffness = penalty.stiffness(level.nodes.shape, start)
    for iteration in range(iterations):
        normal = normal_equations(level, velocity * to_node, describe)
        # Half of the squares' mean, so that its derivative is Σ J r.
        value, slope = penalty.slope(velocity)
        cost = normal.cost / 2 + value
        report(iteration, cost)
        if cost > best:
            step = step / 2
            velocity = velocity - step
            continue
        gained, best = best - cost, cost
        if gained < 1e-3 * cost:
            break
        step = window * solve(normal.matrix * to_node**2, normal.right * to_node - slope, stiffness)
        velocity = velocity + step
    return velocity


def normal_equations(level: Level, velocity_vox: Float[Tensor, "3 i j k"], describe: Describe | None = None) -> Normal:
    """At a velocity in nodes per unit time; both sides in slabs."""
    forward, back = half_flows(velocity_vox[None])
    forward, back = (level.spread(u) * level.ratio for u in (forward, back))
    whole = None
    if describe is not None:
        everywhere = _lattice_points((0, level.shape[0]), level.shape, forward)
        places = [everywhere + u.permute(1, 2, 3, 0) for u in (back, forward)]
        whole = [describe(_warped(v, at)) for v, at in zip((level.fixed, level.moving), places, strict=True)]
    matrix = forward.new_zeros(6, *level.shape)
    right = forward.new_zeros(3, *level.shape)
    cost = total = 0.0
    for start in range(0, level.shape[0], _SLAB):
        stop = min(start + _SLAB, level.shape[0])
        low, high = max(start - 1, 0), min(stop + 1, level.shape[0])
        here = _lattice_points((low, high), level.shape, forward)
        at_fixed, at_moving = (here + u[:, low:high].permute(1, 2, 3, 0) for u in (back, forward))
        if whole is None:
            first, second = _warped(level.fixed, at_fixed), _warped(level.moving, at_moving)
        else:
            first, second = whole[0][:, low:high], whole[1][:, low:high]
        weight = pair_weight(level.weights, at_fixed, at_moving)[start - low : stop - low]
        inner = slice(start - low, stop - low)
        residual = (first - second)[:, inner]
        slopes = [_central((first + second) / 2, axis)[:, inner] for axis in (1, 2, 3)]
        cost += float((residual.square().mean(0) * weight).sum())
        total += float(weight.sum())
        for n, slope in enumerate(slopes):
            right[n, start:stop] = (slope * residual).mean(0) * weight
        for n, (a, b) in enumerate(_PAIRS):
            matrix[n, start:stop] = (slopes[a] * slopes[b]).mean(0) * weight
    total = max(total, 1e-6)
    # The Jacobian is per lattice voxel and the step in nodes.
    scale = level.ratio / total
    return Normal(cost / total, level.gathered(matrix) * (scale * level.ratio), level.gathered(right) * scale)


def pair_weight(
    weights: Float[Tensor, "2 i j k"], at_fixed: Float[Tensor, "*p 3"], at_moving: Float[Tensor, "*p 3"]
) -> Float[Tensor, "*p"]:
    """What a place in the middle counts: the product of what both sides give it."""
    fixed = interpolate.sample(weights[:1], at_fixed)[..., 0]
    return fixed * interpolate.sample(weights[1:], at_moving)[..., 0]


def _warped(values: Float[Tensor, "c i j k"], at: Float[Tensor, "r s t 3"]) -> Float[Tensor, "c r s t"]:
    return interpolate.sample(values, at, outside="nearest").permute(3, 0, 1, 2)


def _lattice_points(slab: tuple[int, int], shape: tuple[int, int, int], like: Tensor) -> Float[Tensor, "i j k 3"]:
    axes = [torch.arange(a, b, dtype=like.dtype, device=like.device) for a, b in (slab, (0, shape[1]), (0, shape[2]))]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _central(values: Float[Tensor, "c i j k"], axis: int) -> Float[Tensor, "c i j k"]:
    """Central differences; 0 on the border."""
    n = values.shape[axis]
    out = torch.zeros_like(values)
    if n > 2:
        torch.sub(values.narrow(axis, 2, n - 2), values.narrow(axis, 0, n - 2), out=out.narrow(axis, 1, n - 2))
    return out.mul_(0.5)


# --- the linear system ----------------------------------------------------------------------------------------------


def _times(matrix: Float[Tensor, "6 i j k"], x: Float[Tensor, "3 i j k"]) -> Float[Tensor, "3 i j k"]:
    xx, yy, zz, xy, xz, yz = matrix
    return torch.stack(
        [xx * x[0] + xy * x[1] + xz * x[2], xy * x[0] + yy * x[1] + yz * x[2], xz * x[0] + yz * x[1] + zz * x[2]]
    )


def _inverse(matrix: Float[Tensor, "6 i j k"]) -> Float[Tensor, "6 i j k"]:
    """Of symmetric 3×3 matrices, by cofactors."""
    xx, yy, zz, xy, xz, yz = matrix
    cofactors = torch.stack(
        [
            yy * zz - yz * yz,
            xx * zz - xz * xz,
            xx * yy - xy * xy,
            xz * yz - xy * zz,
            xy * yz - xz * yy,
            xy * xz - xx * yz,
        ]
    )
    return cofactors / (xx * cofactors[0] + xy * cofactors[3] + xz * cofactors[4])


def solve(
    matrix: Float[Tensor, "6 i j k"],
    right: Float[Tensor, "3 i j k"],
    stiffness: Stiffness,
    iterations: int = 30,
    tolerance: float = 1e-4,
) -> Float[Tensor, "3 i j k"]:
    """``(matrix + stiffness) x = right`` by conjugate gradients, preconditioned by the 3×3 blocks on the diagonal."""
    blocks = matrix.clone()
    # A little more, so that nodes that see no image keep an invertible block.
    blocks[:3] += stiffness.diagonal + 1e-3 * float(matrix[:3].mean()) + 1e-20
    inverse = _inverse(blocks)
    x = torch.zeros_like(right)
    residual = right.clone()
    preconditioned = _times(inverse, residual)
    direction = preconditioned.clone()
    now = (residual * preconditioned).sum()
    first = now.clone()
    for _ in range(iterations):
        image = _times(matrix, direction) + stiffness(direction)
        length = now / (direction * image).sum().clamp_min(1e-30)
        x = x + length * direction
        residual = residual - length * image
        preconditioned = _times(inverse, residual)
        after = (residual * preconditioned).sum()
        if bool(after < tolerance * first):
            break
        direction = preconditioned + (after / now) * direction
        now = after
    return x
