"""``tractode-codec``: files in, files out, one JSON object, and errors with their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tractode.cli.codec import main
from tractode.fields import Affine, ImageGrid, Streamlines
from tractode.fields.line_shape import one_way
from tractode.generative.bounded_code import largest_error
from tractode.generative.codec import BundleCodec
from tractode.generative.space import SPACE, training_grid
from tractode.io.tractogram import read_tractogram, write_tractogram
from tractode.io.tractogram_stream import read_groups
from tractode.io.transforms import write_itk
from tractode.io.weights import write_weights

SHIFT = torch.tensor([[0.0, -1, 0, 3], [1, 0, 0, -5], [0, 0, 1, 8], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny-1"
    write_weights(folder, *BundleCodec.tiny(0).weights(), card="tiny")
    return folder


@pytest.fixture
def lines() -> Streamlines:
    generator = torch.Generator().manual_seed(5)
    share = torch.linspace(0, 1, 25)[:, None]
    ends = torch.randn(12, 2, 3, generator=generator) * 25
    return Streamlines.from_list([a + share * (b - a) + 9 * torch.sin(4 * share) for a, b in ends], SPACE)


@pytest.fixture
def call(weights: Path, capsys: pytest.CaptureFixture[str]):
    """``call(words)``: exit code, and what was printed as JSON (or the error's line)."""

    def run(*words: object) -> tuple[int, Any]:
        code = main([str(word) for word in words] + ["--weights", str(weights)])
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if code == 0 else printed.err

    return run


@pytest.mark.parametrize("extension", ["trx", "tck"])
def test_there_and_back_within_the_bound(call, lines: Streamlines, tmp_path: Path, extension: str) -> None:
    source, packed, target = tmp_path / f"a.{extension}", tmp_path / "a.safetensors", tmp_path / f"b.{extension}"
    write_tractogram(source, lines, training_grid())
    code, facts = call("encode", source, packed, "--max-error-mm", 1)
    assert (code, facts["Streamlines"], facts["LargestErrorAllowedMillimetres"]) == (0, 12, 1.0)
    code, facts = call("decode", packed, target, "--min-confidence", 0)
    assert code == 0
    assert sum(facts["Bundles"].values()) == 12
    back, _ = read_tractogram(target, SPACE)
    truth = one_way(lines)
    for row in range(12):
        assert float(largest_error(truth.select(torch.tensor([row])), back[row][None])) <= 1.001
    if extension == "trx":
        assert {name: len(index) for name, index in read_groups(target).items()}.items() <= facts["Bundles"].items()


def test_lines_of_another_space_come_with_their_transform(call, lines: Streamlines, tmp_path: Path) -> None:
    away = Affine(SHIFT, SPACE, "scan")
    here = lines.moved(away)
    grid = ImageGrid((7, 8, 9), SHIFT, "scan")
    write_tractogram(tmp_path / "scan.trx", Streamlines(here.points.float(), here.offsets, "scan"), grid)
    write_itk(tmp_path / "back.h5", away.inverse(), training_grid())
    write_itk(tmp_path / "away.h5", away, training_grid())
    write_tractogram(tmp_path / "template.trx", lines, training_grid())
    there = call("name", tmp_path / "template.trx", tmp_path / "t.trx", "--min-confidence", 0)[1]
    words = ("--transform", tmp_path / "back.h5", "--table", tmp_path / "t.tsv", "--min-confidence", 0)
    code, facts = call("name", tmp_path / "scan.trx", tmp_path / "s.trx", *words)
    assert code == 0
    assert facts["Bundles"] == there["Bundles"]
    named, _ = read_tractogram(tmp_path / "s.trx", "scan")
    assert torch.allclose(named.points, here.points.float(), atol=1e-4)
    assert (tmp_path / "t.tsv").read_text().startswith("bundle\tn_streamlines\t")
    import zipfile

    with zipfile.ZipFile(tmp_path / "s.trx") as archive:  # the image that the lines were made on stays named
        assert json.loads(archive.read("header.json"))["DIMENSIONS"] == [7, 8, 9]
    call("encode", tmp_path / "scan.trx", tmp_path / "s.safetensors", "--transform", tmp_path / "back.h5")
    call("decode", tmp_path / "s.safetensors", tmp_path / "again.trx", "--transform", tmp_path / "away.h5")
    again, _ = read_tractogram(tmp_path / "again.trx", "scan")
    truth = one_way(lines).moved(away)
    error = largest_error(truth.select(torch.tensor([0])), again[0][None])
    assert float(error) <= 2.001


def test_new_lines_of_a_bundle(call, tmp_path: Path) -> None:
    words = ("synthesise", tmp_path / "a.trx", "--bundle", "right", "left", "--n-streamlines", 7)
    code, facts = call(*words)
    assert (code, facts["Bundles"]) == (0, {"right": 7, "left": 7})
    lines, _ = read_tractogram(tmp_path / "a.trx", SPACE)
    assert len(lines) == 14
    assert {name: index.tolist() for name, index in read_groups(tmp_path / "a.trx").items()} == {
        "right": list(range(7)), "left": list(range(7, 14)),
    }  # fmt: skip
    first = (tmp_path / "a.trx").read_bytes()
    call(*words)
    assert (tmp_path / "a.trx").read_bytes() == first
    call(*words, "--random-seed", 3)
    assert (tmp_path / "a.trx").read_bytes() != first


def test_what_cannot_be_done_is_said(call, lines: Streamlines, tmp_path: Path) -> None:
    far = Streamlines(lines.points + 900, lines.offsets, SPACE)
    write_tractogram(tmp_path / "far.trx", far, training_grid())
    code, text = call("encode", tmp_path / "far.trx", tmp_path / "o.safetensors")
    assert code == 65
    assert "E-CODEC-EMPTY" in text
    assert not (tmp_path / "o.safetensors").exists()
    write_tractogram(tmp_path / "a.trx", lines, training_grid())
    code, text = call("name", tmp_path / "a.trx", tmp_path / "o.tck")
    assert (code, "E-CODEC-FORMAT" in text) == (64, True)
    code, text = call("synthesise", tmp_path / "o.trx", "--bundle", "rihgt")
    assert (code, "did you mean right" in text) == (64, True)
    code, text = call("decode", tmp_path / "a.trx", tmp_path / "o.trx")
    assert (code, "E-CODEC-FILE" in text) == (65, True)
    code, text = call("encode", tmp_path / "a.trx", tmp_path / "o.safetensors", "--max-error-mm", "0.01")
    assert (code, "E-CODEC-BOUND" in text) == (64, True)
    code, text = call("encode", tmp_path / "none.trx", tmp_path / "o.safetensors")
    assert code == 66
    assert call("frobnicate")[0] == 64


def test_a_file_of_other_weights_is_not_decoded(lines: Streamlines, tmp_path: Path, weights: Path, capsys) -> None:
    other = tmp_path / "other-1"
    write_weights(other, *BundleCodec.tiny(9).weights(), card="")
    write_tractogram(tmp_path / "a.trx", lines, training_grid())
    assert main(["encode", str(tmp_path / "a.trx"), str(tmp_path / "a.safetensors"), "--weights", str(other)]) == 0
    assert main(["decode", str(tmp_path / "a.safetensors"), str(tmp_path / "b.trx"), "--weights", str(weights)]) == 65
    assert "E-CODEC-OTHER" in capsys.readouterr().err
