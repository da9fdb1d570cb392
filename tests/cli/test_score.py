"""``tractode-score``: two tractograms with each other, its errors, and the one way to end that it shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tractode.cli.score import main as score
from tractode.cli.simulate import main as simulate
from tractode.fields import ImageGrid, Streamlines
from tractode.io.tractogram import write_tractogram


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid((30, 12, 12), oblique_affine, "world")


def bundle(shift: float, with_seeds: bool = False) -> Streamlines:
    x = torch.linspace(0, 40, 41)
    lines = [torch.stack([x, torch.full_like(x, y + shift), 0 * x], -1) for y in (0.5, 0.6, 4.5)]
    made = Streamlines.from_list(lines, "world")
    data = {"seed": torch.arange(3)} if with_seeds else {}
    return Streamlines(made.points, made.offsets, "world", {}, data)


def test_two_files(tmp_path: Path, grid: ImageGrid, capsys: pytest.CaptureFixture[str]) -> None:
    write_tractogram(tmp_path / "a.trx", bundle(0.0, True), grid)
    write_tractogram(tmp_path / "b.trx", bundle(0.25, True), grid)
    assert score(["compare", str(tmp_path / "a.trx"), str(tmp_path / "b.trx"), "--voxel-size", "1"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["mdf_mm"] == pytest.approx(0.65 / 3, abs=1e-5)  # 0.5 to 0.75, 0.6 to 0.75, 4.5 to 4.75; and back
    assert got["density_correlation"] == pytest.approx(1)  # within voxels of 1 mm
    assert got["n"] == {"first": 3, "second": 3, "voxels": 2 * 40}
    assert got["lines"]["within_1_mm"] == 1
    assert got["lines"]["within_0_1_mm"] == 0


def test_two_folders_of_bundles(tmp_path: Path, grid: ImageGrid, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name, shift in (("a", "CST", 0), ("a", "AF", 0), ("b", "CST", 0.5), ("b", "UF", 0)):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_tractogram(tmp_path / folder / f"{name}.{'tck' if folder == 'b' else 'trx'}", bundle(shift), grid)
    assert score(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    got = json.loads(capsys.readouterr().out)
    assert list(got["bundles"]) == ["CST"]
    assert got["missing"] == ["AF", "UF"]
    assert got["mdf_mm"] == pytest.approx(1.4 / 3, abs=1e-5)
    assert "lines" not in got["bundles"]["CST"]


def test_errors_have_their_codes(tmp_path: Path, grid: ImageGrid, capsys: pytest.CaptureFixture[str]) -> None:
    write_tractogram(tmp_path / "a.trx", bundle(0), grid)
    (tmp_path / "empty").mkdir()
    a, empty = str(tmp_path / "a.trx"), str(tmp_path / "empty")
    assert score(["compare", a, str(tmp_path / "missing.trx")]) == 66
    assert score(["compare", a, empty]) == 66
    assert score(["compare", empty, empty]) == 18
    assert score(["compare", a, a, "--participant-label", "01"]) == 64
    assert score(["compare", a, a, "--voxel-size", "0"]) == 64
    assert score(["nothing", a, a]) == 64
    assert score(["all", a, empty]) == 66
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [score, simulate])
def test_both_commands_end_alike(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--version"]) == 0  # type: ignore[operator]
    assert command(["--no-such-thing"]) == 64  # type: ignore[operator]
    error = capsys.readouterr().err
    assert error.startswith("[E-CLI-USAGE]")
    assert "--help" in error
