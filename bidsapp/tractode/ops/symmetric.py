"""Symmetric 3×3 matrices stored as six components, in the order xx xy xz yy yz zz (that of BEP016)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS = (0, 0, 0, 1, 1, 2)
_COLUMNS = (0, 1, 2, 1, 2, 2)
_PLACES = (0, 1, 2, 1, 3, 4, 2, 4, 5)


def to_matrix(components: Float[Tensor, "*v 6"]) -> Float[Tensor, "*v 3 3"]:
    """The full matrices."""
    return components[..., list(_PLACES)].unflatten(-1, (3, 3))


def from_matrix(matrices: Float[Tensor, "*v 3 3"]) -> Float[Tensor, "*v 6"]:
    """The upper triangles."""
    return matrices[..., list(_ROWS), list(_COLUMNS)]


def quadratic_form(directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 6"]:
    """The row ``q`` with ``q · components = gᵀ D g`` for each direction g."""
    doubled = torch.tensor([1, 2, 2, 1, 2, 1], dtype=directions.dtype, device=directions.device)
    return directions[..., list(_ROWS)] * directions[..., list(_COLUMNS)] * doubled


def rotate(rotation: Float[Tensor, "3 3"], components: Float[Tensor, "*v 6"]) -> Float[Tensor, "*v 6"]:
    """``R D Rᵀ``."""
    rotation = rotation.to(components)
    return from_matrix(rotation @ to_matrix(components) @ rotation.mT)


def trace(components: Float[Tensor, "*v 6"]) -> Float[Tensor, "*v"]:
    return components[..., 0] + components[..., 3] + components[..., 5]


def anisotropy(components: Float[Tensor, "*v 6"]) -> Float[Tensor, "*v"]:
    """Fractional anisotropy from the invariants, without eigenvalues: at most 1, and 0 for a zero matrix.

    ``FA² = 3/2 · |D − tr(D)/3|² / |D|²``. Noise can make an eigenvalue negative and this ratio larger than 1; it is cut there.
    """
    third = trace(components) / 3
    weight = torch.tensor([1, 2, 2, 1, 2, 1], dtype=components.dtype, device=components.device)
    identity = torch.tensor([1, 0, 0, 1, 0, 1], dtype=components.dtype, device=components.device)
    # Divided by the largest component first: squares of diffusivities (1e-3)⁴ would leave float32's range.
    largest = components.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    unit = components / scale
    deviation = unit - (third[..., None] / scale) * identity
    above, below = (weight * deviation**2).sum(-1), (weight * unit**2).sum(-1)
    ratio = 1.5 * above / torch.where(below > 0, below, torch.ones_like(below))
    # The square root has no slope at 0: an isotropic matrix gets FA 0 with gradient 0.
    positive = ratio > 0
    return torch.where(
        positive, torch.where(positive, ratio, torch.ones_like(ratio)).sqrt(), torch.zeros_like(ratio)
    ).clamp(max=1)


def eigen(components: Float[Tensor, "*v 6"]) -> tuple[Float[Tensor, "*v 3"], Float[Tensor, "*v 3 3"]]:
    """Eigenvalues, largest first, and the unit eigenvectors as columns in the same order (signs are arbitrary)."""
    values, vectors = torch.linalg.eigh(to_matrix(components))
    return values.flip(-1), vectors.flip(-1)


def eigenvalues(components: Float[Tensor, "*v 6"]) -> Float[Tensor, "*v 3"]:
    """Eigenvalues, largest first; differentiable also where two of them meet."""
    return torch.linalg.eigvalsh(to_matrix(components)).flip(-1)
