"""The peak of an orientation distribution nearest to a direction, and its derivative without unrolling the search.

Search: MRtrix3's gradient ascent on the sphere (steps of ``|f′/f″|`` along the gradient, at most 0.2 rad, 50 of them,
until one is below 1e-4 rad; Tournier et al., *MRtrix3*, NeuroImage 2019, doi:10.1016/j.neuroimage.2019.116137). The path
matters: where several peaks merge it decides which one is found, and on flat ridges it fails, which ends a streamline.
Departures: Cartesian, so there is no special case at the poles; and where the surface Hessian is negative definite and
well rounded and the step short, so that the ascent would reach the same peak, Newton's step is taken instead.

Derivative: a peak is where the surface gradient vanishes, ``P B(c, d) d = 0``, so by the implicit function theorem
``∂d/∂c = −K⁻¹ P ∂(B d)/∂c`` with K the surface Hessian: nothing of the search has to be kept.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.ops import sh_polynomial as poly

MAX_ITERATIONS = 50
MAX_TURN = 0.2  # rad, the longest step of the ascent
ASCENT_TOLERANCE = 1e-4  # rad
NEWTON_REACH = 0.1  # rad, Newton's step is trusted below this
NEWTON_FINISH = 1e-3  # rad, below this Newton's step ends any ascent
# trace² / determinant of a 2×2 matrix with eigenvalue ratio r is r + 2 + 1/r; the ascent's error shrinks by at least
# (r − 1)/(r + 1) a step. Measured against tckgen on a real scan: up to r = 2.6 Newton's step changes no line (97.5 % of
# lines alike with it, 98 % without), up to r = 5.8 it does (94 %).
WELL_ROUNDED = 5.0
LANES = 64  # columns come in multiples of this: every element then goes through the same vector instructions


def tolerance_of(dtype: torch.dtype) -> float:
    """The Newton step (rad) after which a search ends. Newton squares its error, so what is left is far below it."""
    return 1e-6 if dtype == torch.float64 else 1e-3


def find_peaks(
    components: Float[Tensor, "n m"], start: Float[Tensor, "3 m"]
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"]]:
    """Directions and amplitudes of the peaks uphill from ``start``; amplitude NaN where the search does not converge.

    ``m`` must be a multiple of `LANES`. Each column's result depends on that column only.
    """
    directions, amplitudes = start.clone(), torch.full_like(start[0], torch.nan)
    columns = torch.arange(start.shape[1], device=start.device)
    current = start
    for _ in range(MAX_ITERATIONS):
        current, amplitude, is_done = ascend(components, current)
        finished = columns[is_done]
        directions[:, finished], amplitudes[finished] = current[:, is_done], amplitude[is_done]
        waiting = pad_to_lanes((~is_done).nonzero().ravel())
        if len(waiting) == 0:
            break
        columns = columns[waiting]
        components, current = components.index_select(1, waiting), current.index_select(1, waiting)
    return directions, amplitudes


def pad_to_lanes(index: Int[Tensor, " a"]) -> Int[Tensor, " b"]:
    """An index lengthened to a multiple of `LANES` by repeating its last entry."""
    missing = -len(index) % LANES
    return torch.cat((index, index[-1:].expand(missing))) if missing and len(index) else index


def ascend(
    components: Float[Tensor, "n m"], d: Float[Tensor, "3 m"]
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"], Bool[Tensor, " m"]]:
    """One step uphill: the new directions, their amplitudes to second order, and which searches are over.

    A search also ends where the numbers are not finite: its amplitude is NaN.
    """
    order, tiny = poly.order_of(components.shape[0]), torch.finfo(components.dtype).tiny
    b = poly.contraction(components, d)
    bd = poly.apply(b, d)
    value = poly.dot(d, bd)
    slope = bd - value * d
    solution, determinant, trace = surface_solve(b, d, value, order, slope)
    newton_length = poly.dot(solution, solution).sqrt()
    steepness = poly.dot(slope, slope).sqrt()
    unit = slope / steepness.clamp_min(tiny)
    curvature = (order - 1) * poly.dot(unit, poly.apply(b, unit)) - value
    turn = (steepness / curvature.abs().clamp_min(tiny)).clamp_max(MAX_TURN)
    is_round = (trace * trace < WELL_ROUNDED * determinant) & (newton_length < NEWTON_REACH) & (turn < NEWTON_REACH)
    is_ending = (turn < ASCENT_TOLERANCE) & (newton_length < NEWTON_FINISH)
    use_newton = (determinant > 0) & (trace < 0) & (is_round | is_ending)
    step = torch.where(use_newton, -solution, unit * turn)
    is_done = torch.where(use_newton, ~(newton_length >= tolerance_of(d.dtype)), ~(turn >= ASCENT_TOLERANCE))
    moved = d + step
    amplitude = value + 0.5 * order * poly.dot(slope, step)  # exact to second order for Newton's step
    return moved / poly.dot(moved, moved).sqrt(), amplitude, is_done


def surface_solve(
    b: Float[Tensor, "6 m"],
    d: Float[Tensor, "3 m"],
    value: Float[Tensor, " m"],
    order: int,
    right: Float[Tensor, "3 m"],
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
    """``K⁻¹ right`` in the tangent plane of ``d`` (``right`` must lie in it), and determinant and trace of K there.

    K = (L−1) B − f I on the tangent plane is the surface Hessian over L. Solved by its trace and determinant there
    (``dᵀ adj(K) d``), which needs no frame.
    """
    k = (order - 1) * b
    xx, xy, xz = k[0] - value, k[1], k[2]
    yy, yz, zz = k[3] - value, k[4], k[5] - value
    x, y, z = d.unbind(0)
    determinant = (
        x * x * (yy * zz - yz * yz)
        + y * y * (xx * zz - xz * xz)
        + z * z * (xx * yy - xy * xy)
        + 2 * (x * y * (xz * yz - xy * zz) + x * z * (xy * yz - xz * yy) + y * z * (xy * xz - xx * yz))
    )
    trace = xx + yy + zz - (order - 2) * value  # dᵀKd = (L−1) f − f
    turned = poly.apply(torch.stack((xx, xy, xz, yy, yz, zz)), right)
    turned = turned - poly.dot(turned, d) * d
    return (trace * right - turned) / determinant, determinant, trace


def peak_pullback(
    components: Float[Tensor, "n m"], d: Float[Tensor, "3 m"], grad: Float[Tensor, "3 m"]
) -> Float[Tensor, "n m"]:
    """The gradient with respect to the components of a loss whose gradient with respect to the peak ``d`` is ``grad``."""
    order = poly.order_of(components.shape[0])
    b = poly.contraction(components, d)
    value = poly.dot(d, poly.apply(b, d))
    tangent = grad - poly.dot(grad, d) * d
    solution, _, _ = surface_solve(b, d, value, order, tangent)
    return poly.contraction_transpose(poly.outer(-solution, d), d, order)


class Peak(torch.autograd.Function):
    """`find_peaks` with its implicit derivative; the start only chooses the peak and has none."""

    @staticmethod
    def forward(ctx, components: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        m = components.shape[1]
        columns = pad_to_lanes(torch.arange(m, device=components.device))
        directions, amplitudes = find_peaks(components[:, columns], start[:, columns])
        directions, amplitudes = directions[:, :m].clone(), amplitudes[:m].clone()
        ctx.save_for_backward(components, directions)
        return directions, amplitudes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_directions: Tensor, grad_amplitudes: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        components, d = ctx.saved_tensors
        pulled = peak_pullback(components, d, grad_directions)
        # The amplitude is stationary in the direction, so only its explicit dependence counts (envelope theorem).
        order = poly.order_of(components.shape[0])
        return pulled + poly.contraction_transpose(poly.outer(d, d) * grad_amplitudes, d, order), None
