"""Do directions point where anatomy says? Angles at two landmarks whose fibres everybody knows.

    python benchmarks/landmarks.py DERIVATIVES [--template MNI152NLin2009cAsym] [--out benchmarks/results/landmarks.json]

Boxes in MNI coordinates (mm) are carried into the scan by the app's own transforms; within them, voxels of high FA count.
The callosum at the midline runs left–right, the posterior limb of the internal capsule inferior–superior. ``median_deg`` is
over single voxels (noise and the boxes' other fibres included), ``mean_direction_deg`` of the principal axis of all of them.
The axes are the template's, carried into the scan by the same transforms: a tilted head does not count as an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from measure import meta

from tractode.fields import Image
from tractode.fields.transform import Chain
from tractode.io.nifti import read_image
from tractode.io.transforms import read_itk

# name: (lower corner, upper corner, |axis| expected, least FA)
LANDMARKS = {
    "callosum": ((-2.0, -40.0, 2.0), (2.0, 32.0, 28.0), 0, 0.5),
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
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        _, axes = torch.linalg.eigh(vectors.mT @ vectors)
        here = torch.cat(both)[kept]
        step = torch.nn.functional.one_hot(torch.tensor(axis), 3).to(here)
        expected = torch.nn.functional.normalize(points_of.map(here + step) - points_of.map(here), dim=-1)
        found[name] = {
            "median_deg": _degrees((vectors * expected).sum(-1).abs().median()),
            "mean_direction_deg": _degrees(
                torch.nn.functional.normalize(expected.mean(0), dim=0).dot(axes[:, -1]).abs()
            ),
            "n": int(kept.sum()),
        }
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


def _degrees(cosine: torch.Tensor) -> float:
    return round(float(torch.rad2deg(cosine.clamp(max=1).acos())), 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("derivatives", type=Path)
    parser.add_argument("--template", default="MNI152NLin2009cAsym")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = {}
    for path in sorted(arguments.derivatives.glob("sub-*/dwi/*_model-tensor_param-fa_dwimap.nii.gz")):
        run = path.name.removesuffix("_model-tensor_param-fa_dwimap.nii.gz")
        if "_space-" not in run and (found := angles(path.parent, run, arguments.template)):
            runs[run] = found
    result = {"meta": meta(f"python benchmarks/landmarks.py DERIVATIVES --template {arguments.template}"), "runs": runs}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
