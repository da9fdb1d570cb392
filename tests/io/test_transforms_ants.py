"""ANTs beside us on the files we write: ramps and points, a chain as composite and as warp, on oblique grids of both hands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tractode.fields import Affine, Chain, Flow, Image, ImageGrid, Transform, VelocityField
from tractode.fields.transform import resample
from tractode.io.nifti import read_image, write_image
from tractode.io.transforms import read_transform, write_itk, write_warp

PEERS = os.environ.get("TRACTODE_PEERS", sys.executable)
_ANTS = """
import sys, ants, numpy as np, pandas as pd
folder = sys.argv[1]
fixed = ants.image_read(f"{folder}/fixed.nii.gz")
points = pd.DataFrame(np.load(f"{folder}/points.npy") * [-1, -1, 1], columns=list("xyz"))
for file in ("t.h5", "t_Warp.nii.gz"):
    for axis in "ijk":
        moved = ants.apply_transforms(fixed, ants.image_read(f"{folder}/{axis}.nii.gz"), [f"{folder}/{file}"])
        ants.image_write(moved, f"{folder}/{file}.{axis}.nii.gz")
    mapped = ants.apply_transforms_to_points(3, points, [f"{folder}/{file}"]).to_numpy()[:, :3]
    np.save(f"{folder}/{file}.npy", mapped * [-1, -1, 1])
"""

pytestmark = pytest.mark.reference


def make(fixed: ImageGrid) -> Transform:
    nodes = fixed.resampled(6.0)
    offset = (nodes.centres(torch.float64) - fixed.centres(torch.float64).mean((0, 1, 2))) / 12
    velocity = (
        4
        * torch.exp(-offset.square().sum(-1, keepdim=True))
        * torch.stack([offset[..., 1].cos(), offset[..., 2].sin(), offset[..., 0].cos()], -1)
    )
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] += torch.tensor([[0.05, 0.12, -0.06], [-0.15, -0.05, 0.07], [0.06, 0.0, 0.04]])
    return Chain(
        (Flow(VelocityField(nodes, velocity.movedim(-1, 0)[None].float()), "fixed", "x"), Affine(matrix, "x", "moving"))
    )


def test_ants_resamples_and_maps_alike(oblique_affine: torch.Tensor, tmp_path: Path) -> None:
    if subprocess.run([PEERS, "-c", "import ants"], check=False, capture_output=True).returncode:
        pytest.skip("antspyx is not installed; TRACTODE_PEERS may name a Python that has it")
    fixed = ImageGrid((22, 20, 18), oblique_affine, "fixed")
    right = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]).double())
    right[:3, 3] = fixed.centres(torch.float64).mean((0, 1, 2)) - 32
    moving = ImageGrid((33, 33, 33), right, "moving")
    transform = make(fixed)
    index = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in moving.shape), indexing="ij"))
    write_image(tmp_path / "fixed.nii.gz", Image(fixed, torch.ones(1, *fixed.shape)), sform_code=1)
    for axis, values in zip("ijk", index, strict=True):
        write_image(tmp_path / f"{axis}.nii.gz", Image(moving, values[None]), sform_code=1)
    inner = torch.rand(100, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    points = fixed.to_world(1 + inner * (torch.tensor(fixed.shape).double() - 3))
    np.save(tmp_path / "points.npy", points.numpy())
    write_itk(tmp_path / "t.h5", transform, fixed)
    write_warp(tmp_path / "t_Warp.nii.gz", transform, fixed)
    subprocess.run([PEERS, "-c", _ANTS, str(tmp_path)], check=True)
    for file in ("t.h5", "t_Warp.nii.gz"):
        again = read_transform(tmp_path / file, "fixed", "moving")
        voxel = moving.to_voxel(again.map(fixed.centres(torch.float64)))
        inside = ((voxel > 1) & (voxel < torch.tensor(moving.shape) - 2)).all(-1)
        assert int(inside.sum()) > 1000
        theirs = torch.cat([read_image(tmp_path / f"{file}.{axis}.nii.gz", "x")[0].values for axis in "ijk"])
        gap = (resample(Image(moving, index), fixed, again).values - theirs).norm(dim=0)[inside]
        assert float(gap.max()) < 0.01
        np.testing.assert_allclose(again.map(points).numpy(), np.load(tmp_path / f"{file}.npy"), atol=0.01 * 2.0)
