"""A susceptibility field as cubic B-splines on nodes, and the descent that finds the nodes' values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields.image import ImageGrid
from tractode.ops import spline
from tractode.ops.lbfgs import LbfgsSettings, minimise


@dataclass(frozen=True, eq=False)
class FieldBasis:
    """Cubic B-splines on nodes over a grid: a field is the product of three small matrices and the nodes' values."""

    origin: ImageGrid
    spacing: float
    matrices: tuple[Float[Tensor, "_ _"], ...]

    @classmethod
    def of(cls, grid: ImageGrid, spacing: float) -> FieldBasis:
        sizes = zip(grid.shape, grid.voxel_sizes, strict=True)
        return cls(
            grid,
            spacing,
            tuple(spline.cubic_basis(torch.arange(n) * size, (n - 1) * size, spacing) for n, size in sizes),
        )

    def on(self, grid: ImageGrid) -> FieldBasis:
        """The same splines at the centres of another grid of the same axes and first voxel."""
        spans = [(n - 1) * size for n, size in zip(self.origin.shape, self.origin.voxel_sizes, strict=True)]
        each = zip(grid.shape, grid.voxel_sizes, spans, strict=True)
        matrices = tuple(spline.cubic_basis(torch.arange(n) * size, span, self.spacing) for n, size, span in each)
        return FieldBasis(self.origin, self.spacing, matrices)

    def zeros(self) -> Float[Tensor, "a b c"]:
        return torch.zeros([matrix.shape[1] for matrix in self.matrices])

    def field(self, nodes: Float[Tensor, "a b c"]) -> Float[Tensor, "i j k"]:
        return _along_each(self.matrices, nodes)

    def fitted(self, other: FieldBasis, nodes: Float[Tensor, "d e f"]) -> Float[Tensor, "a b c"]:
        """Nodes that give about the same field as those of another basis."""
        inverses = [torch.linalg.pinv(matrix.double()).float() for matrix in self.matrices]
        return _along_each(inverses, other.on(self.origin).field(nodes))


def _along_each(matrices: Sequence[Float[Tensor, "_ _"]], values: Float[Tensor, "a b c"]) -> Float[Tensor, "i j k"]:
    """One matrix along each axis, the last first: it is the cheapest while the others are still short."""
    for axis in (2, 1, 0):
        values = torch.tensordot(values, matrices[axis], dims=([axis], [1])).movedim(-1, axis)
    return values


def least(
    cost: Callable[[Tensor], Float[Tensor, ""]],
    start: Float[Tensor, "*p"],
    curvature: float,
    iterations: int,
    told: Callable[[int, float], None] | None = None,
) -> Float[Tensor, "*p"]:
    """The least cost by L-BFGS; ``curvature`` is a guess at the second derivative of each unknown."""

    def function(vector: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(vector).to(start).view(start.shape).requires_grad_()
        value = cost(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient.double().ravel().numpy()

    vector = start.double().ravel().numpy()
    found = minimise(function, vector, np.full(len(vector), curvature), LbfgsSettings(most=iterations), told)
    return torch.from_numpy(found.point).to(start).view(start.shape)
