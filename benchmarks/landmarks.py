"""Do directions point where anatomy says? Angles at two landmarks whose fibres everybody knows.

Boxes in MNI coordinates (mm) are carried into the scan by the app's own transforms; within them, voxels of high FA count.
The callosum at the midline runs left–right, the posterior limb of the internal capsule inferior–superior.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tractode.fields import Image
from tractode.fields.transform import Chain
from tractode.io.nifti import read_image
from tractode.io.transforms import read_itk

# name: (lower corner, upper corner, |axis| expected, least FA)
LANDMARKS = {
    "callosum": ((-3.0, -40.0, 0.0), (3.0, 32.0, 32.0), 0, 0.4),
    "capsule": ((16.0, -24.0, 0.0), (30.0, -4.0, 18.0), 2, 0.4),
}
SPACING = 1.0


def angles(scan_dir: Path, run: str, template: str) -> dict[str, Any]:
    """Median angle (degrees) between the principal direction and the axis anatomy expects, with the number of points."""
    points_of = _to_scan(scan_dir, run, template)
    if points_of is None:
        return {}
    fa, _ = read_image(scan_dir / f"{run}_model-tensor_param-fa_dwimap.nii.gz", "scan")
    direction, _ = read_image(scan_dir / f"{run}_model-tensor_param-direction_dwimap.nii.gz", "scan")
    found = {}
    for name, (low, high, axis, least) in LANDMARKS.items():
        grid = torch.cartesian_prod(
            *(torch.arange(a, b + SPACING / 2, SPACING) for a, b in zip(low, high, strict=True))
        )
        both = [grid] if name == "callosum" else [grid, grid * torch.tensor([-1.0, 1.0, 1.0])]
        points = points_of.map(torch.cat(both))
        kept = fa.sample(points, "nearest")[:, 0] > least
        vectors = Image(direction.grid, direction.values).sample(points[kept], "nearest")
        cosine = (vectors[:, axis].abs() / vectors.norm(dim=-1).clamp_min(1e-6)).clamp(max=1)
        found[f"{name}_deg"] = round(float(torch.rad2deg(cosine.acos()).median()), 1)
        found[f"{name}_n"] = int(kept.sum())
    return found


def _to_scan(scan_dir: Path, run: str, template: str) -> Chain | None:
    """Template points → points of the scan, through anatomy where there is one."""
    direct = scan_dir / f"{run}_from-dwi_to-{template}_mode-image_xfm.h5"
    if direct.is_file():
        return Chain((read_itk(direct, source=template, target="scan"),))
    anatomy = list((scan_dir.parent / "anat").glob(f"*_from-T1w_to-{template}_mode-image_xfm.h5"))
    rigid = scan_dir / f"{run}_from-dwi_to-T1w_mode-image_xfm.h5"
    if not anatomy or not rigid.is_file():
        return None
    return Chain((read_itk(anatomy[0], source=template, target="T1w"), read_itk(rigid, source="T1w", target="scan")))
