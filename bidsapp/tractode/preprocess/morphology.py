"""Morphology of masks in millimetres: depth, distance, the largest part, holes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

Mask = Bool[np.ndarray, "i j k"]
Sizes = tuple[float, float, float]


def eroded(mask: Mask, depth: float, spacing: Sizes) -> Mask:
    """Voxels deeper than ``depth`` mm; beyond the edge of the image the mask is thought to go on as it ends."""
    width = [int(np.ceil(depth / size)) + 1 for size in spacing]
    padded = np.pad(mask, [(w, w) for w in width], mode="edge")
    inner = tuple(slice(w, -w) for w in width)
    return (ndimage.distance_transform_edt(padded, sampling=spacing) > depth)[inner]


def within(mask: Mask, distance: float, spacing: Sizes) -> Mask:
    """Voxels of the mask, and those not farther than ``distance`` mm from one."""
    if not mask.any():
        return mask
    return ndimage.distance_transform_edt(~mask, sampling=spacing) <= distance


def largest(mask: Mask) -> Mask:
    """The largest connected part."""
    labels, n = ndimage.label(mask)
    if n == 0:
        return mask
    return labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())


def filled(mask: Mask) -> Mask:
    """Holes filled in 3-D and in every slice of every axis (ventricles of a slab open at its faces)."""
    whole = ndimage.binary_fill_holes(mask)
    for axis in range(3):
        for index in range(whole.shape[axis]):
            plane = (slice(None),) * axis + (index,)
            whole[plane] = ndimage.binary_fill_holes(whole[plane])
    return whole


def detached(mask: Mask, depth: float, regrowth: float, spacing: Sizes) -> Mask:
    """The largest part after an erosion by ``depth`` mm, grown back by ``regrowth`` mm inside the mask: what hangs on by a thread falls off."""
    core = largest(eroded(mask, depth, spacing))
    return within(core, regrowth, spacing) & mask if core.any() else largest(mask)


def millilitres(mask: Mask, spacing: Sizes) -> float:
    return float(mask.sum()) * float(np.prod(spacing)) / 1000
