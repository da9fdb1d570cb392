"""Compressed tractograms: what is decoded keeps the bound, what is written is read, and what is not whole is refused."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tractode.contracts import Codes
from tractode.errors import InputDataError, MissingInputError, UsageError
from tractode.fields import ImageGrid, Streamlines
from tractode.fields.line_shape import one_way, resampled
from tractode.generative.bounded_code import (
    N_POINTS,
    ErrorSpread,
    bounded,
    decoded_rows,
    fewest_points,
    largest_error,
    refined,
    tiers,
)
from tractode.generative.space import training_grid
from tractode.io import compressed_tractogram as files

SPACE = "MNI152NLin2009aSym"


class Knots:
    """A plain codec: eight knots in a box of 256 mm; every stage halves the steps of all 24 coordinates."""

    label: ClassVar[str] = "knots"
    box: ImageGrid = training_grid()
    most_stages = 8

    def __init__(self, stages: int = 8) -> None:
        self.levels = (1 << 24,) * stages

    def with_stages(self, stages: int) -> Knots:
        return Knots(stages)

    def encode(self, streamlines: Streamlines) -> Codes:
        steps = (resampled(one_way(streamlines), 8) + 128).floor().long().clamp(0, 255).flatten(1)
        stages = [((steps >> (7 - k)) & 1) @ (1 << torch.arange(24)) for k in range(len(self.levels))]
        return Codes(torch.stack(stages, 1), len(streamlines))

    def decode(self, codes: Codes, n_points: int = 64) -> Streamlines:
        place = torch.full((codes.n_streamlines, 24), -128.0, dtype=torch.float64)
        for k in range(codes.values.shape[1]):
            place += ((codes.values[:, k, None] >> torch.arange(24)) & 1) * float(1 << (7 - k))
        place += float(1 << (7 - codes.values.shape[1])) if codes.values.shape[1] < 8 else 0.5
        points = refined(place.reshape(-1, 8, 3), n_points)
        return Streamlines(points.flatten(0, 1).float(), torch.arange(len(points) + 1) * n_points, SPACE)


def lines_of(n: int, generator: torch.Generator, wiggle: float = 1.0) -> Streamlines:
    """Bent lines of 5 to 90 points; the last one is a coil that no code is near."""
    made = []
    for _ in range(n - 1):
        count = int(torch.randint(5, 90, (1,), generator=generator))
        share = torch.linspace(0, 1, count)[:, None]
        ends = torch.rand(2, 3, generator=generator) * 80 - 40
        noise = torch.randn(count, 3, generator=generator) * wiggle
        made.append(ends[0] + share * (ends[1] - ends[0]) + 20 * torch.sin(3 * share) + noise)
    turn = torch.linspace(0, 40 * torch.pi, 700)
    made.append(torch.stack([15 * turn.cos(), 15 * turn.sin(), turn / 4], 1))
    return Streamlines.from_list(made, SPACE)


@pytest.fixture
def lines(generator: torch.Generator) -> Streamlines:
    return lines_of(60, generator)


def content_of(lines: Streamlines, bound: float = 3.0) -> files.Compressed:
    return files.compressed(Knots(), bounded(Knots(), lines, bound), {"model.safetensors": "ab" * 32}, bound, {"a": 1})


@pytest.mark.parametrize("bound", [0.1, 2.0, 4.0, 9.0])
def test_no_point_of_any_line_is_farther_than_the_bound(lines: Streamlines, tmp_path: Path, bound: float) -> None:
    files.write_compressed(tmp_path / "a.safetensors", content_of(lines, bound))
    content = files.read_compressed(tmp_path / "a.safetensors")
    back = files.restored(content, Knots())
    assert len(back) == len(lines)
    assert 0 < int(content.is_exact.sum()) <= len(lines)
    # Here both lines are sampled far more finely than their points: the error is a distance of curves, not of vertices.
    fine, truth = resampled(back, 2001), resampled(one_way(lines), 2001)
    straight = ~content.is_exact
    decoded = refined(back.select(straight.nonzero().ravel()).points.reshape(-1, N_POINTS, 3), 2001)
    if bool(straight.any()):
        assert float((decoded - truth[straight]).norm(dim=-1).max()) <= bound + 1e-3
        assert int(back.n_points[straight].unique()) == N_POINTS
    for row in content.is_exact.nonzero().ravel().tolist():
        same_steps = int(back.n_points[row]) != int(lines.n_points[row])
        other = refined(back[row][None], 2001)[0] if same_steps else fine[row]
        assert float((other - truth[row]).norm(dim=-1).max()) <= bound + 0.05


def test_the_largest_error_is_exact_between_points() -> None:
    """A tent of one millimetre over a straight line: no vertex of the straight one is where the error is greatest."""
    tent = Streamlines.from_list([torch.tensor([[0.0, 0, 0], [5, 1, 0], [10, 0, 0]])], SPACE)
    straight = torch.tensor([[[0.0, 0, 0], [10, 0, 0]]])
    assert float(largest_error(tent, straight)) == pytest.approx(1.0, abs=1e-6)
    flat = Streamlines.from_list([torch.tensor([[0.0, 0, 0], [10, 0, 0]])], SPACE)
    assert float(largest_error(flat, tent.points[None])) == pytest.approx(1.0, abs=1e-6)


def test_errors_are_gathered_as_they_are_stored(lines: Streamlines) -> None:
    spread = ErrorSpread()
    stored = bounded(Knots(), lines, 3.0, spread)
    facts = spread.facts()
    assert spread.n == len(lines) * N_POINTS
    assert facts["Mean"] < facts["Percentile95"] <= facts["Maximum"] <= 3.0
    assert float(stored.error.max()) <= 3.0
    assert ErrorSpread().facts()["Mean"] is None


def test_lines_take_the_fewest_stages_that_keep_the_bound(lines: Streamlines) -> None:
    codec, truth = Knots(), one_way(lines)
    stored = bounded(codec, lines, 4.0)
    assert len(stored.stages.unique()) > 3
    codes = codec.encode(truth).values
    assert torch.equal(stored.codes, codes)
    errors = {k: largest_error(truth, decoded_rows(codec, codes, k)) for k in tiers(8)}
    for row, stage in enumerate(stored.stages.tolist()):
        for k, error in errors.items():
            assert (k < stage or stage == 0) == (float(error[row]) > 4.0) or k > stage > 0


def test_the_fewest_points_keep_the_bound_and_fewer_do_not(lines: Streamlines) -> None:
    needed = fewest_points(lines, 2.0)
    for row, n in enumerate(needed.tolist()):
        one = lines.select(torch.tensor([row]))
        assert float(largest_error(one, resampled(one, n))) <= 2.0
        assert n == 4 or float(largest_error(one, resampled(one, max(4, n // 2)))) > 2.0


def test_a_bound_that_float16_cannot_keep_is_refused(lines: Streamlines) -> None:
    with pytest.raises(UsageError, match=r"0\.05 mm") as caught:
        bounded(Knots(), lines, 0.05)
    assert caught.value.id == "E-CODEC-BOUND"


def test_reversed_lines_give_the_same_bytes_and_so_does_the_same_file_twice(lines: Streamlines, tmp_path: Path) -> None:
    backwards = Streamlines.from_list([line.flip(0) for line in lines], SPACE)
    for name, some in (("a", lines), ("b", backwards), ("c", lines)):
        files.write_compressed(tmp_path / name, content_of(some))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_what_is_written_is_read(lines: Streamlines, tmp_path: Path) -> None:
    content = content_of(lines)
    files.write_compressed(tmp_path / "a.safetensors", content)
    back = files.read_compressed(tmp_path / "a.safetensors")
    for item in dataclasses.fields(content):
        mine, its = getattr(content, item.name), getattr(back, item.name)
        assert torch.equal(mine, its) if isinstance(mine, torch.Tensor) else mine == its, item.name
    files.check_weights(back, {"model.safetensors": "ab" * 32})
    with pytest.raises(InputDataError, match="other weights") as caught:
        files.check_weights(back, {"model.safetensors": "cd" * 32})
    assert caught.value.id == "E-CODEC-OTHER"


def test_no_lines_at_all(tmp_path: Path) -> None:
    nothing = Streamlines.from_list([], SPACE)
    files.write_compressed(tmp_path / "a.safetensors", content_of(nothing))
    assert len(files.restored(files.read_compressed(tmp_path / "a.safetensors"), Knots())) == 0


@pytest.mark.parametrize("levels", [(2,), (5, 5, 5, 8), (64, 64, 60) * 8, (3,) * 90, (1, 7), (1 << 40, 1 << 40)])
@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_codes_are_packed_to_the_bit(levels: tuple[int, ...], n: int, generator: torch.Generator) -> None:
    codes = (torch.rand(n, len(levels), generator=generator, dtype=torch.float64) * torch.tensor(levels)).long()
    codes[: n // 2] = torch.tensor(levels) - 1
    content = files.packed(codes, levels)
    assert len(content) == (n * files.bits_of(levels) + 7) // 8
    assert torch.equal(files.unpacked(content, levels, n), codes)
    assert files.bits_of(levels) <= np.log2(np.array(levels, float)).sum() + len(files.words_of(levels))


def test_parts_of_many_lines_join(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    monkeypatch.setattr(files, "_ROWS", 16)
    codes = torch.randint(0, 5, (100, 3), generator=generator)
    content = files.packed(codes, (5, 5, 5))
    assert torch.equal(files.unpacked(content, (5, 5, 5), 100), codes)
    monkeypatch.undo()
    assert content.tobytes() == files.packed(codes, (5, 5, 5)).tobytes()


def test_codes_out_of_range_are_our_mistake() -> None:
    with pytest.raises(ValueError, match="below their level"):
        files.packed(torch.tensor([[5]]), (5,))


def _with_header(content: bytes, **changes: object) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + size])
    inner = {**json.loads(outer["__metadata__"]["tractogram"]), **changes}
    outer["__metadata__"]["tractogram"] = json.dumps({key: value for key, value in inner.items() if value is not None})
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:5],
        lambda content: b"",
        lambda content: content + b"x",
        lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
        lambda content: b"mrtrix tracks\n" + content,
        lambda content: _with_header(content, format="other"),
        lambda content: _with_header(content, n_streamlines=61),
        lambda content: _with_header(content, n_streamlines="60"),
        lambda content: _with_header(content, n_exact=-1),
        lambda content: _with_header(content, levels=[2] * 8),
        lambda content: _with_header(content, tiers=[2, 3, 4, 5, 6, 7]),
        lambda content: _with_header(content, tiers=[8, 7, 6, 5, 4, 3, 2]),
        lambda content: _with_header(content, tiers=[2, 3, 4, 5, 6, 7, 9]),
        lambda content: _with_header(content, levels=[]),
        lambda content: _with_header(content, levels=None),
        lambda content: _with_header(content, bound_mm=0.0),
        lambda content: _with_header(content, centre_mm=[0.0]),
        lambda content: _with_header(content, sha256="0" * 64),
    ],
)
def test_a_file_that_is_not_whole_is_refused(lines: Streamlines, tmp_path: Path, change) -> None:
    path = tmp_path / "a.safetensors"
    files.write_compressed(path, content_of(lines))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputDataError) as caught:
        files.read_compressed(path)
    assert (caught.value.id, caught.value.exit_code) == ("E-CODEC-FILE", 65)


def test_files_of_others_and_of_later_versions_and_none(lines: Streamlines, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputDataError, match="not a compressed tractogram"):
        files.read_compressed(path)
    files.write_compressed(path, content_of(lines))
    path.write_bytes(_with_header(path.read_bytes(), version=2))
    with pytest.raises(InputDataError, match="version 2") as caught:
        files.read_compressed(path)
    assert caught.value.id == "E-CODEC-VERSION"
    with pytest.raises(MissingInputError):
        files.read_compressed(tmp_path / "none.safetensors")
