"""Whole heads with exact labels, painted as T1w, T2w, b=0 and diffusion-weighted images: truth for masks and tissues.

Part of ``segmentation.py``. Bone is dark and fat bright or suppressed, as scanners have it; voxels mix what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tractode.fields import Image, ImageGrid
from tractode.io.nifti import read_image
from tractode.ops import smooth
from tractode.preprocess import five_tissue
from tractode.simulate import painting

# Mean intensity by contrast: white, grey, deep grey, fluid, compact bone, marrow, eyes, skin, soft tissue, and the rest.
_PARTS: dict[str, tuple[int, ...]] = {
    "white": (2, 7, 16, 28, 60, 77, 85),
    "grey": (3, 8, 17, 18, 26),
    "deep": (10, 11, 12, 13),
    "fluid": (4, 5, 14, 15, 24, 31, 72, 30, 62, 163, 136),
    "bone": (515,),
    "marrow": (516,),
    "eyes": (506, 508),
    "skin": (511,),
    "soft": (507, 509),
    "air": (0,),
}
CONTRASTS: dict[str, dict[str, float]] = {
    "T1w": {"white": 0.95, "grey": 0.65, "deep": 0.75, "fluid": 0.22, "bone": 0.05, "marrow": 0.75, "eyes": 0.2, "skin": 0.85, "soft": 0.5},
    "T2w": {"white": 0.35, "grey": 0.55, "deep": 0.45, "fluid": 1.0, "bone": 0.03, "marrow": 0.35, "eyes": 0.95, "skin": 0.5, "soft": 0.25},
    "b0": {"white": 0.4, "grey": 0.55, "deep": 0.42, "fluid": 1.0, "bone": 0.02, "marrow": 0.08, "eyes": 0.9, "skin": 0.12, "soft": 0.15},
    "b0 with fat": {"white": 0.4, "grey": 0.55, "deep": 0.42, "fluid": 1.0, "bone": 0.02, "marrow": 0.4, "eyes": 0.9, "skin": 0.8, "soft": 0.35},
    "b0 of an infant": {"white": 0.75, "grey": 0.55, "deep": 0.5, "fluid": 1.0, "bone": 0.05, "marrow": 0.1, "eyes": 0.9, "skin": 0.15, "soft": 0.18},
    "b1000": {"white": 0.22, "grey": 0.22, "deep": 0.2, "fluid": 0.05, "bone": 0.01, "marrow": 0.03, "eyes": 0.04, "skin": 0.05, "soft": 0.06},
    "b1000 with fat": {"white": 0.22, "grey": 0.22, "deep": 0.2, "fluid": 0.05, "bone": 0.01, "marrow": 0.35, "eyes": 0.04, "skin": 0.7, "soft": 0.15},
}  # fmt: skip
CONTRASTS["b1000 of an infant"] = CONTRASTS["b1000"] | {"white": 0.2, "grey": 0.24}


@dataclass(frozen=True, eq=False)
class Head:
    """A painted image, and the fractions of grey matter, white matter and fluid that it was made of."""

    image: Image
    tissues: Tensor

    @property
    def brain(self) -> Tensor:
        """Grey and white matter and the fluid in and around them, as the label map has it."""
        return self.tissues.sum(0) > 0.5

    @property
    def labels(self) -> Tensor:
        return (self.tissues.argmax(0) + 1) * self.brain


def files(data: Path) -> list[Path]:
    return sorted((data / "labelmaps").glob("*_dseg.nii.gz"))


def head(path: Path, contrast: str, seed: int, *, voxel: int = 2, size: float = 1.0, noise: float = 0.03) -> Head:
    """A head painted at 1 mm and averaged over ``voxel`` mm; ``size`` < 1 makes it that of a child.

    Shading (a factor of about 0.6 to 1.6) and noise are drawn from ``seed``; noise is that of a magnitude.
    """
    grid, numbers, codes, fractions = _painted_with(path, voxel)
    generator = torch.Generator().manual_seed(seed)
    levels = CONTRASTS[contrast]
    of = {code: levels.get(part, 0.0) for part, members in _PARTS.items() for code in members}
    mean = torch.tensor([of.get(int(code), 0.5 * levels["soft"] + 0.5 * levels["bone"]) for code in codes])
    texture = 0.03 * torch.randn(grid.shape, generator=generator)
    clean = functional.avg_pool3d((mean[numbers] * (1 + texture))[None, None], voxel)[0]
    knots = torch.randn(1, 1, 3, 3, 3, generator=generator)
    shading = functional.interpolate(knots, size=clean.shape[1:], mode="trilinear", align_corners=True)[0]
    lit = clean * torch.exp(0.2 * shading)
    parts = (noise * torch.randn(lit.shape, generator=generator) for _ in range(2))
    seen = (lit + next(parts)).hypot(next(parts)) * 1000
    return Head(Image(_grid(grid, voxel, size), seen), fractions)


@lru_cache(maxsize=1)
def _painted_with(path: Path, voxel: int) -> tuple[ImageGrid, Tensor, Tensor, Tensor]:
    """Grid, labels counted on from 0, their codes; fractions of grey matter, white matter and fluid in the large voxels.

    Air around the head is left out but for some voxels: no scanner's field of view is twice the head.
    """
    labels = read_image(path, path.name.split("_")[0])[0]
    spans = [(int(along.min()), int(along.max()) + 1) for along in (labels.values[0] > 0).nonzero().T]
    air = 5 * voxel
    low = [max(0, first - air) // voxel * voxel for first, _ in spans]
    size = [
        (min(n, last + air) - first) // voxel * voxel
        for (_, last), first, n in zip(spans, low, labels.grid.shape, strict=True)
    ]
    inside = labels.values[:, *(slice(first, first + n) for first, n in zip(low, size, strict=True))].contiguous()
    affine = labels.grid.affine.clone()
    affine[:3, 3] += affine[:3, :3] @ torch.tensor(low, dtype=affine.dtype)
    grid = ImageGrid((size[0], size[1], size[2]), affine, labels.grid.space)
    numbers, codes = painting.compact(inside[0].long())
    known = five_tissue.from_labels(Image(grid, inside)).values
    tissues = torch.stack((known[0] + known[1], known[2], known[3]))
    return grid, numbers, codes, functional.avg_pool3d(tissues[None], voxel)[0]


def diffusion(path: Path, contrast: str, seed: int, **options: float) -> tuple[Head, Image]:
    """A b=0 image and the diffusion-weighted one beside it, smoothed as an EPI's point spread does."""
    b0 = head(path, contrast, seed, **options)  # type: ignore[arg-type]
    weighted = head(path, contrast.replace("b0", "b1000"), seed, **options)  # type: ignore[arg-type]
    soft = [Image(one.image.grid, smooth.gaussian(one.image.values, (0.5, 0.5, 0.5))) for one in (b0, weighted)]
    return Head(soft[0], b0.tissues), soft[1]


def slab(one: Head, weighted: Image, first: float, last: float) -> tuple[Head, Image]:
    """Part of a head: slices across the body's axis, as shares of its extent."""
    axis = int(one.image.grid.affine[2, :3].abs().argmax())
    n = one.image.grid.shape[axis]
    low, high = int(first * n), int(last * n)
    grid = one.image.grid
    affine = grid.affine.clone()
    affine[:3, 3] += affine[:3, axis] * low
    shape = list(grid.shape)
    shape[axis] = high - low
    part = ImageGrid((shape[0], shape[1], shape[2]), affine, grid.space)
    cut = [t.narrow(axis + 1, low, high - low) for t in (one.image.values, one.tissues, weighted.values)]
    return Head(Image(part, cut[0].contiguous()), cut[1].contiguous()), Image(part, cut[2].contiguous())


def _grid(fine: ImageGrid, voxel: int, size: float) -> ImageGrid:
    """The averaged voxels' grid; ``size`` shrinks the world about the head's middle."""
    affine = fine.affine.clone()
    affine[:3, 3] += fine.affine[:3, :3].sum(1) * (voxel - 1) / 2
    affine[:3, :3] *= voxel
    shape = tuple(n // voxel for n in fine.shape)
    scale = torch.diag(torch.tensor([size, size, size, 1.0], dtype=torch.float64))
    return ImageGrid((shape[0], shape[1], shape[2]), scale @ affine, fine.space)
