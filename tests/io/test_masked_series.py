"""Voxels of a series by blocks: what a whole reading would give, from plain, compressed and scaled files, in memory or on disk."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid
from tractode.io.masked_series import masked_series, voxel_blocks
from tractode.io.nifti import read_image, write_image, write_volumes

SHAPE = (7, 6, 5)


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid(SHAPE, oblique_affine, "sub-01_dwi")


@pytest.fixture
def series(grid: ImageGrid) -> Image:
    return Image(grid, torch.rand(9, *SHAPE, generator=torch.Generator().manual_seed(0)) + 0.5)


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) > 0.4


def expected(image: Image, mask: torch.Tensor) -> torch.Tensor:
    """Rows in the order of storage: first axis fastest."""
    return image.values.permute(0, 3, 2, 1).reshape(len(image.values), -1)[:, mask.permute(2, 1, 0).reshape(-1)].mT


@pytest.mark.parametrize("name", ["s.nii", "s.nii.gz"])
@pytest.mark.parametrize("in_memory", [0, 1 << 30])
@pytest.mark.parametrize("n_voxels", [1, 7, 1000])
def test_blocks_are_the_rows_of_the_series(
    tmp_path: Path, series: Image, mask: torch.Tensor, name: str, in_memory: int, n_voxels: int
) -> None:
    write_image(tmp_path / name, series)
    with masked_series(tmp_path / name, mask, tmp_path, in_memory=in_memory) as opened:
        rows = torch.cat([block.clone() for _, block in opened.blocks(n_voxels)])
        sampled = opened.sample(20)
    assert torch.equal(rows, expected(series, mask))
    assert torch.equal(sampled, rows[:: -(-len(rows) // 20)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [name], "what was kept on disk is gone"


@pytest.mark.parametrize("name", ["s.nii", "s.nii.gz"])
def test_scaled_integers_and_bad_values(tmp_path: Path, series: Image, mask: torch.Tensor, name: str) -> None:
    scaled = Image(series.grid, (series.values * 100 - 60).round())
    write_image(tmp_path / "s.nii", scaled, dtype=np.int16)
    data = bytearray((tmp_path / "s.nii").read_bytes())
    data[112:120] = struct.pack("<ff", 0.5, -3.0)
    (tmp_path / "s.nii").write_bytes(data)
    if name.endswith(".gz"):
        import gzip

        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "s.nii").read_bytes()))
    whole = read_image(tmp_path / name, "x")[0]
    assert float(whole.values.min()) < 0
    rows = torch.cat([block.clone() for _, block in voxel_blocks(tmp_path / name, Image(series.grid, mask[None]), 10)])
    torch.testing.assert_close(rows, expected(whole, mask).clamp(min=0), rtol=1e-6, atol=1e-5)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, series: Image, mask: torch.Tensor) -> None:
    write_image(tmp_path / "s.nii", series)
    short = tmp_path / "s.nii"
    short.write_bytes(short.read_bytes()[:-100])
    with pytest.raises(InputDataError), masked_series(short, mask) as opened:
        list(opened.blocks())


def test_volumes_one_by_one_are_the_image_as_a_whole(tmp_path: Path, series: Image) -> None:
    write_image(tmp_path / "a.nii.gz", series)
    write_volumes(tmp_path / "b.nii.gz", series.grid, (volume.numpy() for volume in series.values), len(series.values))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
