"""Separable smoothing, dilation and reduction of grids."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def reach(sigma: float) -> int:
    """How many voxels a Gaussian of ``sigma`` voxels reaches to either side."""
    return max(1, math.ceil(3 * sigma))


def gaussian_kernel(sigma: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " t"]:
    """A Gaussian of ``sigma`` voxels, cut at 3 sigma, of sum 1."""
    radius = reach(sigma)
    x = torch.arange(-radius, radius + 1, dtype=dtype, device=device)
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    return weights / weights.sum()


def convolve(
    values: Float[Tensor, "c i j k"], kernel: Float[Tensor, " t"], axis: int, border: str = "replicate"
) -> Float[Tensor, "c i j k"]:
    """Convolution with a symmetric odd kernel along one spatial axis (0, 1 or 2).

    ``border`` is ``replicate`` (the edge goes on) or ``zero``.
    """
    radius, n = len(kernel) // 2, values.shape[axis + 1]
    padding = [0] * 6
    padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
    mode = "replicate" if border == "replicate" else "constant"
    padded = functional.pad(values[None], padding, mode=mode)[0]
    # A sum of shifted copies: on a CPU ten times as fast as a one-channel convolution layer.
    weights = kernel.tolist()
    out = weights[radius] * padded.narrow(axis + 1, radius, n)
    for t in range(1, radius + 1):
        pair = padded.narrow(axis + 1, radius - t, n) + padded.narrow(axis + 1, radius + t, n)
        out = out.add_(pair, alpha=weights[radius + t])
    return out


def gaussian(
    values: Float[Tensor, "c i j k"], sigma_vox: tuple[float, float, float], border: str = "replicate"
) -> Float[Tensor, "c i j k"]:
    """Gaussian smoothing with one sigma per axis, in voxels; 0 leaves an axis alone."""
    for axis, sigma in enumerate(sigma_vox):
        if sigma > 0 and values.shape[axis + 1] > 1:
            values = convolve(values, gaussian_kernel(sigma, values.dtype, values.device), axis, border)
    return values


def box(values: Float[Tensor, "c i j k"], radius: int) -> Float[Tensor, "c i j k"]:
    """Mean over cubes of ``2 radius + 1`` voxels; the edge is repeated."""
    if radius == 0:
        return values
    kernel = torch.full((2 * radius + 1,), 1 / (2 * radius + 1), dtype=values.dtype, device=values.device)
    for axis in range(3):
        values = convolve(values, kernel, axis)
    return values


def dilate(mask: Bool[Tensor, "i j k"], radius_vox: tuple[int, int, int]) -> Bool[Tensor, "i j k"]:
    """Every voxel within a box of the given radii of the mask."""
    r = radius_vox
    grown = mask[None, None].to(torch.float32)
    # One axis after the other: the maximum over a box is the maximum of maxima along lines.
    for axis in range(3):
        size = [1, 1, 1]
        size[axis] = 2 * r[axis] + 1
        padding = [n // 2 for n in size]
        grown = functional.max_pool3d(grown, size, stride=1, padding=padding)
    return grown[0, 0] > 0.5


def reduce(
    values: Float[Tensor, "c i j k"], affine: Float[Tensor, "4 4"], voxel_size: float
) -> tuple[Float[Tensor, "c r s t"], Float[Tensor, "4 4"]]:
    """Smoothed and thinned out to voxels of about ``voxel_size`` mm (never finer); returns values and affine.

    Thinning keeps every n-th voxel, so the first voxel's centre stays where it is. The Gaussian's full width at half
    maximum is the new voxel size: an axis that is already that coarse is left alone.
    """
    sizes = affine[:3, :3].norm(dim=0).tolist()
    strides = [max(1, int(voxel_size / size + 1e-3)) for size in sizes]
    strides = [min(stride, max(1, n // 4)) for stride, n in zip(strides, values.shape[1:], strict=True)]
    wanted = voxel_size / 2.355
    sigma = [wanted / size if size < 0.9 * voxel_size else 0.0 for size in sizes]
    smooth = gaussian(values, (sigma[0], sigma[1], sigma[2]))[:, :: strides[0], :: strides[1], :: strides[2]]
    coarse = affine.clone()
    coarse[:3, :3] = affine[:3, :3] * torch.tensor(strides, dtype=affine.dtype, device=affine.device)
    return smooth.contiguous(), coarse
