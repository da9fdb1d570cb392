"""What the model sees of its subject: one convolutional encoder of the whole orientation field, looked up at points.

GenTract (Sargood et al. 2025, doi:10.48550/arXiv.2511.13183) compresses every SH coefficient by a VAE of its own and lets
each streamline attend to the flattened latents. Departures: one small multi-channel network, run once a subject; it also
gets the mean field of the training subjects, so that differences are seen directly; streamlines look its features up by
linear interpolation where their points are (as feature pyramids are in Lin et al. 2017, doi:10.48550/arXiv.1612.03144),
together with the raw field there and around.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tractode.fields import ImageGrid
from tractode.ops import affine
from tractode.ops import spherical_harmonics as sh
from tractode.ops.interpolate import sample_rows

REACH_MM = 4.5
_AROUND = ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


@dataclass(frozen=True, eq=False)
class Context:
    """A subject as the model sees it: tables of rows (one a voxel) at 1, 2 and 4 voxels' spacing, and the field itself.

    ``is_known`` is 0 where the field is withheld (the model's idea of streamlines without a subject), else 1.
    """

    tables: tuple[Float[Tensor, "_ _"], ...]
    shapes: tuple[tuple[int, int, int], ...]
    field: Float[Tensor, "v l"]
    is_known: float


class FieldEncoder(nn.Module):
    """Features of an orientation field at three scales.

    Parameters
    ----------
    widths
        Channels at 1, 2 and 4 voxels' spacing.
    """

    def __init__(self, order: int, mean_order: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        channels = sh.n_coefficients(order) + sh.n_coefficients(mean_order)
        self.order = order
        self.enter = nn.Conv3d(channels, widths[0], 1)
        self.fine = _Block(widths[0])
        self.down = nn.ModuleList([nn.Conv3d(a, b, 3, 2, 1) for a, b in pairwise(widths)])
        self.coarse = nn.ModuleList([nn.Sequential(_Block(n), _Block(n)) for n in widths[1:]])

    def forward(self, field: Float[Tensor, "l i j k"], mean: Float[Tensor, "m i j k"]) -> list[Tensor]:
        """One volume of features a scale, ``(1, c, i, j, k)``."""
        level = self.fine(self.enter(torch.cat([field, mean])[None]))
        levels = [level]
        for down, block in zip(self.down, self.coarse, strict=True):
            level = block(down(level))
            levels.append(level)
        return levels


class _Block(nn.Module):
    """Two convolutions around which the input also passes unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(width, width, 3, padding=1), nn.Conv3d(width, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, width), nn.GroupNorm(4, width)])

    def forward(self, x: Float[Tensor, "1 c i j k"]) -> Float[Tensor, "1 c i j k"]:
        inner = self.first(functional.silu(self.norms[0](x)))
        return x + self.second(functional.silu(self.norms[1](inner)))


def context_of(encoder: FieldEncoder, field: Float[Tensor, "l i j k"], mean: Tensor, is_known: bool = True) -> Context:
    """Encode a field on the training grid; unknown fields are the mean's, and marked so."""
    levels = encoder(field, mean)
    tables = tuple(level[0].flatten(1).mT.contiguous() for level in levels)
    i, j, k = levels[0].shape[2:]
    shapes = tuple((-(-i // 2**n), -(-j // 2**n), -(-k // 2**n)) for n in range(len(levels)))
    return Context(tables, shapes, field.flatten(1).mT.contiguous(), float(is_known))


def n_features(order: int, widths: tuple[int, int, int]) -> int:
    """Length of what `look_up` returns."""
    return sh.n_coefficients(order) + len(_AROUND) * (1 + widths[0]) + widths[1] + widths[2]


def look_up(
    context: Context, grid: ImageGrid, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"], order: int
) -> Float[Tensor, "p f"]:
    """Everything known of the places: the field's coefficients, its amplitude along ``directions`` here and
    ``REACH_MM`` around, and features of all scales (the finest also around)."""
    n, n_around = len(points), len(_AROUND)
    offsets = REACH_MM * torch.tensor(_AROUND, dtype=points.dtype, device=points.device)
    around = (points[:, None] + offsets).reshape(-1, 3)
    voxel = affine.apply_affine(grid.inverse_affine, around)
    raw = sample_rows(context.field, context.shapes[0], voxel).reshape(n, n_around, -1)
    along = torch.einsum("pal,pl->pa", raw, sh.basis(directions, order))
    fine = sample_rows(context.tables[0], context.shapes[0], voxel).reshape(n, -1)
    parts = [raw[:, 0], along, fine]
    here = voxel.reshape(n, n_around, 3)[:, 0]
    for scale, (table, shape) in enumerate(zip(context.tables[1:], context.shapes[1:], strict=True), start=1):
        # A stride of 2 keeps voxel 0's centre: centres lie at every second, then every fourth.
        parts.append(sample_rows(table, shape, here / 2**scale))
    return torch.cat(parts, dim=-1)
