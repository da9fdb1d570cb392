"""Weighted least squares under linear inequalities that all voxels share, differentiable in data and weights.

The free optimum ``x₀`` is moved to the nearest point, in the metric of ``N = XᵀWX``, of the cone ``C x ≥ 0``: a convex
programme with one solution, found exactly in finitely many steps (`tractode.ops.inequality_kernel`). Derivative: with the
set A of constraints that hold exactly, ``x = x₀ − N⁻¹ C_Aᵀ (C_A N⁻¹ C_Aᵀ)⁻¹ C_A x₀``, whose derivative is exact wherever
the set does not change with a small change of the data (Amos & Kolter 2017, arXiv:1703.00443, section 3).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.ops.least_squares import Design, in_threads

_TOLERANCE = 1e-10


def constrained(
    design: Design, weights: Float[Tensor, "n t"], free: Float[Tensor, "p t"], bounds: Float[Tensor, "m p"]
) -> Float[Tensor, "p t"]:
    """``argmin Σ w (X β − y)²`` under ``bounds · β ≥ 0``, from the optimum without them."""
    with torch.no_grad():
        outside = ((bounds @ free) < -_TOLERANCE * free.abs().amax(0)).any(0)
    if not bool(outside.any()):
        return free
    columns = outside.nonzero().ravel()
    # Of all columns, not of those that need it: a product of another size rounds otherwise.
    normal = design.normal((design.products[0] @ weights)[:, columns])
    start = free[:, columns].mT
    with torch.no_grad():
        moved, active = _nearest(normal, start, bounds)
    if torch.is_grad_enabled() and (weights.requires_grad or free.requires_grad):
        slope = _on_the_bounds(normal, start, bounds, active)
        moved = moved + (slope - slope.detach())
    return free.index_copy(1, columns, moved.mT)


def _nearest(
    normal: Float[Tensor, "v p p"], start: Float[Tensor, "v p"], bounds: Float[Tensor, "m p"]
) -> tuple[Float[Tensor, "v p"], Bool[Tensor, "v m"]]:
    from tractode.ops.inequality_kernel import nearest  # compiled

    given = [a.detach().cpu().contiguous().numpy() for a in (normal, start, bounds.mT)]
    moved = torch.empty_like(start, device="cpu", memory_format=torch.contiguous_format)
    active = torch.zeros(len(start), len(bounds), dtype=torch.bool)
    in_threads(lambda begin, end: nearest(*given, moved.numpy(), active.numpy(), begin, end), len(start))
    return moved.to(start.device), active.to(start.device)


def _on_the_bounds(
    normal: Float[Tensor, "v p p"],
    start: Float[Tensor, "v p"],
    bounds: Float[Tensor, "m p"],
    active: Bool[Tensor, "v m"],
) -> Float[Tensor, "v p"]:
    """The optimum with the active bounds as equations; the lists of bounds are filled up to one length by empty rows."""
    most = int(active.sum(-1).max())
    order = active.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :most]
    held = active.gather(1, order)
    rows = bounds[order] * held[..., None]
    across = torch.linalg.solve(normal, rows.mT)
    system = rows @ across + torch.diag_embed((~held).to(rows))
    multiplier = torch.linalg.solve(system, (rows @ start[..., None]))
    return start - (across @ multiplier)[..., 0]
