"""Seeding mechanisms against tckgen's, for `tracking_fidelity.py`: entries of its result file under ``interface`` and ``dynamic``.

``interface``: points of ``-seed_gmwmi`` (within ``5tt2gmwmi``'s image, ``-algorithm Seedtest``: nothing is tracked) and
of `InterfaceSeeding`, counted in cubes of `CUBE_MM`. ``chi2`` is the two-sample statistic over its degrees of freedom, 1
where two sets follow one density; ``correlation`` that of the counts, to be read beside one program's own two runs.
``from_area`` is how far a program's density is from the interface's area (root mean square of the relative difference of
a cube's count, counting noise taken off); the area is the integral of δ(g)|∇g| of g = grey − white matter, by random points.

``dynamic``: SD_STREAM's lines from ``-seed_dynamic`` and `DynamicSeeding`, and from a mask. ``misfit`` is
``Σ(μD − F)² / ΣF²`` over fixels of fibre density F and streamline density D (our fixels for all), ``correlation`` that of D and F.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tracking_subjects import call

from tractode.fields import Image, ShField, Streamlines
from tractode.io.nifti import read_image
from tractode.io.tractogram import read_tractogram
from tractode.tracking.dynamic_seeding import DynamicSeeding
from tractode.tracking.fibre_density import DensityModel
from tractode.tracking.fixels import Fixels, fixels_of
from tractode.tracking.interface_seeding import InterfaceSeeding
from tractode.tracking.propagate import track_until
from tractode.tracking.sdstream import SDStream
from tractode.tracking.seeding import MaskSeeding, Seeding
from tractode.tracking.seeds import seeds_in_mask
from tractode.tracking.tissues import TissueMaps

RANDOM_SEEDS = (1, 1001)  # tckgen's n-th thread takes its random seed plus n
CUBE_MM = 6.0
SHELL = 0.1  # of |g|: how near the interface random points count towards its area
N_AREA = 2_000_000
Counts = np.ndarray


def interface(fod: Path, tissues: Path, folder: Path, n: int) -> dict[str, Any]:
    """``n`` points a run, two runs a program."""
    call("5tt2gmwmi", tissues, folder / "gmwmi.nii", "-force", "-quiet")
    maps = TissueMaps(read_image(tissues, "dwi")[0])
    seeding = InterfaceSeeding(maps)
    ours = [seeding.draw(n, torch.Generator().manual_seed(s), 0).points for s in RANDOM_SEEDS]
    theirs = [_gmwmi(fod, tissues, folder, n, s) for s in RANDOM_SEEDS]
    area = _area(maps)
    return {
        "n": n,
        "ours": _alike(_counts(ours[0]), _counts(theirs[0])),
        "tckgen_itself": _alike(_counts(theirs[1]), _counts(theirs[0])),
        "ours_itself": _alike(_counts(ours[1]), _counts(ours[0])),
        "from_area": {"ours": _off(_counts(ours[0]), area), "tckgen": _off(_counts(theirs[0]), area)},
        "cube_mm": CUBE_MM,
    }


def _gmwmi(fod: Path, tissues: Path, folder: Path, n: int, random_seed: int) -> torch.Tensor:
    call("tckgen", fod, folder / "seeds.tck", "-algorithm", "Seedtest", "-act", tissues, "-seed_gmwmi", folder / "gmwmi.nii",
         "-select", n, "-nthreads", 0, "-force", "-quiet", environment={"MRTRIX_RNG_SEED": str(random_seed)})  # fmt: skip
    return read_tractogram(folder / "seeds.tck", "dwi")[0].points


def _cubes(points: torch.Tensor) -> np.ndarray:
    """The number of each point's cube; 128 cubes along each axis about the origin."""
    index = np.floor(points.double().numpy() / CUBE_MM).astype(np.int64) + 64
    return np.ravel_multi_index(tuple(index.T), (128, 128, 128), mode="clip")


def _counts(points: torch.Tensor, weights: np.ndarray | None = None) -> Counts:
    return np.bincount(_cubes(points), weights=weights, minlength=128**3).astype(float)


def _area(maps: TissueMaps) -> Counts:
    """The interface's area in each cube, up to a factor."""
    near = maps.interface_voxels()
    wide = Image(near.grid, torch.nn.functional.max_pool3d(near.mask[None, None].float(), 3, 1, 1)[0] > 0)
    total, generator = np.zeros(128**3), torch.Generator().manual_seed(0)
    for _ in range(N_AREA // 50_000):
        points = seeds_in_mask(wide, 50_000, generator)
        at, slope = maps.at(points), maps.slope(points.double()).norm(dim=1)
        is_seed = at.is_valid & ~at.is_csf & ~at.is_pathological & (at.white > 0) & (at.excess.abs() < SHELL)
        total += _counts(points, torch.where(is_seed, slope, 0.0).numpy())
    return total


def _alike(first: Counts, second: Counts) -> dict[str, float]:
    seen = first + second > 0
    a, b = first[seen], second[seen]
    up, down = np.sqrt(b.sum() / a.sum()), np.sqrt(a.sum() / b.sum())
    chi2 = float((np.square(up * a - down * b) / (a + b)).sum()) / (int(seen.sum()) - 1)
    return {"chi2": chi2, "correlation": float(np.corrcoef(a, b)[0, 1]), "cubes": int(seen.sum())}


def _off(counts: Counts, area: Counts) -> float:
    expected = area * counts.sum() / area.sum()
    seen = expected >= 5
    a, e = counts[seen], expected[seen]
    return float(np.sqrt(max(0.0, (np.square(a - e) - e).sum() / np.square(e).sum())))


def dynamic(fod: Path, mask: Path, folder: Path, n: int) -> dict[str, Any]:
    """``n`` lines of each, at default settings."""
    image, _ = read_image(fod, "dwi")
    field = ShField(image.grid, image.values.float(), 8)
    inside, _ = read_image(mask, "dwi")
    inside = Image(inside.grid, inside.values > 0.5)
    fixels = fixels_of(field, inside)

    def ours(seeding: Seeding, random_seed: int) -> Streamlines:
        parts = track_until(SDStream(), field, inside, seeding, n, torch.Generator().manual_seed(random_seed))
        return Streamlines.concatenate(list(parts), "dwi")

    def theirs(random_seed: int, *options: object) -> Streamlines:
        call("tckgen", fod, folder / "dynamic.tck", "-algorithm", "SD_STREAM", *options, "-mask", mask, "-select", n,
             "-nthreads", 0, "-force", "-quiet", environment={"MRTRIX_RNG_SEED": str(random_seed)})  # fmt: skip
        return read_tractogram(folder / "dynamic.tck", "dwi")[0]

    sets: dict[str, Callable[[], Streamlines]] = {
        "ours": lambda: ours(DynamicSeeding(field, inside), RANDOM_SEEDS[0]),
        "ours_again": lambda: ours(DynamicSeeding(field, inside), RANDOM_SEEDS[1]),
        "tckgen": lambda: theirs(RANDOM_SEEDS[0], "-seed_dynamic", fod),
        "tckgen_again": lambda: theirs(RANDOM_SEEDS[1], "-seed_dynamic", fod),
        "ours_from_mask": lambda: ours(MaskSeeding(inside), RANDOM_SEEDS[0]),
        "tckgen_from_mask": lambda: theirs(RANDOM_SEEDS[0], "-seed_image", mask),
    }
    return {"n": n, "fixels": len(fixels), **{name: _misfit(made(), fixels) for name, made in sets.items()}}


def _misfit(lines: Streamlines, fixels: Fixels) -> dict[str, float]:
    model, equal = DensityModel.of(lines, fixels), np.ones(len(lines))
    density = model.proportionality(equal) * model.density(equal)
    target = model.target
    return {
        "misfit": float(np.square(density - target).sum() / np.square(target).sum()),
        "correlation": float(np.corrcoef(density, target)[0, 1]),
        "fixels_met": float((density > 0).mean()),
    }
