"""What the model sees of its subject: one convolutional encoder of the whole orientation field, looked up at points.

GenTract (Sargood et al. 2025, doi:10.48550/arXiv.2511.13183) compresses every SH coefficient by a VAE of its own and lets
each streamline attend to the flattened latents. Departures: one small multi-channel network, run once a subject; it also
gets the mean field of the training subjects, so that differences are seen directly; streamlines look its features up by
linear interpolation where their points are (as feature pyramids are in Lin et al. 2017, doi:10.48550/arXiv.1612.03144),
together with the raw field there and its alignment with the line around, against that of the mean field.
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

DISTANCES_MM = (3.0, 6.0, 10.0)
"""How far from a knot, along each axis and both ways, the field is looked at."""
_AROUND = (
    (0.0, 0.0, 0.0),
    *(
        tuple(sign * far if axis == other else 0.0 for other in range(3))
        for axis in range(3)
        for far in DISTANCES_MM
        for sign in (1, -1)
    ),
)
N_SLOPES = 3 * len(DISTANCES_MM)


@dataclass(frozen=True, eq=False)
class Context:
    """A subject as the model sees it: tables of rows (one a voxel) at 1, 2 and 4 voxels' spacing, and the field itself.

    ``field`` is followed by the mean field of the training subjects. ``evidence`` is what every bundle's lines, left where
    the atlas has them, see at each knot on average (see `slopes_of`). ``is_known`` is 0 where the field is withheld
    (the model's idea of streamlines without a subject), else 1.
    """

    tables: tuple[Float[Tensor, "_ _"], ...]
    shapes: tuple[tuple[int, int, int], ...]
    field: Float[Tensor, "v l"]
    is_known: float
    evidence: Float[Tensor, "b k e"] | None = None


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
    # Each voxel's features on one scale: those of the brain's edge would outgrow all others.
    tables = tuple(functional.layer_norm(level[0].flatten(1).mT, level.shape[1:2]) for level in levels)
    i, j, k = levels[0].shape[2:]
    shapes = tuple((-(-i // 2**n), -(-j // 2**n), -(-k // 2**n)) for n in range(len(levels)))
    return Context(tables, shapes, torch.cat([field, mean]).flatten(1).mT.contiguous(), float(is_known))


def n_features(order: int, mean_order: int, widths: tuple[int, int, int]) -> int:
    """Length of what `look_up` returns."""
    return sh.n_coefficients(order) + sh.n_coefficients(mean_order) + 2 * len(_AROUND) + N_SLOPES + sum(widths)


def look_up(
    context: Context, grid: ImageGrid, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"], order: int
) -> tuple[Float[Tensor, "p f"], Float[Tensor, "p e"]]:
    """Everything known of the places, and the slopes among it (see `slopes_of`)."""
    amplitudes, here = alignments(context, grid, points, directions, order)
    voxel = affine.apply_affine(grid.inverse_affine, points)
    # A stride of 2 keeps voxel 0's centre: centres lie at every second, then every fourth.
    encoded = [
        sample_rows(table, shape, voxel / 2**scale)
        for scale, (table, shape) in enumerate(zip(context.tables, context.shapes, strict=True))
    ]
    slopes = slopes_of(amplitudes)
    return torch.cat([here, amplitudes.flatten(1), slopes, *encoded], dim=-1), slopes


def alignments(
    context: Context, grid: ImageGrid, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"], order: int
) -> tuple[Float[Tensor, "p 2 a"], Float[Tensor, "p c"]]:
    """Amplitudes along ``directions`` of the subject's field and of the mean field, at the points and around them; and the
    coefficients of both at the points."""
    n = len(points)
    offsets = torch.tensor(_AROUND, dtype=points.dtype, device=points.device)
    voxel = affine.apply_affine(grid.inverse_affine, (points[:, None] + offsets).reshape(-1, 3))
    raw = sample_rows(context.field, context.shapes[0], voxel).reshape(n, len(_AROUND), -1)
    basis = sh.basis(directions, order)
    own = torch.einsum("pal,pl->pa", raw[..., : basis.shape[1]], basis)
    n_mean = raw.shape[2] - basis.shape[1]
    mean = torch.einsum("pal,pl->pa", raw[..., basis.shape[1] :], basis[:, :n_mean])
    return torch.stack([own, mean], 1), raw[:, 0]


def slopes_of(amplitudes: Float[Tensor, "p 2 a"]) -> Float[Tensor, "p e"]:
    """Which way the field is more like the line than the mean field is: differences across the point, axis by axis.

    The sign tells where the subject's bundle lies. A ridge regression of a line's mean displacement on nothing but these,
    averaged along it, explains a quarter of its variance in subjects that it was not fitted on.
    """
    excess = amplitudes[:, 0] - amplitudes[:, 1]
    return excess[:, 1::2] - excess[:, 2::2]
