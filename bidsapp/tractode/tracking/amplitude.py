"""Amplitudes of an orientation distribution along given directions at given points, with light derivatives.

What backward needs (interpolated components, contracted tensors) is recomputed from positions and directions, tile by
tile, so that a million points cost 24 MB and not 500.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import sh_polynomial as poly
from tractode.tracking.sampling import ComponentTable, to_voxel

TILE = 32768


def amplitudes(
    table: ComponentTable, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"]
) -> Float[Tensor, " p"]:
    """The amplitude at each point (RAS+ mm) along each unit direction; differentiable in table, points and directions."""
    return _Amplitudes.apply(table.values, points, directions, table)


class _Amplitudes(torch.autograd.Function):
    """``f = dᵀB(c(x), d)d`` with ``∂f/∂c = d⊗…⊗d``, ``∂f/∂d = L·Bd`` and ``∂f/∂x`` by way of the interpolation."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, directions: Tensor, table: ComponentTable) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values, points, directions)
        ctx.grid, ctx.rows = table.grid, table.rows
        parts = [
            poly.dot(d.mT, _pulled(table, x, d)[1])
            for x, d in zip(points.split(TILE), directions.split(TILE), strict=True)
        ]
        return torch.cat(parts) if parts else points.new_zeros(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        values, points, directions = ctx.saved_tensors
        table = ComponentTable(ctx.grid, values, ctx.rows)
        order = poly.order_of(values.shape[1])
        inverse = table.grid.inverse_affine[:3, :3].to(values)
        grad_values, grad_points, grad_directions = torch.zeros_like(values), [], []
        for x, d, g in zip(points.split(TILE), directions.split(TILE), grad.split(TILE), strict=True):
            vox, bd = _pulled(table, x, d)
            grad_directions.append((order * g * bd).mT)
            explicit = poly.contraction_transpose(poly.outer(d.mT, d.mT) * g, d.mT.contiguous(), order)
            rows, weights, grad_vox = table.sample_pullback(vox, explicit)
            spread = weights[:, :, None] * explicit.mT[:, None, :]
            grad_values.index_add_(0, rows.reshape(-1).long(), spread.reshape(-1, spread.shape[-1]))
            grad_points.append((inverse.mT @ grad_vox).mT)
        if not grad_points:
            return grad_values, torch.zeros_like(points), torch.zeros_like(directions), None
        return grad_values, torch.cat(grad_points), torch.cat(grad_directions), None


def _pulled(table: ComponentTable, x: Tensor, d: Tensor) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "3 m"]]:
    """Voxel coordinates of the points, and ``Bd`` there."""
    vox = to_voxel(table.grid, x.mT.contiguous())
    components, _ = table.sample(vox)
    turned = d.mT.contiguous()
    return vox, poly.apply(poly.contraction(components, turned), turned)
