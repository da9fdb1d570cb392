"""Streamlines as pictures: groups of 64 lines of 64 points, a line a row, a point a column, x, y and z the three channels.

A. Lizarraga et al., "Differentiable VQ-VAE's for robust white matter streamline encodings", section 2.2
(github.com/drewrl3v/diff-vq-vae). Departure: coordinates are scaled to [-1, 1] by a fixed range and not by the least and the
largest number of a data set, so that one unit is 100 mm for every model and every data set.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Streamlines
from tractode.fields.line_shape import resampled

N_LINES = N_POINTS = 64
LEAST_MM, LARGEST_MM = -110.0, 90.0
UNIT_MM = (LARGEST_MM - LEAST_MM) / 2


def scaled(points_mm: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Coordinates in mm in units of `UNIT_MM` about the middle of the range; the range itself becomes [-1, 1]."""
    return (points_mm - (LEAST_MM + LARGEST_MM) / 2) / UNIT_MM


def in_mm(units: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The inverse of `scaled`."""
    return units * UNIT_MM + (LEAST_MM + LARGEST_MM) / 2


def pictures(lines: Float[Tensor, "*g s p 3"]) -> Float[Tensor, "*g 3 s p"]:
    """Groups of lines (mm) as pictures."""
    return scaled(lines).movedim(-1, -3)


def lines_of(images: Float[Tensor, "*g 3 s p"]) -> Float[Tensor, "*g s p 3"]:
    """Pictures as groups of lines (mm)."""
    return in_mm(images).movedim(-3, -1)


def grouped(streamlines: Streamlines) -> Float[Tensor, "g 64 64 3"]:
    """The lines in their order, 64 to a group, each by 64 points; the last group is filled up by its lines over again."""
    lines = resampled(streamlines, N_POINTS).float()
    n_groups = -(-len(lines) // N_LINES)
    if n_groups * N_LINES > len(lines):
        last = torch.arange((n_groups - 1) * N_LINES, len(lines))
        missing = n_groups * N_LINES - len(lines)
        lines = torch.cat([lines, lines[last.repeat(-(-missing // len(last)))[:missing]]])
    return lines.reshape(n_groups, N_LINES, N_POINTS, 3)


def ungrouped(groups: Float[Tensor, "g 64 64 3"], n: int, n_points: int, space: str) -> Streamlines:
    """The first ``n`` lines of the groups, each by ``n_points`` points."""
    lines = groups.flatten(0, 1)[:n]
    offsets = torch.arange(n + 1) * N_POINTS
    found = Streamlines(lines.flatten(0, 1), offsets, space)
    if n_points == N_POINTS:
        return found
    points = resampled(found, n_points).to(lines)
    return Streamlines(points.flatten(0, 1), torch.arange(n + 1) * n_points, space)
