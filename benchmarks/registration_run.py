"""One registration by one method in a process of its own: images in, a displacement field out, with what it cost.

    python registration_run.py METHOD folder

``folder`` holds ``fixed.nii.gz``, ``moving.nii.gz`` (brains) and the masks ``fixed_mask.nii.gz``, ``moving_mask.nii.gz``; it
gets ``displacement.npy`` (3, i, j, k: RAS+ mm on the fixed grid, fixed → moving) and ``cost.json`` (wall and processor
seconds of the call itself, imports and files left out). Peers run in the environment of ``peers-requirements.txt``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def _ants(folder: Path, kind: str, **settings: object) -> Callable[[], np.ndarray]:
    import ants

    fixed, moving = (ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("fixed", "moving"))

    def run() -> np.ndarray:
        found = ants.registration(fixed, moving, type_of_transform=kind, random_seed=1, **settings)
        field = ants.apply_transforms(
            fixed, moving, found["fwdtransforms"], compose=str(folder / "composite_")
        )  # name of the file
        values = ants.image_read(field).numpy()
        return np.moveaxis(values, -1, 0) * np.array([-1, -1, 1], dtype=np.float32)[:, None, None, None]

    return run


def _convex_adam(folder: Path) -> Callable[[], np.ndarray]:
    import nibabel
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    images = [nibabel.load(folder / f"{name}.nii.gz") for name in ("fixed", "moving")]
    fixed, moving = (torch.from_numpy(image.get_fdata(dtype=np.float32)) for image in images)
    affine = images[0].affine

    def run() -> np.ndarray:
        voxels = convex_adam_pt(fixed, moving, dtype=torch.float32, device=torch.device("cpu"))
        return np.einsum("ab,ijkb->aijk", affine[:3, :3], np.asarray(voxels)).astype(np.float32)

    return run


def _dipy(folder: Path) -> Callable[[], np.ndarray]:
    import nibabel
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    images = [nibabel.load(folder / f"{name}.nii.gz") for name in ("fixed", "moving")]
    fixed, moving = (image.get_fdata(dtype=np.float32) for image in images)
    affine = images[0].affine

    def run() -> np.ndarray:
        found = SymmetricDiffeomorphicRegistration(CCMetric(3), level_iters=[10, 10, 5]).optimize(
            fixed, moving, static_grid2world=affine, moving_grid2world=images[1].affine
        )
        index = np.stack(np.meshgrid(*[np.arange(n) for n in fixed.shape], indexing="ij"), axis=-1)
        world = (index @ affine[:3, :3].T + affine[:3, 3]).reshape(-1, 3)
        # DIPY's forward field moves points of the static image's domain into the moving one.
        moved = found.transform_points(world, coord2world=np.eye(4), world2coord=np.eye(4))
        return np.moveaxis((moved - world).reshape(*fixed.shape, 3), -1, 0).astype(np.float32)

    return run


def _tractode(folder: Path, schedule: str, **settings: object) -> Callable[[], np.ndarray]:
    import torch

    from tractode.fields.transform import Affine
    from tractode.io.nifti import read_image
    from tractode.registration import optimise

    fixed, moving = (read_image(folder / f"{name}.nii.gz", name)[0] for name in ("fixed", "moving"))
    masks = {
        f"{name}_mask": read_image(folder / f"{name}_mask.nii.gz", name)[0]
        for name in ("fixed", "moving")
        if (folder / f"{name}_mask.nii.gz").is_file()
    }
    start = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving") if not schedule.endswith("unaligned") else None
    plan = getattr(optimise, schedule.split(maxsplit=1)[0].upper())

    def run() -> np.ndarray:
        found = optimise.register(fixed, moving, initial=start, schedule=plan, **masks, **settings)
        points = fixed.grid.centres()
        return (found.map(points) - points).movedim(-1, 0).numpy()

    return run


METHODS: dict[str, Callable[[Path], Callable[[], np.ndarray]]] = {
    "tractode fast": lambda folder: _tractode(folder, "fast"),
    "tractode": lambda folder: _tractode(folder, "coarse"),
    "tractode fine": lambda folder: _tractode(folder, "fine"),
    "tractode with affine": lambda folder: _tractode(folder, "coarse unaligned"),
    "ANTs SyN": lambda folder: _ants(folder, "SyN"),
    "ANTs SyNOnly": lambda folder: _ants(folder, "SyNOnly"),
    "ANTs SyN long": lambda folder: _ants(folder, "SyN", reg_iterations=(100, 70, 50, 20)),
    "ConvexAdam": _convex_adam,
    "DIPY SyN": _dipy,
}


def main() -> None:
    method, folder = sys.argv[1], Path(sys.argv[2])
    run = METHODS[method](folder)
    wall, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    displacement = run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "seconds": time.monotonic() - wall,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
    np.save(folder / "displacement.npy", displacement.astype(np.float32))
    (folder / "cost.json").write_text(json.dumps(cost), encoding="utf-8")


if __name__ == "__main__":
    main()
