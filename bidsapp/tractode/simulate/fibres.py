"""Fibre populations of every voxel, from the bundles that pass through it and a plausible background.

Where no bundle passes, white matter runs like the bundles near it, and straight to the cortex close to it; its
concentration is low. No paper; the population of one bundle in one voxel is a Watson distribution about the mean axis
of its fibres there, as concentrated as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import ImageGrid, ShField, Streamlines
from tractode.ops import smooth, symmetric
from tractode.ops import spherical_harmonics as sh
from tractode.simulate import signal
from tractode.simulate.tissues import GREY, WHITE


@dataclass(frozen=True)
class FibreSettings:
    """``smoothing_mm`` of each bundle's direction; ``thin`` is the share of a bundle's typical density that fills 63 %.

    ``coherence`` is the mean cos² inside one population of parallel fibres, ``background`` that of white matter
    without bundles; ``raised`` is the white-matter fraction that a full bundle makes of grey matter at least
    (thin bundles are blurred away in an average anatomy).
    """

    smoothing_mm: float = 1.5
    thin: float = 0.25
    coherence: float = 0.91
    background: float = 0.52
    background_mm: float = 8.0
    radial_mm: float = 3.0
    raised: float = 0.8
    order: int = 8


@dataclass(frozen=True, eq=False)
class FibreField:
    """The truth about orientation on a grid.

    ``tissues`` are the fractions after bundles were given room; ``occupancy`` is how full of each bundle a voxel is, in
    [0, 1], others left aside; ``single`` marks white matter in which one population dominates.
    """

    fod: ShField
    tissues: Float[Tensor, "3 i j k"]
    occupancy: dict[str, Float[Tensor, "i j k"]]
    main_direction: Float[Tensor, "3 i j k"]
    single: Bool[Tensor, "i j k"]


def splat(grid: ImageGrid, points: Float[Tensor, "p 3"], values: Float[Tensor, "p c"]) -> Float[Tensor, "c i j k"]:
    """Values dropped on a grid with linear weights; what falls beyond the border is lost."""
    position = grid.to_voxel(points.double())
    base = position.floor().long()
    share = position - base
    shape = torch.tensor(grid.shape)
    total = torch.zeros(grid.n_voxels, values.shape[1], dtype=values.dtype)
    for corner in range(8):
        offset = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        index = base + offset
        weight = torch.where(offset.bool(), share, 1 - share).prod(-1)
        kept = ((index >= 0) & (index < shape)).all(-1)
        flat = (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]
        total.index_add_(0, flat[kept], values[kept] * weight[kept, None].to(values))
    return total.mT.reshape(values.shape[1], *grid.shape)


def dyadics(grid: ImageGrid, lines: Streamlines, smoothing_mm: float) -> Float[Tensor, "6 i j k"]:
    """Sum of the fibres' dyadic tensors (trace: mm of fibre per mm³), smoothed."""
    box, tensor = dyadics_nearby(grid, lines, smoothing_mm)
    whole = torch.zeros(6, *grid.shape, dtype=tensor.dtype)
    whole[(slice(None), *box)] = tensor
    return whole


def dyadics_nearby(
    grid: ImageGrid, lines: Streamlines, smoothing_mm: float
) -> tuple[tuple[slice, slice, slice], Float[Tensor, "6 r s t"]]:
    """`dyadics` in the smallest box of voxels beyond which they are zero."""
    owner = lines.streamline_of_point
    points = lines.points.double()
    step = points.diff(dim=0)
    within = owner[1:] == owner[:-1]
    step, middle = step[within], ((points[1:] + points[:-1]) / 2)[within]
    length = step.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    outer = symmetric.from_matrix((step / length)[:, :, None] * step[:, None, :])
    size = grid.voxel_sizes
    sigma = (smoothing_mm / size[0], smoothing_mm / size[1], smoothing_mm / size[2])
    box = _box(grid, middle, sigma)
    affine = grid.affine.clone()
    affine[:3, 3] = grid.to_world(torch.tensor([part.start for part in box], dtype=torch.float64))
    shape = tuple(part.stop - part.start for part in box)
    nearby = ImageGrid((shape[0], shape[1], shape[2]), affine, grid.space)
    total = splat(nearby, middle, outer) / (size[0] * size[1] * size[2])
    return box, smooth.gaussian(total, sigma, border="zero")


def _box(
    grid: ImageGrid, points: Float[Tensor, "p 3"], sigma_vox: tuple[float, float, float]
) -> tuple[slice, slice, slice]:
    """The voxels that points reach after smoothing; at least one voxel, wherever they are."""
    low, high = [0, 0, 0], [1, 1, 1]
    if len(points):
        position = grid.to_voxel(points)
        for axis, sigma in enumerate(sigma_vox):
            reach, n = smooth.reach(sigma) if sigma > 0 else 0, grid.shape[axis]
            first, last = math.floor(float(position[:, axis].min())), math.floor(float(position[:, axis].max())) + 1
            # At least two voxels where there are two: a single one is taken for a flat image and not smoothed.
            low[axis] = min(max(0, first - reach), max(0, n - 2))
            high[axis] = max(min(n, low[axis] + 2), min(n, last + reach + 1))
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


@dataclass(frozen=True, eq=False)
class _Population:
    """One bundle in the voxels it reaches: ravelled voxel indices, mean axis, mean cos² about it, occupancy."""

    index: Int[Tensor, " m"]
    axis: Float[Tensor, "m 3"]
    mean_square: Float[Tensor, " m"]
    occupancy: Float[Tensor, " m"]


def fibre_field(
    grid: ImageGrid,
    tissues: Float[Tensor, "3 i j k"],
    bundles: Mapping[str, Streamlines],
    settings: FibreSettings | None = None,
) -> FibreField:
    """Orientation distribution of every voxel; it integrates to the voxel's white-matter fraction."""
    settings = settings or FibreSettings()
    fractions = tissues.double().reshape(3, -1)
    brain = fractions.sum(0) > 0
    populations = {name: _population(grid, lines, brain, settings) for name, lines in bundles.items()}
    filled = torch.zeros(grid.n_voxels, dtype=torch.float64)
    for one in populations.values():
        filled.index_add_(0, one.index, one.occupancy)
    fractions = _with_room(fractions, filled, settings)
    rest = _background(grid, populations, (1 - filled).clamp(min=0), fractions, settings)
    fod = torch.zeros(grid.n_voxels, sh.n_coefficients(settings.order), dtype=torch.float64)
    largest = torch.zeros(grid.n_voxels, dtype=torch.float64)
    main = torch.zeros(grid.n_voxels, 3, dtype=torch.float64)
    for one in (*populations.values(), rest):
        share = one.occupancy / filled[one.index].clamp(min=1)
        fod.index_add_(0, one.index, (share * fractions[WHITE, one.index])[:, None] * _lobe(one, settings.order))
        coherent = share * (one.mean_square > settings.coherence - 0.1)
        wins = coherent > largest[one.index]
        largest[one.index[wins]], main[one.index[wins]] = coherent[wins], one.axis[wins]
    single = (largest > 0.85) & (fractions[WHITE] > 0.85)
    return FibreField(
        ShField(grid, fod.mT.reshape(-1, *grid.shape).float(), settings.order),
        fractions.reshape(3, *grid.shape),
        {name: _dense(grid, one) for name, one in populations.items()},
        main.mT.reshape(3, *grid.shape),
        single.reshape(grid.shape),
    )


def _population(grid: ImageGrid, lines: Streamlines, brain: Bool[Tensor, " v"], settings: FibreSettings) -> _Population:
    box, nearby = dyadics_nearby(grid, lines, settings.smoothing_mm)
    place = torch.arange(grid.n_voxels).reshape(grid.shape)[box].reshape(-1)
    tensor = nearby.reshape(6, -1).mT
    density = symmetric.trace(tensor)
    # Typical of the places where its fibres are: each voxel counts as often as fibres pass it.
    inside = density[density > 0]
    order = inside.sort().values
    typical = (
        order[torch.searchsorted(order.cumsum(0), order.sum() / 2).clamp(max=len(order) - 1)]
        if len(order)
        else inside.new_ones(())
    )
    occupancy = 1 - torch.exp(-density / (settings.thin * typical))
    chosen = ((occupancy > 0.02) & brain[place]).nonzero().ravel()
    values, vectors = symmetric.eigen(tensor[chosen] / density[chosen, None])
    mean_square = (values[:, 0] + settings.coherence - 1).clamp(0.4, settings.coherence)
    return _Population(place[chosen], vectors[:, :, 0], mean_square, occupancy[chosen])


def _with_room(
    fractions: Float[Tensor, "3 v"], filled: Float[Tensor, " v"], settings: FibreSettings
) -> Float[Tensor, "3 v"]:
    """White matter where bundles are, at the cost of grey matter only."""
    wanted = settings.raised * filled.clamp(max=1)
    missing = (wanted - fractions[WHITE]).clamp(min=0)
    moved = torch.minimum(missing, settings.raised * fractions[GREY])
    out = fractions.clone()
    out[WHITE] += moved
    out[GREY] -= moved
    return out


def _background(
    grid: ImageGrid,
    populations: Mapping[str, _Population],
    rest: Float[Tensor, " v"],
    fractions: Float[Tensor, "3 v"],
    settings: FibreSettings,
) -> _Population:
    """White matter that no bundle fills: directions of the bundles around it and of the way out to the cortex."""
    size = grid.voxel_sizes
    around = torch.zeros(grid.n_voxels, 6, dtype=torch.float64)
    for one in populations.values():
        around.index_add_(
            0, one.index, one.occupancy[:, None] * symmetric.from_matrix(one.axis[:, :, None] * one.axis[:, None, :])
        )
    sigma = [settings.background_mm / edge for edge in size]
    wide = smooth.gaussian(around.mT.reshape(6, *grid.shape), (sigma[0], sigma[1], sigma[2]), border="zero")
    along = wide.reshape(6, -1).mT
    out = _radial(grid, fractions[WHITE].reshape(grid.shape), settings.radial_mm)
    index = ((rest > 0) & (fractions[WHITE] > 0.01)).nonzero().ravel()
    along, out = along[index], out[index]
    mixed = along / symmetric.trace(along).clamp(min=0.02)[:, None] + symmetric.from_matrix(
        out[:, :, None] * out[:, None, :]
    )
    axis = symmetric.eigen(mixed)[1][:, :, 0]
    return _Population(index, axis, torch.full_like(rest[index], settings.background), rest[index])


def _radial(grid: ImageGrid, white: Float[Tensor, "i j k"], sigma_mm: float) -> Float[Tensor, "v 3"]:
    """Gradient of smoothed white matter in the world; its length tells how near the surface is, about 1 at it."""
    soft = smooth.gaussian(white[None], tuple(sigma_mm / edge for edge in grid.voxel_sizes))[0]  # type: ignore[arg-type]
    slopes = [
        torch.gradient(soft, dim=axis)[0] if n > 1 else torch.zeros_like(soft) for axis, n in enumerate(grid.shape)
    ]
    world = torch.stack([slope.reshape(-1) for slope in slopes], -1) @ grid.inverse_affine[:3, :3]
    return world * sigma_mm * 2.5


def _lobe(one: _Population, order: int) -> Float[Tensor, "m l"]:
    """SH coefficients of a Watson distribution of integral 1 about each axis."""
    factors = signal.watson(signal.concentration(one.mean_square), order)
    return factors[:, sh.degrees(order) // 2] * sh.basis(one.axis, order)


def _dense(grid: ImageGrid, one: _Population) -> Float[Tensor, "i j k"]:
    out = torch.zeros(grid.n_voxels, dtype=torch.float64)
    out[one.index] = one.occupancy
    return out.reshape(grid.shape)
