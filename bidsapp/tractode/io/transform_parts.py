"""What the formats of transforms share: a transform as simple parts for a file, and the parts of a file as a transform."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields.image import ImageGrid
from tractode.fields.transform import Affine, Chain, Displacement, Flow, Transform
from tractode.fields.velocity import VelocityField
from tractode.ops import affine as aff

# Points and vectors change between RAS+ and the LPS of ITK by these signs, matrices by both sides.
LPS = np.array([-1.0, -1.0, 1.0, 1.0])
# Parts already tabulated, so that several files of one transform share the work: lend the same dict to each writer.
Tables = dict[Transform, Displacement]


def simple_parts(
    transform: Transform, reference: ImageGrid, tables: Tables | None = None
) -> list[Affine | Displacement]:
    """The transform as affines and dense displacements, in the order points meet them; neighbouring affines are merged.

    A part that is neither is tabulated: on ``reference`` where that lies in the part's source space and is finer than
    the part's own grid, else on its own grid at that voxel size.
    """
    parts: list[Affine | Displacement] = []
    for part in flat(transform):
        if isinstance(part, Affine) and parts and isinstance(parts[-1], Affine):
            parts[-1] = Affine(aff.compose(parts[-1].matrix, part.matrix), parts[-1].source, part.target)
        elif isinstance(part, Affine | Displacement):
            parts.append(part)
        else:
            tables = {} if tables is None else tables
            if part not in tables:
                tables[part] = _tabulated(part, reference)
            parts.append(tables[part])
    return parts


def flat(transform: Transform) -> list[Transform]:
    if isinstance(transform, Chain):
        return [leaf for part in transform.parts for leaf in flat(part)]
    return [transform]


def _tabulated(part: Transform, reference: ImageGrid) -> Displacement:
    own = _own_grid(part)
    size = min(*reference.voxel_sizes, 2.0)
    if own is not None:
        # Half the nodes' distance follows a trilinear velocity closely; finer than the reference helps nobody.
        grid = _upright(own, reference, max(min(own.voxel_sizes) / 2, size)).renamed(part.source)
    else:
        grid = reference.renamed(part.source)
    points = grid.centres(torch.float64)
    values = (part.map(points) - points).movedim(-1, 0).to(torch.float32)
    return Displacement(grid, values.contiguous(), part.source, part.target)


def _upright(grid: ImageGrid, reference: ImageGrid, size: float) -> ImageGrid:
    """Voxels of ``size`` mm over a grid; where its axes are not perpendicular, along those of the reference and around it.

    An affine that stands beside a flow may leave the flow's nodes sheared, which neither ITK nor a NIfTI header can say.
    """
    axes = aff.axis_directions(grid.affine)
    if torch.allclose(axes.T @ axes, torch.eye(3, dtype=axes.dtype), atol=1e-5):
        return grid.resampled(size)
    # The nearest rotation, should the reference itself be sheared.
    axes = aff.rotation_part(reference.affine) * size
    ends = torch.tensor(list(itertools.product(*((-0.5, n - 0.5) for n in grid.shape))), dtype=torch.float64)
    corners = grid.to_world(ends) @ torch.linalg.inv(axes).T
    low, high = corners.amin(0).floor(), corners.amax(0).ceil()
    i, j, k = (high - low).long().tolist()
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3], affine[:3, 3] = axes, axes @ (low + 0.5)
    return ImageGrid((i, j, k), affine, grid.space)


def _own_grid(part: Transform) -> ImageGrid | None:
    """The grid a part is defined on, where it has one: a flow's nodes, or those of a displacement to be inverted."""
    if isinstance(part, Flow):
        return part.velocity.grid
    forward = getattr(part, "forward", None)
    return forward.grid if isinstance(forward, Displacement) else None


class VelocityFlow:
    """A flow as X5 keeps it: velocities, their grid and the times."""

    def __init__(self, values: Tensor, facts: dict[str, Any]) -> None:
        grid = facts["velocity_grid"]
        shape = grid["shape"]
        self.grid = ImageGrid((shape[0], shape[1], shape[2]), torch.tensor(grid["affine"], dtype=torch.float64), "")
        self.values = values
        self.t0, self.t1, self.steps = float(facts["t0"]), float(facts["t1"]), int(facts["steps"])


def chain_of(found: list[Any], source: str, target: str) -> Transform:
    """Names the spaces between the parts and joins them."""
    if not found:
        return Affine(torch.eye(4, dtype=torch.float64), source, target)
    names = [source, *(f"{source}→{target}:{n}" for n in range(1, len(found))), target]
    parts: list[Transform] = []
    for item, start, end in zip(found, names, names[1:], strict=False):
        if isinstance(item, Tensor):
            parts.append(Affine(item, start, end))
        elif isinstance(item, VelocityFlow):
            parts.append(
                Flow(
                    VelocityField(item.grid.renamed(start), item.values[None]), start, end, item.t0, item.t1, item.steps
                )
            )
        else:
            grid, values = item
            parts.append(Displacement(grid.renamed(start), values, start, end))
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def from_lps(matrix: np.ndarray) -> Tensor:
    """A 4×4 matrix between LPS points as one between RAS+ points, and the other way round."""
    return torch.from_numpy(np.ascontiguousarray(LPS[:, None] * matrix * LPS))


def unreadable(path: Path, error: Exception) -> InputDataError:
    return InputDataError(
        f"The transform cannot be read ({error})",
        id="E-XFM-READ",
        path=path,
        needed="an intact ITK composite .h5, warp .nii.gz, affine .mat or .txt, or X5 file",
        fix="write it again with the program that made it",
    )
