"""ACT line by line against ``tckgen -act``, for `tracking_fidelity.py`: entries of its result file under ``act``.

Seeds are the voxel centres of an image half a voxel or less beside the scan's grid, so both programs have the same ones, and every
refused seed is known. ``tckgen -algorithm SD_STREAM -act`` and `SDStream` with the rule `Anatomy` get the same FOD,
five-tissue maps, mask, seeds and initial direction, each program's defaults for ACT, no back-tracking (which tckgen has for
its probabilistic trackers only). Three comparisons, all shares of the lines that either side accepts:

- ``ours``: the whole of ours against the whole of tckgen;
- ``rule_alone``: tckgen's own lines without ``-act``, cut by our rule, against its lines with ``-act``;
- ``tckgen_itself``: its tabulated against its exact Legendre functions, both with ``-act``.

``parted`` counts, of ``ours``, the lines that are not within 0.1 mm: by tracking alone (without ACT they differ too), or by the rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from tracking_subjects import call

from tractode.evaluate.agreement import hausdorff_distances
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.io.nifti import read_image, write_image
from tractode.io.tractogram import read_tractogram
from tractode.tracking.anatomy import Anatomy, with_anatomy
from tractode.tracking.sdstream import SDStream
from tractode.tracking.tissues import TissueMaps

SHIFT = (0.31, -0.22, 0.17)  # of a voxel: seeds off the centres of voxels, where interpolation has its corners
RUNS = 5


@dataclass(frozen=True)
class Scene:
    """What both programs get. ``exact`` are tckgen's options for exact Legendre functions."""

    fod: Path
    mask: Path
    tissues: Path
    folder: Path
    exact: tuple[str, ...]

    def tckgen(self, *options: object) -> Streamlines:
        """Lines with the place of their seed (``seed_point``) and its number in the image of seeds (``seed``)."""
        call("tckgen", self.fod, self.folder / "act.tck", "-algorithm", "SD_STREAM", "-select", 0, "-nthreads", 0,
             "-seed_grid_per_voxel", self.folder / "seeds.nii", 1, "-output_seeds", self.folder / "act.csv",
             "-force", "-quiet", *options)  # fmt: skip
        lines, _ = read_tractogram(self.folder / "act.tck", "dwi")
        table = np.loadtxt(self.folder / "act.csv", delimiter=",", skiprows=2, usecols=(0, 1), ndmin=2).astype(int)
        order, place = (torch.from_numpy(column.copy()) for column in table.T)
        lines = lines.select(order)
        return Streamlines(lines.points, lines.offsets, lines.space, {}, {"seed_point": place})


def act(fod: Path, mask: Path, tissues: Path, folder: Path, n: int, exact: tuple[str, ...]) -> dict[str, Any]:
    """The comparison for ``n`` seeds in the mask, in `RUNS` initial directions."""
    scene = Scene(fod, mask, tissues, folder, exact)
    image, _ = read_image(fod, "dwi")
    field = ShField(image.grid, image.values.float(), 8)
    inside, _ = read_image(mask, "dwi")
    inside = Image(inside.grid, inside.values > 0.5)
    rule = Anatomy(TissueMaps(read_image(tissues, "dwi")[0]), inside, field)
    tracker = with_anatomy(SDStream(batch_size=n), field.grid)
    write_image(folder / "wide.nii", rule.tracking_mask(), dtype=np.uint8)
    found: dict[str, list[Streamlines]] = {name: [] for name in ("ours", "free", "theirs", "their_free", "tabulated")}
    for run in range(RUNS):
        direction, seeds = _direction(run), _seeds(inside, folder / "seeds.nii", n // RUNS, run)
        directions = torch.tensor([direction], dtype=torch.float32).expand(len(seeds), 3)
        free = Streamlines.concatenate(
            list(tracker.track(field, seeds, rule.tracking_mask(inside), directions=directions)), "dwi"
        )
        text = ",".join(f"{x:.9g}" for x in direction)
        way = ("-seed_direction", text, *exact)
        no_act = ("-mask", folder / "wide.nii", "-cutoff", tracker.cutoff, "-minlength", tracker.min_length,
                  "-maxlength", tracker.max_length)  # fmt: skip
        sets = {
            "ours": rule.apply(free),
            "free": free,
            "theirs": scene.tckgen("-mask", mask, "-act", tissues, *way),
            "their_free": scene.tckgen(*no_act, *way),
        }
        if exact:
            sets["tabulated"] = scene.tckgen("-mask", mask, "-act", tissues, "-seed_direction", text)
        for name, lines in sets.items():
            found[name].append(_numbered(lines, seeds, run * (n // RUNS)))
    lines = {name: Streamlines.concatenate(parts, "dwi") for name, parts in found.items() if parts}
    by_rule = rule.apply(lines["their_free"])
    return {
        "n_seeds": RUNS * (n // RUNS),
        "accepted": {"ours": len(lines["ours"]), "tckgen": len(lines["theirs"])},
        "ours": compared(lines["ours"], lines["theirs"]),
        "rule_alone": compared(by_rule, lines["theirs"]),
        "tckgen_itself": compared(lines["tabulated"], lines["theirs"]) if exact else None,
        "parted": _parted(lines),
        "tckgen": "exact" if exact else "tabulated",
    }


def compared(first: Streamlines, second: Streamlines) -> dict[str, Any]:
    """How many seeds either side accepts (``n``), and shares of them: accepted by both, near, with the same ends."""
    one, two = (_rows(lines) for lines in (first, second))
    common = sorted(one.keys() & two.keys())
    n = len(one.keys() | two.keys())
    pairs = (
        first.select(torch.tensor([one[k] for k in common])),
        second.select(torch.tensor([two[k] for k in common])),
    )
    distances = hausdorff_distances(*pairs)
    ends = _ends_apart(*pairs)
    return {
        "n": n,
        "in_both": len(common) / n,
        "only_first": len(one.keys() - two.keys()),
        "only_tckgen": len(two.keys() - one.keys()),
        "within_0_1_mm": float((distances < 0.1).sum()) / n,
        "within_1_mm": float((distances < 1).sum()) / n,
        "ends_within_0_1_mm": float((ends < 0.1).sum()) / n,
        "ends_within_1_mm": float((ends < 1).sum()) / n,
    }


def _parted(lines: dict[str, Streamlines]) -> dict[str, int]:
    """Of the lines not within 0.1 mm: those that tracking parts before any rule is asked, and those that the rule does."""
    apart = _apart(lines["ours"], lines["theirs"])
    without = _apart(lines["free"], lines["their_free"])
    return {"by_tracking": len(apart & without), "by_the_rule": len(apart - without)}


def _apart(first: Streamlines, second: Streamlines) -> set[int]:
    one, two = (_rows(lines) for lines in (first, second))
    common = sorted(one.keys() & two.keys())
    distances = hausdorff_distances(
        first.select(torch.tensor([one[k] for k in common])), second.select(torch.tensor([two[k] for k in common]))
    )
    far = {key for key, distance in zip(common, distances.tolist(), strict=True) if not distance < 0.1}
    return far | (one.keys() ^ two.keys())


def _rows(lines: Streamlines) -> dict[int, int]:
    return {int(seed): row for row, seed in enumerate(lines.per_streamline["seed"].tolist())}


def _ends_apart(first: Streamlines, second: Streamlines) -> Tensor:
    """The larger distance of the two ends of each pair, whichever half came first."""
    one, two = (torch.stack((s.points[s.offsets[:-1]], s.points[s.offsets[1:] - 1])) for s in (first, second))
    return torch.minimum(*((one - other).norm(dim=-1).amax(0) for other in (two, two.flip(0))))


def _numbered(lines: Streamlines, seeds: Tensor, first: int) -> Streamlines:
    """Each line tagged with the number of the seed that it goes through."""
    at = lines.points[lines.offsets[:-1] + lines.per_streamline["seed_point"].to(lines.offsets)]
    distance, number = cKDTree(seeds.double().numpy()).query(at.double().numpy())
    if distance.max(initial=0.0) > 1e-3:
        raise RuntimeError(f"A line's seed is {distance.max():.3g} mm from every seed that was given.")
    data = {
        "seed_point": lines.per_streamline["seed_point"].to(lines.offsets),
        "seed": torch.from_numpy(number).long() + first,
    }
    return Streamlines(lines.points, lines.offsets, lines.space, {}, data)


def _direction(run: int) -> tuple[float, float, float]:
    z, angle = (run + 0.5) / RUNS, math.pi * (3 - math.sqrt(5)) * run
    return math.cos(angle) * math.sqrt(1 - z * z), math.sin(angle) * math.sqrt(1 - z * z), z


def _seeds(mask: Image, path: Path, n: int, run: int) -> Tensor:
    """``n`` voxels of the mask, shifted; written as the image whose voxel centres the seeds are."""
    affine = mask.grid.affine.clone()
    affine[:3, 3] += affine[:3, :3] @ torch.tensor(SHIFT, dtype=affine.dtype)
    grid = ImageGrid(mask.grid.shape, affine, mask.grid.space)
    voxels = mask.mask.nonzero()
    chosen = voxels[torch.randperm(len(voxels), generator=torch.Generator().manual_seed(run))[:n]]
    values = torch.zeros(1, *grid.shape, dtype=torch.bool)
    values[0, chosen[:, 0], chosen[:, 1], chosen[:, 2]] = True
    write_image(path, Image(grid, values), dtype=np.uint8)
    return grid.to_world(chosen.double()).float()
