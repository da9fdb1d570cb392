"""TrackVis files against nibabel's own writer, on an oblique grid, and folders of bundles."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.errors import InputDataError, MissingInputError
from tractode.fields import ImageGrid, Streamlines
from tractode.io.trackvis import read_bundles, read_trk
from tractode.io.tractogram import write_tractogram


def written(path: Path, affine: torch.Tensor, lines: list[np.ndarray]) -> None:
    header = {
        "voxel_to_rasmm": affine.numpy().astype(np.float32),
        "voxel_sizes": affine[:3, :3].norm(dim=0).numpy().astype(np.float32),
        "dimensions": np.array([40, 40, 40], dtype=np.int16),
        "voxel_order": "".join(nib.aff2axcodes(affine.numpy())),
    }
    tractogram = nib.streamlines.Tractogram(lines, affine_to_rasmm=np.eye(4))
    nib.streamlines.save(nib.streamlines.TrkFile(tractogram, header), path)


@pytest.fixture
def lines() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, 3)).astype(np.float32) * 20 for n in (5, 9, 2)]


def test_points_are_ras_millimetres(tmp_path: Path, oblique_affine: torch.Tensor, lines: list[np.ndarray]) -> None:
    written(tmp_path / "A_L.trk", oblique_affine, lines)
    found = read_trk(tmp_path / "A_L.trk", "template")
    assert [len(line) for line in found] == [5, 9, 2]
    assert np.abs(found.points.numpy() - np.concatenate(lines)).max() < 1e-3


def test_a_folder_gives_its_bundles_by_name(
    tmp_path: Path, oblique_affine: torch.Tensor, lines: list[np.ndarray]
) -> None:
    written(tmp_path / "B.trk", oblique_affine, lines)
    grid = ImageGrid((10, 10, 10), oblique_affine, "template")
    write_tractogram(tmp_path / "A.trx", Streamlines.from_list([torch.from_numpy(lines[0])], "template"), grid)
    (tmp_path / "README.txt").write_text("not a bundle")
    found = read_bundles(tmp_path, "template")
    assert list(found) == ["A", "B"]
    assert [len(one) for one in found.values()] == [1, 3]


def test_what_is_no_tractogram_is_refused(tmp_path: Path) -> None:
    (tmp_path / "C.trk").write_bytes(b"TRACK" + bytes(200))
    with pytest.raises(InputDataError) as error:
        read_trk(tmp_path / "C.trk", "template")
    assert error.value.id == "E-TRACT-TRK"
    with pytest.raises(MissingInputError):
        read_bundles(tmp_path / "nowhere", "template")
