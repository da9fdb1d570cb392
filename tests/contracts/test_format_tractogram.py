"""Laws of tractogram files: what is written is read, other programs agree, and damaged files are refused in words."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tractode.errors import InputDataError, MissingInputError, UsageError
from tractode.fields import ImageGrid, Streamlines
from tractode.io.tractogram import read_tractogram, write_tractogram

both = pytest.mark.parametrize("extension", [".trx", ".tck"])


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid((20, 21, 22), oblique_affine, "w")


@pytest.fixture
def lines() -> Streamlines:
    draw = torch.Generator().manual_seed(0)
    made = Streamlines.from_list([50 * torch.randn(n, 3, generator=draw) for n in (5, 1, 30, 2)], "w")
    return Streamlines(
        made.points,
        made.offsets,
        "w",
        {"fa": torch.rand(38, generator=draw)},
        {"seed": torch.arange(4), "mean": torch.rand(4, 3, generator=draw)},
    )


@both
def test_what_is_written_is_read(tmp_path: Path, extension: str, lines: Streamlines, grid: ImageGrid) -> None:
    path = tmp_path / f"a{extension}"
    write_tractogram(path, lines, grid)
    back, notes = read_tractogram(path, "w")
    assert notes == []
    assert torch.equal(back.points, lines.points)
    assert torch.equal(back.offsets, lines.offsets)
    if extension == ".trx":
        assert torch.equal(back.per_point["fa"], lines.per_point["fa"])
        assert torch.equal(back.per_streamline["seed"], lines.per_streamline["seed"])
        assert torch.equal(back.per_streamline["mean"], lines.per_streamline["mean"])


@both
def test_same_lines_same_bytes(tmp_path: Path, extension: str, lines: Streamlines, grid: ImageGrid) -> None:
    for name in ("a", "b"):
        write_tractogram(tmp_path / f"{name}{extension}", lines, grid)
    assert (tmp_path / f"a{extension}").read_bytes() == (tmp_path / f"b{extension}").read_bytes()


@both
def test_no_streamlines_is_a_valid_tractogram(tmp_path: Path, extension: str, grid: ImageGrid) -> None:
    write_tractogram(tmp_path / f"a{extension}", Streamlines.concatenate([], "w"), grid)
    back, _ = read_tractogram(tmp_path / f"a{extension}", "w")
    assert len(back) == 0


def test_nibabel_and_trx_python_read_the_same_points(tmp_path: Path, lines: Streamlines, grid: ImageGrid) -> None:
    from trx.trx_file_memmap import load_from_zip

    write_tractogram(tmp_path / "a.tck", lines, grid)
    write_tractogram(tmp_path / "a.trx", lines, grid)
    theirs = load_from_zip(str(tmp_path / "a.trx"))
    for found in (nibabel.streamlines.load(tmp_path / "a.tck").streamlines, theirs.streamlines):
        assert len(found) == len(lines)
        for ours, other in zip(lines, found, strict=True):
            assert np.array_equal(ours.numpy(), np.asarray(other))
    assert np.allclose(theirs.header["VOXEL_TO_RASMM"], grid.affine.numpy(), atol=1e-5)


def test_their_tck_is_read(tmp_path: Path, lines: Streamlines) -> None:
    tractogram = nibabel.streamlines.Tractogram([line.numpy() for line in lines], affine_to_rasmm=np.eye(4))
    nibabel.streamlines.save(tractogram, tmp_path / "a.tck")
    back, _ = read_tractogram(tmp_path / "a.tck", "w")
    assert torch.equal(back.points, lines.points)


@pytest.mark.parametrize(
    ("damage", "id"),
    [
        (lambda b: b[:-7], "E-TRACT-TRUNCATED"),
        (lambda b: b[:-12], "E-TRACT-END"),
        (lambda b: b[:-60], "E-TRACT-END"),
        (lambda b: b.replace(b"\nEND\n", b"\n\n\n\n\n"), "E-TRACT-HEADER"),
        (lambda b: b.replace(b"Float32LE", b"Float32BE"), "E-TRACT-END"),
        (lambda b: b.replace(b"Float32LE", b"Float64LE"), "E-TRACT-DATATYPE"),
        (lambda b: b.replace(b"file: . ", b"file: . 9"), "E-TRACT-HEADER"),
        (lambda b: b[:-36] + np.full(3, np.inf, "<f4").tobytes() + b[-24:], "E-TRACT-END"),
    ],
)
def test_damaged_tck_is_refused(tmp_path: Path, lines: Streamlines, grid: ImageGrid, damage, id: str) -> None:
    path = tmp_path / "a.tck"
    write_tractogram(path, lines, grid)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputDataError) as caught:
        read_tractogram(path, "w")
    assert caught.value.id == id


def test_wrong_count_is_noted(tmp_path: Path, lines: Streamlines, grid: ImageGrid) -> None:
    path = tmp_path / "a.tck"
    write_tractogram(path, lines, grid)
    path.write_bytes(path.read_bytes().replace(b"0000000004", b"0000000009"))
    back, notes = read_tractogram(path, "w")
    assert len(back) == 4
    assert [note.id for note in notes] == ["W-TRACT-COUNT"]


@both
def test_broken_and_empty_lines_are_left_out_and_counted(
    tmp_path: Path, extension: str, lines: Streamlines, grid: ImageGrid
) -> None:
    points = lines.points.clone()
    points[7, 1] = torch.nan  # in the third line
    offsets = torch.tensor([0, 5, 5, 6, 36, 38])
    made = Streamlines(points, offsets, "w", {}, {"seed": torch.arange(5)})
    write_tractogram(tmp_path / f"a{extension}", made, grid)
    back, notes = read_tractogram(tmp_path / f"a{extension}", "w")
    assert {note.id for note in notes} == {"W-TRACT-NAN", "W-TRACT-EMPTY"}
    assert back.n_points.tolist() == [5, 1, 2]
    if extension == ".trx":
        assert back.per_streamline["seed"].tolist() == [0, 2, 4]


def rewrite(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content.update({name.replace("__", "."): value for name, value in members.items()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def test_damaged_trx_is_refused(tmp_path: Path, lines: Streamlines, grid: ImageGrid) -> None:
    path = tmp_path / "a.trx"

    def refused(**members: bytes) -> str:
        write_tractogram(path, lines, grid)
        rewrite(path, **members)
        with pytest.raises(InputDataError) as caught:
            read_tractogram(path, "w")
        return caught.value.id

    assert refused(offsets__uint32=np.array([0, 5, 2**31, 36, 38], "<u4").tobytes()) == "E-TRACT-OFFSETS"
    assert refused(offsets__uint32=np.array([0, 5], "<u4").tobytes()) == "E-TRACT-COUNT"
    assert refused(header__json=b"{}") == "E-TRACT-TRX"
    huge = {
        "DIMENSIONS": [1, 1, 1],
        "NB_STREAMLINES": 2**40,
        "NB_VERTICES": 2**40,
        "VOXEL_TO_RASMM": np.eye(4).tolist(),
    }
    assert refused(header__json=json.dumps(huge).encode()) == "E-TRACT-COUNT"
    write_tractogram(path, lines, grid)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputDataError, match="E-TRACT-TRX"):
        read_tractogram(path, "w")


def test_unknown_members_are_noted(tmp_path: Path, lines: Streamlines, grid: ImageGrid) -> None:
    write_tractogram(tmp_path / "a.trx", lines, grid)
    rewrite(tmp_path / "a.trx", strange__complex9=b"abc")
    _, notes = read_tractogram(tmp_path / "a.trx", "w")
    assert [note.id for note in notes] == ["W-TRACT-MEMBER"]


def test_missing_and_unknown_files(tmp_path: Path, lines: Streamlines, grid: ImageGrid) -> None:
    with pytest.raises(MissingInputError):
        read_tractogram(tmp_path / "none.trx", "w")
    with pytest.raises(UsageError):
        read_tractogram(tmp_path / "a.trk", "w")
    with pytest.raises(UsageError):
        write_tractogram(tmp_path / "a.vtk", lines, grid)
