"""Pairs of images to register, with their truth: simulated ones, three people's scans with labels, and painted label maps.

Every pair comes as two brains on their grids with masks and labels; simulated pairs also carry the true displacement. No
method sees more of a pair than the two images.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from tractode.fields import Flow, Image, ImageGrid, VelocityField
from tractode.fields.transform import Displacement, Transform, resample
from tractode.io.builtin_template import load_builtin
from tractode.io.nifti import read_image
from tractode.ops import smooth
from tractode.registration.affine import register_affine
from tractode.simulate import painting


@dataclass(frozen=True, eq=False)
class Pair:
    """``truth`` maps points of the fixed space to the moving one, where it is known."""

    name: str
    fixed: Image
    moving: Image
    fixed_mask: Image
    moving_mask: Image
    fixed_labels: Image
    moving_labels: Image
    truth: Transform | None = None


# --- simulated: the template's tissues under a known flow, painted as T1w and T2w -----------------------------------

T1W, T2W = (0.25, 0.62, 0.95), (1.0, 0.52, 0.33)  # CSF, grey, white
LEVELS = ((6.0, 22.0), (5.0, 14.0), (8.0, 26.0), (4.0, 12.0), (7.0, 18.0))  # root mean square (mm), correlation (mm)


def simulated(number: int, resolution: float = 2.0) -> Pair:
    """T1w → T2w: a random smooth flow (mean up to a centimetre), noise of 2 % and a bias field of 5 % in each image."""
    generator = torch.Generator().manual_seed(100 + number)
    fine = min(resolution, 1.0)
    maps = torch.cat([load_builtin(name, fine).values for name in ("GM", "WM", "mask")]).float()
    grid = load_builtin("T1w", fine).grid
    mask, white = maps[2], maps[1].clamp(0, 1)
    grey = torch.minimum(maps[0].clamp(0, 1), 1 - white)
    tissues = torch.stack([(1 - grey - white).clamp_min(0) * mask, grey, white, mask])
    size, width = LEVELS[number % len(LEVELS)]
    truth = Flow(_random_velocity(grid.renamed("fixed"), size, width, generator), "fixed", "moving")
    fixed_grid = grid.renamed("fixed").resampled(resolution)
    moving_grid = grid.renamed("moving").resampled(resolution)
    sigma = (max(resolution**2 - fine**2, 0) / 12) ** 0.5 / fine
    blurred = Image(grid.renamed("fixed"), smooth.gaussian(tissues, (sigma,) * 3) if sigma else tissues)
    here = blurred.sample(fixed_grid.centres()).movedim(-1, 0)
    there = blurred.sample(truth.inverse().map(moving_grid.centres())).movedim(-1, 0)
    fixed, fixed_mask, fixed_labels = _painted(here, T1W, fixed_grid, generator)
    moving, moving_mask, moving_labels = _painted(there, T2W, moving_grid, generator)
    return Pair(f"simulated-{number:02d}", fixed, moving, fixed_mask, moving_mask, fixed_labels, moving_labels, truth)


def _random_velocity(grid: ImageGrid, size: float, width: float, generator: torch.Generator) -> VelocityField:
    """White noise smoothed to ``width``, of root-mean-square length ``size``, on nodes 5 mm apart, 0 at the border."""
    nodes = grid.resampled(5.0)
    noise = torch.randn(3, *nodes.shape, generator=generator)
    field = smooth.gaussian(noise, (width / 5.0,) * 3)
    field = field / field.square().sum(0).mean().sqrt() * size
    for axis, n in enumerate(nodes.shape):
        index = torch.arange(n, dtype=torch.float32)
        ramp = (torch.minimum(index, n - 1 - index) / 3).clamp(max=1)
        field = field * ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    return VelocityField(nodes, field[None].contiguous())


def _painted(
    tissues: Tensor, contrast: tuple[float, float, float], grid: ImageGrid, generator: torch.Generator
) -> tuple[Image, Image, Image]:
    """The image (noise and bias in it), its brain mask, and its labels: 1 CSF, 2 grey, 3 white."""
    mask = tissues[3] > 0.5
    ideal = sum(level * part for level, part in zip(contrast, tissues[:3], strict=True))
    assert isinstance(ideal, Tensor)
    bias = smooth.gaussian(torch.randn(1, *grid.shape, generator=generator), (40 / grid.voxel_sizes[0],) * 3)[0]
    bias = torch.exp(0.05 * bias / bias.std().clamp_min(1e-6))
    noisy = (ideal * bias + 0.02 * torch.randn(grid.shape, generator=generator)).clamp_min(0) * mask
    labels = (tissues[:3].argmax(0) + 1) * mask
    return Image(grid, noisy[None]), Image(grid, mask[None]), Image(grid, labels[None].to(torch.int16))


# --- three people, T1w with aseg ------------------------------------------------------------------------------------


def anat_labels(data: Path, resolution: float = 2.0) -> Iterator[Pair]:
    """All ordered pairs of the three people; brains by the dilated aseg, which every method gets alike."""
    people = {}
    for folder in sorted((data / "anat_labels").glob("sub-*")):
        name = folder.name.removeprefix("sub-")
        labels = read_image(folder / "anat" / f"{folder.name}_desc-aseg_dseg.nii.gz", name)[0]
        image = read_image(folder / "anat" / f"{folder.name}_T1w.nii.gz", name)[0]
        people[name] = _reduced(image, labels, resolution, lambda values: smooth.dilate(values > 0, (2, 2, 2)))
    for one, other in itertools.permutations(people, 2):
        yield _aligned(f"anat-{other}-to-{one}", people[one], people[other])


def _reduced(
    image: Image, labels: Image, resolution: float, brain: Callable[[Tensor], Tensor]
) -> tuple[Image, Image, Image]:
    """Image × mask and mask at the working resolution; labels stay as fine as they are, for the scores."""
    mask = Image(labels.grid, brain(labels.values[0])[None])
    crop = _around(mask)
    grid = crop.resampled(resolution)
    sigma = (max(resolution**2 - image.grid.voxel_sizes[0] ** 2, 0) / 12) ** 0.5 / image.grid.voxel_sizes[0]
    values = image.values.float()
    soft = Image(image.grid, smooth.gaussian(values, (sigma,) * 3) if sigma else values)
    points = grid.centres()
    small_mask = Image(mask.grid, mask.values.float()).sample(points)[..., 0] > 0.5
    small = soft.sample(points)[..., 0].clamp_min(0) * small_mask
    return Image(grid, small[None]), Image(grid, small_mask[None]), _cropped(labels, crop)


def _around(mask: Image, margin: int = 6) -> ImageGrid:
    found = mask.mask.nonzero()
    low = (found.amin(0) - margin).clamp_min(0)
    high = torch.minimum(found.amax(0) + margin, torch.tensor(mask.grid.shape) - 1)
    affine = mask.grid.affine.clone()
    affine[:3, 3] = mask.grid.to_world(low.double())
    size = (high - low + 1).tolist()
    return ImageGrid((size[0], size[1], size[2]), affine, mask.grid.space)


def _cropped(labels: Image, grid: ImageGrid) -> Image:
    low = labels.grid.to_voxel(grid.affine[:3, 3]).round().int().tolist()
    window = [slice(start, start + n) for start, n in zip(low, grid.shape, strict=True)]
    return Image(grid, labels.values[:, window[0], window[1], window[2]].to(torch.int16))


def onto_template(data: Path, resolution: float) -> dict[str, Pair]:
    """The first of the three people's T1w and the built-in template, as they lie and after our affine."""
    folder = sorted((data / "anat_labels").glob("sub-*"))[0]
    labels = read_image(folder / "anat" / f"{folder.name}_desc-aseg_dseg.nii.gz", "moving")[0]
    image = read_image(folder / "anat" / f"{folder.name}_T1w.nii.gz", "moving")[0]
    moving = _reduced(image, labels, resolution, lambda values: smooth.dilate(values > 0, (2, 2, 2)))
    template, mask = (load_builtin(name, resolution) for name in ("T1w", "mask"))
    grid = template.grid.renamed("fixed")
    brain = Image(grid, (mask.values > 0.5).to(torch.int16))
    fixed = (Image(grid, template.values.float() * brain.values), brain, brain)
    raw = Pair("raw", fixed[0], moving[0], fixed[1], moving[1], fixed[2], moving[2])
    return {"raw": raw, "aligned": _aligned("aligned", fixed, moving)}


def _aligned(name: str, fixed: tuple[Image, Image, Image], moving: tuple[Image, Image, Image]) -> Pair:
    """After one affine (ours, of the default search) that all methods are given: one grid, as ConvexAdam needs it."""
    affine = register_affine(fixed[0], moving[0], fixed_mask=fixed[1])
    grid, fine = fixed[0].grid, fixed[2].grid
    return Pair(
        name,
        fixed[0],
        _renamed(resample(moving[0], grid, affine)),
        fixed[1],
        _renamed(resample(moving[1], grid, affine, "nearest")),
        fixed[2],
        _renamed(resample(moving[2], fine, affine, "nearest")),
    )


def _renamed(image: Image) -> Image:
    return Image(image.grid.renamed("moving"), image.values)


# --- six heads' label maps, painted --------------------------------------------------------------------------------

# FreeSurfer's labels inside the brain; everything else is left out of the images, as a brain extraction would.
_BRAIN: tuple[int, ...] = (2, 41, 7, 46, 16, 28, 60, 85, 77, 251, 252, 253, 254, 255)
_BRAIN += (3, 42, 8, 47, 17, 18, 53, 54, 26, 58, 10, 49, 11, 50, 12, 51, 13, 52, 4, 5, 14, 15, 43, 44, 24, 31, 63, 72)


def labelmaps(data: Path, resolution: float = 2.0) -> Iterator[Pair]:
    """Each head painted as T1w; the next one onto it as T2w, the next but one as FLAIR. Labels are exact."""
    files = sorted((data / "labelmaps").glob("*_dseg.nii.gz"))
    for step, contrast in ((1, "T2w"), (2, "FLAIR")):
        for number, path in enumerate(files):
            other = (number + step) % len(files)
            fixed = _painted_head(path, "T1w", 500 + number, resolution)
            moving = _painted_head(files[other], contrast, 500 + 10 * step + other, resolution)
            yield _aligned(f"labelmaps-{_head(files[other])}-{contrast}-to-{_head(path)}-T1w", fixed, moving)


def _head(path: Path) -> str:
    return path.name.split("_")[0].removeprefix("sub-")


def _painted_head(path: Path, contrast: str, seed: int, resolution: float) -> tuple[Image, Image, Image]:
    """Painted at the label map's own resolution, with texture, shading and noise of its own; then as any scan."""
    labels = read_image(path, _head(path))[0]
    numbers, codes = painting.compact(labels.values[0].to(torch.int64))
    image = painting.paint(
        numbers, painting.known_palette(codes, contrast), torch.Generator().manual_seed(seed), factor=1
    )
    inside = torch.isin(labels.values, torch.tensor(_BRAIN, dtype=labels.values.dtype))
    brain = Image(labels.grid, labels.values * inside)
    return _reduced(Image(labels.grid, image), brain, resolution, lambda values: _closed(values > 0))


def _closed(mask: Tensor) -> Tensor:
    return ~smooth.dilate(~smooth.dilate(mask, (2, 2, 2)), (1, 1, 1))


# --- kept in files ---------------------------------------------------------------------------------------------------

_WHOLE = {"anat_labels": 6, "labelmaps": 10}
_PARTS = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_labels", "moving_labels")


def made(kind: str, data: Path, resolution: float, work: Path, count: int) -> list[Path]:
    """The folders in ``work`` of the first ``count`` pairs of a set; they are made where they are not whole yet."""
    count = min(count, _WHOLE.get(kind, count))
    folder = work / f"{kind}-{resolution}"
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "pairs.txt"
    names = index.read_text(encoding="utf-8").split() if index.is_file() else []
    if len(names) < count:
        source = {
            "simulated": lambda: (simulated(n, resolution) for n in itertools.count()),
            "anat_labels": lambda: anat_labels(data, resolution),
            "labelmaps": lambda: labelmaps(data, resolution),
        }[kind]()
        names = []
        for pair in itertools.islice(source, count):
            store(pair, folder / pair.name)
            names.append(pair.name)
        index.write_text("\n".join(names), encoding="utf-8")
    return [folder / name for name in names[:count]]


def store(pair: Pair, folder: Path) -> None:
    """Images, masks and labels as NIfTI; the truth as displacements (mm) of the fixed image's voxels."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        image = getattr(pair, part)
        values = image.values[0].numpy().astype(np.int16 if part.endswith("labels") else np.float32)
        nibabel.save(nibabel.Nifti1Image(values, image.grid.affine.numpy()), folder / f"{part}.nii.gz")
    if pair.truth is not None:
        points = pair.fixed.grid.centres()
        np.save(folder / "truth.npy", (pair.truth.map(points) - points).movedim(-1, 0).numpy())


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder of one run's own, with links to what a method may see."""
    with tempfile.TemporaryDirectory() as name:
        for part in _PARTS[:4]:
            (Path(name) / f"{part}.nii.gz").symlink_to((folder / f"{part}.nii.gz").resolve())
        yield Path(name)


def load(folder: Path) -> Pair:
    """A stored pair, its spaces called fixed and moving."""
    images = {part: read_image(folder / f"{part}.nii.gz", part.split("_")[0])[0] for part in _PARTS}
    truth = None
    if (folder / "truth.npy").is_file():
        values = torch.from_numpy(np.load(folder / "truth.npy"))
        truth = Displacement(images["fixed"].grid, values, "fixed", "moving")
    return Pair(folder.name, truth=truth, **images)


def compact(text: str) -> str:
    """JSON with lists and objects of plain values on one line."""
    return re.sub(r"([\[{])([^\[\]{}]*)([\]}])", lambda m: m[1] + " ".join(m[2].split()) + m[3], text)


# --- scores ---------------------------------------------------------------------------------------------------------


def moved_labels(pair: Pair, points: Tensor) -> Image:
    """The moving labels at mapped centres of the fixed labels' grid."""
    values = pair.moving_labels.sample(points, mode="nearest")[..., 0]
    return Image(pair.fixed_labels.grid, values[None].round().to(torch.int16))


def dice(first: Tensor, second: Tensor) -> dict[int, float]:
    """Dice of every label that both images have."""
    first, second = first.flatten().long(), second.flatten().long()
    top = int(max(first.max(), second.max())) + 1
    both = torch.bincount(first[first == second], minlength=top)
    one, other = torch.bincount(first, minlength=top), torch.bincount(second, minlength=top)
    return {c: float(2 * both[c] / (one[c] + other[c])) for c in range(1, top) if one[c] > 0 and other[c] > 0}


__all__ = [
    "Pair",
    "anat_labels",
    "compact",
    "dice",
    "labelmaps",
    "load",
    "made",
    "moved_labels",
    "onto_template",
    "scratch",
    "simulated",
    "store",
]
