"""The principal axis of symmetric 3×3 matrices and its derivative, element by element.

Eigenvalue: the trigonometric solution of the characteristic cubic (Smith, *Eigenvalues of a symmetric 3×3 matrix*,
Comm. ACM 1961, doi:10.1145/355578.366316). Eigenvector: the longest cross product of two rows of ``A − λ₁I``, then one
step of Newton. Derivative: first-order perturbation, ``dv = (λ₁I − A)⁺ dA v`` with the pseudo-inverse in the plane across
``v``; it is finite wherever the first eigenvalue is simple, also where the second and third meet (a departure from
differentiating the closed form or a full eigendecomposition, which are not).

No matrix products and no LAPACK: each column's result depends on that column only. Components are rows xx xy xz yy yz zz.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops.sh_polynomial import apply, dot, outer


def principal_axis(
    components: Float[Tensor, "6 m"], reference: Float[Tensor, "3 m"]
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"]]:
    """Unit eigenvectors of the largest eigenvalue on the side of ``reference``, and the fractional anisotropy.

    The axis is differentiable in the components; the anisotropy, which only ends lines, is not. Where the matrix is
    isotropic the axis has no meaning: look at the anisotropy first.
    """
    axis = _PrincipalAxis.apply(components)
    with torch.no_grad():
        towards = torch.where(dot(axis, reference) < 0, -1.0, 1.0).to(axis)
        spread = _deviation(components)[1]
        xx, xy, xz, yy, yz, zz = components.unbind(0)
        size = (xx * xx + yy * yy + zz * zz + 2 * (xy * xy + xz * xz + yz * yz)).sqrt()
        # |D − tr(D)/3|² = 6 p²; noise can make an eigenvalue negative and the ratio larger than 1.
        anisotropy = (3 * spread / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1)
    return axis * towards, anisotropy


def _deviation(components: Float[Tensor, "6 m"]) -> tuple[Float[Tensor, "6 m"], Float[Tensor, " m"]]:
    """``B = (A − q I) / p`` with q the mean of the eigenvalues and 6 p² the sum of squares of what is left; and p."""
    xx, xy, xz, yy, yz, zz = components.unbind(0)
    largest = components.abs().amax(0).clamp_min(torch.finfo(components.dtype).tiny)
    q = (xx + yy + zz) / 3
    a = torch.stack((xx - q, xy, xz, yy - q, yz, zz - q)) / largest  # squares of diffusivities would underflow
    squares = a[0] * a[0] + a[3] * a[3] + a[5] * a[5] + 2 * (a[1] * a[1] + a[2] * a[2] + a[4] * a[4])
    p = (squares / 6).sqrt()
    return a / p.clamp_min(torch.finfo(p.dtype).tiny), p * largest


def _first_axis(b: Float[Tensor, "6 m"]) -> Float[Tensor, "3 m"]:
    """The eigenvector of the largest eigenvalue of a matrix of zero trace and ``|B|² = 6``."""
    xx, xy, xz, yy, yz, zz = b.unbind(0)
    half = 0.5 * (xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz))
    largest = 2 * torch.cos(torch.acos(half.clamp(-1, 1)) / 3)
    rows = (
        torch.stack((xx - largest, xy, xz)),
        torch.stack((xy, yy - largest, yz)),
        torch.stack((xz, yz, zz - largest)),
    )
    axis = torch.zeros_like(rows[0])
    length = torch.full_like(largest, -1)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        candidate = torch.linalg.cross(rows[first], rows[second], dim=0)
        candidate_length = dot(candidate, candidate)
        axis = torch.where(candidate_length > length, candidate, axis)
        length = torch.maximum(length, candidate_length)
    tiny = torch.finfo(b.dtype).tiny
    axis = axis / length.clamp_min(tiny).sqrt()
    turned = apply(b, axis)
    value = dot(axis, turned)
    axis = axis + _across(b, value, axis, turned - value * axis)
    return axis / dot(axis, axis).clamp_min(tiny).sqrt()


def _across(
    matrix: Float[Tensor, "6 m"],
    value: Float[Tensor, " m"],
    axis: Float[Tensor, "3 m"],
    right: Float[Tensor, "3 m"],
) -> Float[Tensor, "3 m"]:
    """``(λ₁I − A)⁺ right`` for ``right`` across the axis: M = λ₁I − A has Mv = 0, so there M⁺ = (tr(M) − M) / det."""
    xx, xy, xz, yy, yz, zz = matrix.unbind(0)
    xx, yy, zz = value - xx, value - yy, value - zz
    trace = xx + yy + zz
    determinant = xx * yy + xx * zz + yy * zz - xy * xy - xz * xz - yz * yz
    tiny = torch.finfo(matrix.dtype).tiny
    turned = torch.stack((
        xx * right[0] - xy * right[1] - xz * right[2],
        -xy * right[0] + yy * right[1] - yz * right[2],
        -xz * right[0] - yz * right[1] + zz * right[2],
    ))  # fmt: skip
    solution = (trace * right - turned) / determinant.clamp_min(tiny)
    return solution - dot(solution, axis) * axis


class _PrincipalAxis(torch.autograd.Function):
    """The axis without regard to its sign, with the derivative of perturbation theory."""

    @staticmethod
    def forward(ctx: Any, components: Tensor) -> Tensor:  # type: ignore[override]
        b, p = _deviation(components)
        axis = _first_axis(b)
        ctx.save_for_backward(b, p, axis)
        return axis

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        b, p, axis = ctx.saved_tensors
        tangent = grad - dot(grad, axis) * axis
        solution = _across(b, dot(axis, apply(b, axis)), axis, tangent)
        return outer(solution, axis) / p
