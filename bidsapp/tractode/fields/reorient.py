"""Fields whose values turn with the head, carried to another grid: interpolated once, then reoriented by the local change of shape.

The transform takes points of the grid's space to the field's (fixed → moving), as for `tractode.fields.transform.resample`.
Its Jacobian J at a voxel says how small steps go *there*; directions come *back* by ``F = J⁻¹``. J is taken by central
differences of the whole map over two voxels of the grid, so any transform and any chain will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import SpaceMismatchError
from tractode.fields.image import Image, ImageGrid
from tractode.fields.sh import PeakField, ShField, TensorField
from tractode.fields.transform import Affine, Chain, Transform
from tractode.ops import finite_difference, interpolate, principal_axis, reorient_fod, reorient_tensor
from tractode.ops.reorient_fod import Modulation
from tractode.ops.reorient_tensor import TensorMethod

_SLAB_VOXELS = 1 << 17
# Values at the positions a slab came from, and how directions travel: the values of the slab.
_Turn = Callable[[Float[Tensor, "v c"], Float[Tensor, "w 3 3"]], Float[Tensor, "v c2"]]


@overload
def reoriented(
    field: ShField, grid: ImageGrid, transform: Transform, *, modulation: Modulation = ..., method: TensorMethod = ...
) -> ShField: ...
@overload
def reoriented(
    field: TensorField,
    grid: ImageGrid,
    transform: Transform,
    *,
    modulation: Modulation = ...,
    method: TensorMethod = ...,
) -> TensorField: ...
@overload
def reoriented(
    field: PeakField, grid: ImageGrid, transform: Transform, *, modulation: Modulation = ..., method: TensorMethod = ...
) -> PeakField: ...
def reoriented(
    field: ShField | TensorField | PeakField,
    grid: ImageGrid,
    transform: Transform,
    *,
    modulation: Modulation = "none",
    method: TensorMethod = "ppd",
) -> ShField | TensorField | PeakField:
    """A field of orientations on another grid, turned as the transform turns what it shows.

    Parameters
    ----------
    transform
        From the grid's space to the field's.
    modulation
        Of an `ShField`, see `tractode.ops.reorient_fod.reorient`.
    method
        Of a `TensorField`: ``ppd``, preservation of principal directions, whose first eigenvector goes where a streamline's
        tangent goes; or ``fs``, finite strain.

    Returns
    -------
    The same kind of field on ``grid``, 0 beyond the field's own grid. Coefficients and components are interpolated linearly;
    peaks are taken from the nearest voxel, because those of two voxels have no order in common.

    Raises
    ------
    SpaceMismatchError
        The transform does not go from the grid's space to the field's.
    """
    if isinstance(field, ShField):
        return _turned_harmonics(field, grid, transform, modulation)
    if isinstance(field, TensorField):
        return _turned_tensors(field, grid, transform, method)
    return _turned_peaks(field, grid, transform)


def _turned_harmonics(field: ShField, grid: ImageGrid, transform: Transform, modulation: Modulation) -> ShField:
    def turn(values: Tensor, forward: Tensor) -> Tensor:
        return reorient_fod.reorient(values, forward, field.order, modulation)

    return ShField(grid, _carried(Image(field.grid, field.coeffs), grid, transform, turn), field.order)


def _turned_tensors(field: TensorField, grid: ImageGrid, transform: Transform, method: TensorMethod) -> TensorField:
    def turn(values: Tensor, forward: Tensor) -> Tensor:
        return reorient_tensor.reorient(values, forward, method)

    return TensorField(grid, _carried(Image(field.grid, field.components), grid, transform, turn))


def _turned_peaks(field: PeakField, grid: ImageGrid, transform: Transform) -> PeakField:
    k = field.amplitudes.shape[0]

    def turn(values: Tensor, forward: Tensor) -> Tensor:
        directions = [reorient_tensor.turn(values[:, 3 * n : 3 * n + 3], forward) for n in range(k)]
        return torch.cat([*directions, values[:, 3 * k :]], dim=1)

    together = Image(field.grid, torch.cat([field.directions.flatten(0, 1), field.amplitudes]))
    moved = _carried(together, grid, transform, turn, mode="nearest")
    return PeakField(grid, moved[: 3 * k].unflatten(0, (k, 3)), moved[3 * k :])


def reoriented_axes(axes: Image, grid: ImageGrid, transform: Transform) -> Image:
    """One unit vector a voxel whose sign means nothing (a principal direction), on another grid and turned.

    What is interpolated are the products ``v vᵀ``, which do not know the sign; the axis is the first of their mean.
    """
    x, y, z = axes.values.unbind(0)
    products = torch.stack([x * x, x * y, x * z, y * y, y * z, z * z])

    def turn(values: Tensor, forward: Tensor) -> Tensor:
        towards = torch.zeros_like(values[:, :3])
        found, anisotropy = principal_axis.principal_axis(values.mT, towards.mT)
        return reorient_tensor.turn(torch.where(anisotropy[:, None] > 1e-3, found.mT, towards), forward)

    return Image(grid, _carried(Image(axes.grid, products), grid, transform, turn, n_out=3))


def jacobian(transform: Transform, grid: ImageGrid, dtype: torch.dtype = torch.float64) -> Float[Tensor, "i j k 3 3"]:
    """``∂T/∂x`` at every voxel centre of a grid of the source space, by central differences over two voxels."""
    return torch.cat([linear for _, _, linear in _slabs(transform, grid, dtype, "cpu")])


def _carried(
    image: Image,
    grid: ImageGrid,
    transform: Transform,
    turn: _Turn,
    *,
    mode: interpolate.Interpolation = "linear",
    n_out: int | None = None,
) -> Float[Tensor, "c i j k"]:
    """Every voxel of the grid that meets the image: its values interpolated, then turned. In slabs, so memory is bounded."""
    if transform.source != grid.space or transform.target != image.grid.space:
        raise SpaceMismatchError(
            f"Carrying a field of {image.grid.space!r} onto a grid of {grid.space!r} needs a transform "
            f"{grid.space!r} → {image.grid.space!r}; got {transform.source!r} → {transform.target!r}."
        )
    values = image.values if image.values.is_floating_point() else image.values.to(torch.float32)
    out = values.new_zeros(n_out or values.shape[0], *grid.shape)
    is_linear = _is_linear(transform)
    for rows, positions, linear in _slabs(transform, grid, values.dtype, values.device):
        sampled = interpolate.sample(values, image.grid.to_voxel(positions), mode)
        present = (sampled.detach() != 0).any(-1)
        forward = torch.linalg.inv(linear[:1, 0, 0] if is_linear else linear[present])
        if not bool(present.any()):
            continue
        turned = turn(sampled[present], forward)
        slab = turned.new_zeros(*present.shape, turned.shape[-1])
        out[:, rows] = slab.index_put((present,), turned).movedim(-1, 0)
    return out


def _slabs(
    transform: Transform, grid: ImageGrid, dtype: torch.dtype, device: torch.device | str
) -> Iterator[tuple[slice, Float[Tensor, "r j k 3"], Float[Tensor, "r j k 3 3"]]]:
    """Rows of the first axis, where their voxels go, and the Jacobian there; one voxel more all around is mapped for it."""
    height = max(1, _SLAB_VOXELS // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], height):
        stop = min(start + height, grid.shape[0])
        affine = grid.affine.clone()
        affine[:3, 3] = grid.to_world(torch.tensor([start - 1.0, -1.0, -1.0], dtype=torch.float64))
        wider = ImageGrid((stop - start + 2, grid.shape[1] + 2, grid.shape[2] + 2), affine, grid.space)
        positions = transform.map(wider.centres(dtype, device))
        yield slice(start, stop), positions[1:-1, 1:-1, 1:-1], finite_difference.map_jacobian(positions, grid.affine)


def _is_linear(transform: Transform) -> bool:
    """Whether its Jacobian is the same everywhere."""
    if isinstance(transform, Chain):
        return all(_is_linear(part) for part in transform.parts)
    return isinstance(transform, Affine)
