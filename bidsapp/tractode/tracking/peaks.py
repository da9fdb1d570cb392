"""The peak of an orientation distribution nearest to a direction, and its derivative without unrolling the search.

Search: MRtrix3's gradient ascent on the sphere (step ``|f′/f″|`` along the gradient, at most 0.2 rad; Tournier et al.,
*MRtrix3*, NeuroImage 2019, doi:10.1016/j.neuroimage.2019.116137). Departures: Cartesian, so there is no special case at
the poles; once the surface Hessian is negative definite and the Newton step is short, Newton's step is taken instead,
which reaches the same peak with fewer and more exact steps.

Derivative: a peak is where the surface gradient vanishes, ``P B(c, d) d = 0``, so by the implicit function theorem
``∂d/∂c = −K⁻¹ P ∂(B d)/∂c`` with K the surface Hessian: nothing of the search has to be kept.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.ops import sh_polynomial as poly

MAX_ITERATIONS = 50
MAX_TURN = 0.2  # rad, the longest step of the ascent (MRtrix3's)
NEWTON_REACH = 0.1  # rad, Newton's step is trusted below this
LANES = 64  # columns come in multiples of this: every element then goes through the same vector instructions


def tolerance_of(dtype: torch.dtype) -> float:
    """The step (rad) after which a search ends. Newton squares its error, so what is left is far below it."""
    return 1e-6 if dtype == torch.float64 else 1e-3


def find_peaks(
    components: Float[Tensor, "n m"], start: Float[Tensor, "3 m"], max_iterations: int = MAX_ITERATIONS
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"]]:
    """Directions and amplitudes of the peaks uphill from ``start``; amplitude NaN where the search does not converge.

    ``m`` must be a multiple of `LANES`. Each column's result depends on that column only.
    """
    tolerance = tolerance_of(components.dtype)
    directions, amplitudes = start.clone(), torch.full_like(start[0], torch.nan)
    columns, current = None, start
    for _ in range(max_iterations):
        current, amplitude, length = _ascend(components, current)
        is_done = ~(length >= tolerance)  # a NaN ends the search too: its amplitude is NaN
        columns = _write(directions, amplitudes, columns, current, amplitude, is_done)
        waiting = (~is_done).nonzero().ravel()
        if len(waiting) == 0:
            break
        waiting = pad_to_lanes(waiting)
        columns = waiting if columns is None else columns[waiting]
        components, current = components[:, waiting], current[:, waiting]
    return directions, amplitudes


def _write(
    directions: Tensor, amplitudes: Tensor, columns: Tensor | None, current: Tensor, amplitude: Tensor, is_done: Tensor
) -> Tensor | None:
    """Put finished columns where they belong; ``columns`` is ``None`` while all are still in place."""
    if columns is None:
        directions.copy_(current)
        amplitudes.copy_(torch.where(is_done, amplitude, torch.nan))
    else:
        finished = columns[is_done]
        directions[:, finished] = current[:, is_done]
        amplitudes[finished] = amplitude[is_done]
    return columns


def pad_to_lanes(index: Tensor) -> Tensor:
    """An index lengthened to a multiple of `LANES` by repeating its last entry."""
    missing = -len(index) % LANES
    return torch.cat((index, index[-1:].expand(missing))) if missing and len(index) else index


def _ascend(components: Float[Tensor, "n m"], d: Float[Tensor, "3 m"]) -> tuple[Tensor, Tensor, Tensor]:
    """One step uphill: the new directions, their amplitudes to second order, and the lengths of the steps."""
    order = poly.order_of(components.shape[0])
    b = poly.contraction(components, d)
    bd = poly.apply(b, d)
    value = poly.dot(d, bd)
    slope = bd - value * d
    newton, is_peaked = surface_solve(b, d, value, order, slope)
    newton = -newton
    newton_length = poly.dot(newton, newton).sqrt()
    steepness = poly.dot(slope, slope).sqrt()
    unit = slope / steepness.clamp_min(torch.finfo(slope.dtype).tiny)
    curvature = (order - 1) * poly.dot(unit, poly.apply(b, unit)) - value
    turn = (steepness / curvature.abs().clamp_min(torch.finfo(slope.dtype).tiny)).clamp_max(MAX_TURN)
    use_newton = is_peaked & (newton_length < NEWTON_REACH)
    step = torch.where(use_newton, newton, unit * turn)
    length = torch.where(use_newton, newton_length, turn)
    moved = d + step
    # f(d + step) ≈ f + L·slope·step/2 at the end of a Newton step; the search ends with a step too short to matter else.
    amplitude = value + 0.5 * order * poly.dot(slope, step)
    return moved / poly.dot(moved, moved).sqrt(), amplitude, length


def surface_solve(
    b: Float[Tensor, "6 m"],
    d: Float[Tensor, "3 m"],
    value: Float[Tensor, " m"],
    order: int,
    right: Float[Tensor, "3 m"],
) -> tuple[Float[Tensor, "3 m"], Bool[Tensor, " m"]]:
    """``K⁻¹ right`` in the tangent plane of ``d`` (``right`` must lie in it), and whether K is negative definite.

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
    solution = (trace * right - turned) / determinant
    return solution, (determinant > 0) & (trace < 0)


def peak_pullback(
    components: Float[Tensor, "n m"], d: Float[Tensor, "3 m"], grad: Float[Tensor, "3 m"]
) -> Float[Tensor, "n m"]:
    """The gradient with respect to the components of a loss whose gradient with respect to the peak ``d`` is ``grad``."""
    order = poly.order_of(components.shape[0])
    b = poly.contraction(components, d)
    value = poly.dot(d, poly.apply(b, d))
    tangent = grad - poly.dot(grad, d) * d
    solution, _ = surface_solve(b, d, value, order, tangent)
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
