"""Turning diffusion tensors, and directions, with a local change of shape.

Alexander, Pierpaoli, Basser & Gee, *Spatial transformations of diffusion tensor magnetic resonance images*, IEEE TMI 2001,
doi:10.1109/42.963816. A tensor is turned and never sheared: its eigenvalues belong to the tissue. *Preservation of principal
directions* (PPD) carries the first eigenvector as a fibre is carried, ``F e₁ / |F e₁|``, and keeps the plane of the first two;
*finite strain* (FS) takes the rotation nearest to F for every tensor, so it misses how a shear turns fibres.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import symmetric

TensorMethod = Literal["ppd", "fs"]
_NEWTON_STEPS = 12
_SMALLEST = 1e-12


def reorient(
    components: Float[Tensor, "v 6"], forward: Float[Tensor, "w 3 3"], method: TensorMethod = "ppd"
) -> Float[Tensor, "v 6"]:
    """Tensors after the local linear map ``forward`` (one a voxel, or one for all); eigenvalues are kept.

    Differentiable in both; for PPD where a tensor's three eigenvalues differ.
    """
    if method == "fs":
        rotation = nearest_rotation(forward.to(components))
        return symmetric.from_matrix(rotation @ symmetric.to_matrix(components) @ rotation.mT)
    return _principal_directions(components, forward.to(components))


def _principal_directions(components: Float[Tensor, "v 6"], forward: Float[Tensor, "w 3 3"]) -> Float[Tensor, "v 6"]:
    size = components.abs().amax(-1, keepdim=True)
    # An isotropic tensor has no directions to keep, and its decomposition no derivative: it stays as it is.
    spread = components - symmetric.trace(components)[..., None] / 3 * components.new_tensor([1.0, 0, 0, 1, 0, 1])
    has_axes = spread.abs().amax(-1, keepdim=True) > 1e-6 * size
    safe = torch.where(
        has_axes, components / torch.where(size > 0, size, 1.0), components.new_tensor([3.0, 0, 0, 2, 0, 1])
    )
    values, vectors = symmetric.eigen(safe)
    moved = forward @ vectors
    first = _unit(moved[..., 0])
    second = moved[..., 1]
    second = _unit(second - (second * first).sum(-1, keepdim=True) * first)
    frame = torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)
    turned = symmetric.from_matrix(frame * (values * size)[..., None, :] @ frame.mT)
    return torch.where(has_axes, turned, components)


def nearest_rotation(linear: Float[Tensor, "*v 3 3"]) -> Float[Tensor, "*v 3 3"]:
    """The orthogonal factor of the polar decomposition, ``(F Fᵀ)^{-1/2} F``, by Newton's iteration.

    Higham, *Computing the polar decomposition*, SIAM J Sci Stat Comput 1986, doi:10.1137/0907079. Unlike a singular value
    decomposition its derivative is finite where singular values are equal, as for every map near the identity.
    """
    found = linear
    for _ in range(_NEWTON_STEPS):
        found = (found + _inverse_transposed(found)) / 2
    return found


def _inverse_transposed(linear: Float[Tensor, "*v 3 3"]) -> Float[Tensor, "*v 3 3"]:
    """By cross products of rows: the cofactors over the determinant."""
    a, b, c = linear.unbind(-2)
    cofactors = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-2)
    determinant = (a * cofactors[..., 0, :]).sum(-1)[..., None, None]
    flat = determinant.abs() < _SMALLEST
    return torch.where(flat, linear, cofactors / torch.where(flat, 1.0, determinant))


def turn(directions: Float[Tensor, "v 3"], forward: Float[Tensor, "w 3 3"]) -> Float[Tensor, "v 3"]:
    """Unit directions carried by the local linear map: ``F d / |F d|``; a zero vector stays zero."""
    return _unit((forward.to(directions) @ directions[..., None])[..., 0])


def _unit(vectors: Float[Tensor, "*v 3"]) -> Float[Tensor, "*v 3"]:
    squared = vectors.square().sum(-1, keepdim=True)
    present = squared > 0
    return torch.where(present, vectors / torch.where(present, squared, 1.0).sqrt(), 0.0)
