"""The peak of an orientation distribution uphill from a direction, and its derivative without unrolling the search.

Search: MRtrix3's ascent on the sphere (Tournier et al., *MRtrix3*, NeuroImage 2019,
doi:10.1016/j.neuroimage.2019.116137): steps of ``|f′/f″|`` along the gradient, at most 0.2 rad, until one is below 1e-4
rad; after 50 there is no peak. The amplitude is that of the point before the last step. The path matters: where several
peaks merge it decides which one is found, and on flat ridges it fails, which ends a streamline. Therefore ``f″`` is what
MRtrix3 takes for it, second derivatives by angles of elevation and azimuth, which differ from those of the surface near
the z axis (`ascend`). Departures: Cartesian (at the pole itself MRtrix3 leaves out two of the three second derivatives);
in double precision, which is there for derivatives, Newton's steps then find the peak to 1e-9 rad.

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
POLISH_REACH = 1e-2  # rad, the longest of Newton's steps that may end a search in double precision
POLISH_TOLERANCE = 1e-9  # rad
POLE = 1e-8  # squared distance from the z axis below which no angle of azimuth is trusted
LANES = 64  # columns come in multiples of this: every element then goes through the same vector instructions


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
    """One step uphill: the new directions, the amplitudes at the old ones, and which searches are over.

    With surface gradient ``L s u`` (u of length 1), ``f″ = L[(L−1) uᵀBu − f]`` on the surface. By the angles (θ, φ) of
    MRtrix3 it is that plus ``cot θ u_θ u_φ² L s``, because the axes of θ and φ turn with them. Where the numbers are
    not finite the search is never over.
    """
    order, tiny = poly.order_of(components.shape[0]), torch.finfo(components.dtype).tiny
    b = poly.contraction(components, d)
    bd = poly.apply(b, d)
    value = poly.dot(d, bd)
    slope = bd - value * d
    steepness = poly.dot(slope, slope).sqrt()
    unit = slope / steepness.clamp_min(tiny)
    across = d[0] * unit[1] - d[1] * unit[0]
    radius = d[0] * d[0] + d[1] * d[1]
    bent = steepness * d[2] * unit[2] * across * across / (radius * radius).clamp_min(POLE * POLE)
    curvature = (order - 1) * poly.dot(unit, poly.apply(b, unit)) - value - bent
    turn = (steepness / curvature.abs().clamp_min(tiny)).clamp_max(MAX_TURN)
    is_done = turn < ASCENT_TOLERANCE
    step = unit * turn
    if components.dtype == torch.float64:
        step, is_done = _polished(b, d, value, order, slope, step, is_done)
    moved = d + step
    return moved / poly.dot(moved, moved).sqrt(), value, is_done


def _polished(
    b: Tensor, d: Tensor, value: Tensor, order: int, slope: Tensor, step: Tensor, is_done: Tensor
) -> tuple[Float[Tensor, "3 m"], Bool[Tensor, " m"]]:
    """Newton's step instead of the last of the ascent, where the surface is a hilltop; over once it is below 1e-9 rad."""
    solution, determinant, trace = surface_solve(b, d, value, order, slope)
    length = poly.dot(solution, solution).sqrt()
    is_top = is_done & (determinant > 0) & (trace < 0) & (length < POLISH_REACH)
    return torch.where(is_top, -solution, step), is_done & (~is_top | (length < POLISH_TOLERANCE))


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
