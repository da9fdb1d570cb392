"""Tractograms written and read in batches: the same bytes as in one piece, and the same lines back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tractode.errors import InternalError, UsageError
from tractode.fields import ImageGrid, Streamlines
from tractode.io.tractogram import read_tractogram, write_tractogram
from tractode.io.tractogram_stream import read_groups, stream_to, stream_trx


def some_lines(n: int, seed: int = 0) -> Streamlines:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(2, 9, (n,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
    points = 50 * torch.randn(int(offsets[-1]), 3, generator=generator)
    return Streamlines(
        points,
        offsets,
        "dwi",
        {"colour": points.abs()},
        {"seed": torch.arange(n), "weights": torch.rand(n, generator=generator)},
    )


def parts(lines: Streamlines, size: int) -> list[Streamlines]:
    return [lines.select(index) for index in torch.arange(len(lines)).split(size)]


@pytest.mark.parametrize("extension", ["trx", "tck"])
def test_batches_give_the_bytes_of_one_piece(tmp_path: Path, oblique_affine: torch.Tensor, extension: str) -> None:
    grid, lines = ImageGrid((5, 6, 7), oblique_affine, "dwi"), some_lines(23)
    whole, batched = tmp_path / f"whole.{extension}", tmp_path / f"batched.{extension}"
    write_tractogram(whole, lines, grid)
    with stream_to(batched, grid) as out:
        out.append(lines.select(torch.arange(0)))  # an empty batch changes nothing
        for part in parts(lines, 5):
            out.append(part)
    assert batched.read_bytes() == whole.read_bytes()
    back, notes = read_tractogram(batched, "dwi")
    assert not notes
    assert torch.equal(back.points, lines.points)
    assert torch.equal(back.offsets, lines.offsets)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([whole.name, batched.name])


def test_a_trx_file_comes_back_in_batches_with_its_data(tmp_path: Path, oblique_affine: torch.Tensor) -> None:
    lines = some_lines(23)
    write_tractogram(tmp_path / "a.trx", lines, ImageGrid((5, 6, 7), oblique_affine, "dwi"))
    batches = list(stream_trx(tmp_path / "a.trx", "dwi", batch=4))
    assert [len(batch) for batch in batches] == [4] * 5 + [3]
    back = Streamlines.concatenate(batches, "dwi")
    assert torch.equal(back.points, lines.points)
    assert torch.equal(back.per_point["colour"], lines.per_point["colour"])
    assert torch.equal(back.per_streamline["weights"], lines.per_streamline["weights"])


@pytest.mark.parametrize("extension", ["trx", "tck"])
def test_groups_are_kept_and_in_nobodys_way(tmp_path: Path, oblique_affine: torch.Tensor, extension: str) -> None:
    grid, lines, path = ImageGrid((5, 6, 7), oblique_affine, "dwi"), some_lines(9), tmp_path / f"a.{extension}"
    groups = {"AF_L": torch.tensor([0, 3, 8]), "none": torch.zeros(0, dtype=torch.long), "CC": torch.tensor([1])}
    with stream_to(path, grid) as out:
        for part in parts(lines, 4):
            out.append(part)
        out.add_groups(groups)
    back, notes = read_tractogram(path, "dwi")
    assert notes == []
    assert torch.equal(back.points, lines.points)
    if extension == "trx":
        found = read_groups(path)
        assert {name: index.tolist() for name, index in found.items()} == {"AF_L": [0, 3, 8], "CC": [1]}
        assert torch.equal(Streamlines.concatenate(stream_trx(path, "dwi"), "dwi").points, lines.points)


@pytest.mark.parametrize("extension", ["trx", "tck"])
def test_an_empty_tractogram_is_a_file(tmp_path: Path, oblique_affine: torch.Tensor, extension: str) -> None:
    path = tmp_path / f"none.{extension}"
    with stream_to(path, ImageGrid((5, 6, 7), oblique_affine, "dwi")):
        pass
    lines, _ = read_tractogram(path, "dwi")
    assert len(lines) == 0


def test_a_failure_leaves_no_open_parts_behind(tmp_path: Path, oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((5, 6, 7), oblique_affine, "dwi")

    def fail() -> None:
        with stream_to(tmp_path / "a.trx", grid) as out:
            out.append(some_lines(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


def test_batches_with_other_data_are_refused(tmp_path: Path, oblique_affine: torch.Tensor) -> None:
    grid, lines = ImageGrid((5, 6, 7), oblique_affine, "dwi"), some_lines(3)
    plain = Streamlines(lines.points, lines.offsets, lines.space)
    out = stream_to(tmp_path / "a.trx", grid)
    out.append(lines)
    with pytest.raises(InternalError, match="different data"):
        out.append(plain)
    out.abandon()
    with pytest.raises(UsageError, match=r"\.vtk"):
        stream_to(tmp_path / "a.vtk", grid)


def test_numbers_of_groups_are_there_for_other_readers(tmp_path: Path, oblique_affine: torch.Tensor) -> None:
    trx = pytest.importorskip("trx.trx_file_memmap")
    lines, path = some_lines(9), tmp_path / "a.trx"
    with stream_to(path, ImageGrid((5, 6, 7), oblique_affine, "dwi")) as out:
        out.append(lines)
        out.add_groups({"AF_L": torch.tensor([1, 4]), "none": torch.zeros(0, dtype=torch.long)})
        out.add_group_data({name: {"latent": torch.arange(5.0), "length": torch.ones(1)} for name in ("AF_L", "none")})
    loaded = trx.load(str(path))
    assert loaded.data_per_group.keys() == {"AF_L"}
    assert loaded.data_per_group["AF_L"]["latent"].tolist() == [[0, 1, 2, 3, 4]]
    assert loaded.data_per_group["AF_L"]["length"].tolist() == [[1]]
    loaded.close()
    assert len(next(iter(stream_trx(path, "dwi")))) == len(read_tractogram(path, "dwi")[0]) == 9
    assert list(read_groups(path)) == ["AF_L"]
    with stream_to(tmp_path / "a.tck", ImageGrid((5, 6, 7), oblique_affine, "dwi")) as out:
        out.append(lines)
        out.add_group_data({"AF_L": {"latent": torch.arange(5.0)}})  # TCK has no room for it
