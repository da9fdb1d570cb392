"""One registration by one method in a process of its own: images in, a displacement field out, with what it cost.

    python registration_run.py METHOD folder

``folder`` holds ``fixed.nii.gz``, ``moving.nii.gz`` (brains) and the masks ``fixed_mask.nii.gz``, ``moving_mask.nii.gz``; it
gets ``displacement.npy`` (3, i, j, k: RAS+ mm on the fixed grid, fixed → moving) and ``cost.json``: processor seconds (user
and system, of the process and its children) of the call itself, imports and reading left out for every method, and wall
seconds; for ours also how far there and back misses, in voxels. Peers run in the environment of ``peers-requirements.txt``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], tuple[np.ndarray, dict[str, Any]]]


def _ants(folder: Path, kind: str, **settings: Any) -> Run:
    import ants

    fixed, moving = (ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("fixed", "moving"))

    def run() -> tuple[np.ndarray, dict[str, Any]]:
        found = ants.registration(fixed, moving, type_of_transform=kind, random_seed=1, **settings)
        field = ants.apply_transforms(
            fixed, moving, found["fwdtransforms"], compose=str(folder / "composite_")
        )  # name of the file
        values = ants.image_read(field).numpy()
        return np.moveaxis(values, -1, 0) * np.array([-1, -1, 1], dtype=np.float32)[:, None, None, None], {}

    return run


def _convex_adam(folder: Path, **settings: Any) -> Run:
    import nibabel
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    images = [nibabel.load(folder / f"{name}.nii.gz") for name in ("fixed", "moving")]
    fixed, moving = (torch.from_numpy(image.get_fdata(dtype=np.float32)) for image in images)
    affine = images[0].affine

    def run() -> tuple[np.ndarray, dict[str, Any]]:
        voxels = convex_adam_pt(fixed, moving, dtype=torch.float32, device=torch.device("cpu"), **settings)
        return np.einsum("ab,ijkb->aijk", affine[:3, :3], np.asarray(voxels)).astype(np.float32), {}

    return run


def _dipy(folder: Path, metric: str, iterations: tuple[int, ...]) -> Run:
    """Expectation–maximisation for two contrasts (DIPY's only such metric), cross-correlation for one."""
    import nibabel
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric, EMMetric

    images = [nibabel.load(folder / f"{name}.nii.gz") for name in ("fixed", "moving")]
    fixed, moving = (image.get_fdata(dtype=np.float32) for image in images)
    affine = images[0].affine

    def run() -> tuple[np.ndarray, dict[str, Any]]:
        compare = CCMetric(3) if metric == "CC" else EMMetric(3)
        found = SymmetricDiffeomorphicRegistration(compare, level_iters=list(iterations)).optimize(
            fixed, moving, static_grid2world=affine, moving_grid2world=images[1].affine
        )
        index = np.stack(np.meshgrid(*[np.arange(n) for n in fixed.shape], indexing="ij"), axis=-1)
        world = (index @ affine[:3, :3].T + affine[:3, 3]).reshape(-1, 3)
        # DIPY's forward field moves points of the static image's domain into the moving one.
        moved = found.transform_points(world, coord2world=np.eye(4), world2coord=np.eye(4))
        return np.moveaxis((moved - world).reshape(*fixed.shape, 3), -1, 0).astype(np.float32), {}

    return run


def _tractode(folder: Path, schedule: Any, start: str = "identity", swap: bool = False, **settings: Any) -> Run:
    """``swap``: the images are exchanged, and the inverse of what is found is the answer."""
    import torch

    from tractode.fields.transform import Affine
    from tractode.io.nifti import read_image
    from tractode.registration import optimise

    names = ("moving", "fixed") if swap else ("fixed", "moving")
    first, second = (read_image(folder / f"{name}.nii.gz", name)[0] for name in names)
    grid = second.grid if swap else first.grid
    masks: dict[str, Any] = {
        f"{role}_mask": read_image(folder / f"{name}_mask.nii.gz", name)[0]
        for role, name in zip(("fixed", "moving"), names, strict=True)
        if (folder / f"{name}_mask.nii.gz").is_file()
    }
    initial = Affine(torch.eye(4, dtype=torch.float64), *names) if start == "identity" else None
    plan = schedule if isinstance(schedule, optimise.Schedule) else getattr(optimise, schedule)

    def run() -> tuple[np.ndarray, dict[str, Any]]:
        found = optimise.register(first, second, initial=initial, schedule=plan, **masks, **settings)
        whole = found.inverse() if swap else found
        points = grid.centres()
        return (whole.map(points) - points).movedim(-1, 0).numpy(), {
            "repeats": found.repeats,
            "there_and_back": lambda: _there_and_back(found, first, second),
        }

    return run


def _there_and_back(found: Any, first: Any, second: Any) -> dict[str, float]:
    """How far the inverse misses where it should end, voxels: 99th percentile and largest over both images' grids."""
    import torch

    gaps = []
    for there, grid in ((found, first.grid), (found.inverse(), second.grid)):
        points = grid.centres()
        gaps.append((there.inverse().map(there.map(points)) - points).norm(dim=-1).flatten() / min(grid.voxel_sizes))
    whole = torch.cat(gaps).sort().values
    return {"p99": float(whole[int(0.99 * (len(whole) - 1))]), "largest": float(whole[-1])}


def _long(folder: Path) -> Run:
    """The default's stages, each with more steps, and a last one on closer nodes."""
    from tractode.registration.optimise import Schedule, Stage

    return _tractode(
        folder, Schedule((Stage(6.0, 12.0, 10), Stage(4.0, 8.0, 10), Stage(2.0, 6.0, 10), Stage(2.0, 4.0, 10)))
    )


def _scaled(folder: Path, voxel: float) -> Run:
    """The default's stages as multiples of the last one's voxel: at 2 mm they are the default."""
    from tractode.registration.optimise import COARSE, Stage

    stages = [Stage(voxel / 2 * s.voxel, voxel / 2 * s.nodes, s.iterations) for s in COARSE.stages]
    return _tractode(folder, replace(COARSE, stages=tuple(stages)))


METHODS: dict[str, Callable[[Path], Run]] = {
    "tractode sloppy": partial(_tractode, schedule="SLOPPY"),
    "tractode fast": partial(_tractode, schedule="FAST"),
    "tractode": partial(_tractode, schedule="COARSE"),
    "tractode exchanged": partial(_tractode, schedule="COARSE", swap=True),
    "tractode long": _long,
    "tractode one contrast": partial(_tractode, schedule="SAME_CONTRAST", metric="mind_intensity"),
    "tractode fine": partial(_tractode, schedule="FINE"),
    "tractode with affine": partial(_tractode, schedule="COARSE", start="search"),
    "tractode fine with affine": partial(_tractode, schedule="FINE", start="search"),
    "ANTs SyN short": partial(_ants, kind="SyN", reg_iterations=(20, 10, 0)),
    "ANTs SyN": partial(_ants, kind="SyN"),
    "ANTs SyN middle": partial(_ants, kind="SyN", reg_iterations=(100, 70, 20)),
    "ANTs SyN long": partial(_ants, kind="SyN", reg_iterations=(100, 70, 50, 20)),
    "ANTs SyNOnly": partial(_ants, kind="SyNOnly"),
    "ANTs SyN CC": partial(_ants, kind="SyN", syn_metric="CC", syn_sampling=2),
    "ConvexAdam short": partial(_convex_adam, selected_niter=20),
    "ConvexAdam": _convex_adam,
    "ConvexAdam long": partial(_convex_adam, selected_niter=200),
    "ConvexAdam fine": partial(_convex_adam, grid_sp=4, disp_hw=3, selected_niter=200),
    "DIPY SyN short": partial(_dipy, metric="EM", iterations=(10, 5)),
    "DIPY SyN": partial(_dipy, metric="EM", iterations=(10, 10, 5)),
    "DIPY SyN long": partial(_dipy, metric="EM", iterations=(100, 50, 20)),
    "DIPY SyN CC": partial(_dipy, metric="CC", iterations=(10, 10, 5)),
}


def main() -> None:
    method, folder = sys.argv[1], Path(sys.argv[2])
    scaled = method.startswith("tractode scaled")
    run = _scaled(folder, float(method.split()[-1])) if scaled else METHODS[method](folder)
    wall, before = time.monotonic(), _spent()
    displacement, extra = run()
    cost = {"seconds": _spent() - before, "wall_seconds": time.monotonic() - wall}
    if "there_and_back" in extra:
        extra["there_and_back_voxels"] = extra.pop("there_and_back")()
    np.save(folder / "displacement.npy", displacement.astype(np.float32))
    (folder / "cost.json").write_text(json.dumps({**cost, **extra}), encoding="utf-8")


def _spent() -> float:
    """User and system seconds of the process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


if __name__ == "__main__":
    main()
