"""What a codec is given: which streamlines it can take, and each as 31 points in one direction."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields import ImageGrid, Streamlines
from tractode.fields.line_shape import one_way, resampled
from tractode.generative.space import training_grid

N_POINTS = 31
_SHORTEST_MM = 1.0
_MARGIN_MM = 20.0


@cache
def template_box() -> ImageGrid:
    """The brain's box in the codec's space: the grid that generation has, to which `usable` adds a margin of 20 mm."""
    return training_grid()


def usable(streamlines: Streamlines, box: ImageGrid | None = None) -> Bool[Tensor, " s"]:
    """Which streamlines have a code: finite, longer than 1 mm, and wholly within 20 mm of the template's box.

    The others are to be set aside and counted: those without points, of one point, with NaN, or of another space.
    """
    grid = box or template_box()
    points = streamlines.points.detach()
    voxel = torch.linalg.inv(grid.affine).to(points)
    index = points @ voxel[:3, :3].T + voxel[:3, 3]
    margin = _MARGIN_MM / grid.affine[:3, :3].norm(dim=0).to(points)
    last = torch.tensor(grid.shape).to(points) - 1
    within = ((index >= -margin) & (index <= last + margin)).all(-1)  # false for NaN too
    outside = torch.zeros(len(streamlines), dtype=torch.long, device=points.device)
    outside.index_add_(0, streamlines.streamline_of_point, (~within).long())
    clean = Streamlines(torch.nan_to_num(points, 0.0, 0.0, 0.0), streamlines.offsets, streamlines.space)
    return (outside == 0) & (streamlines.n_points > 1) & (clean.lengths() > _SHORTEST_MM)


def lines31(streamlines: Streamlines) -> Float[Tensor, "s 31 3"]:
    """Usable streamlines by 31 points equally spaced along them, all in the one direction of `one_way` (float64)."""
    return resampled(one_way(streamlines), N_POINTS)
