"""The dry run: the right facts from headers and tables alone, nothing written, and the code the run would end with."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from tractode.cli.plan import disk_gb
from tractode.cli.run import main
from tractode.generative.codec import BundleCodec
from tractode.generative.gentract import GenTract
from tractode.io.weights import write_weights

OPTIONS = ["participant", "--dry-run", "--device", "cpu", "--output-spaces", "native"]


def dry_run(capsys: pytest.CaptureFixture[str], bids: Path, out: Path, *words: str) -> tuple[int, str, str]:
    code = main([str(bids), str(out), *OPTIONS, *words])
    text, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, text, err


def test_the_plan_and_nothing_written(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bids / "sub-01/dwi/._sub-01_dwi.nii.gz").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    code, text, err = dry_run(capsys, bids, tmp_path / "out", "--participant-label", "01", "02")
    assert (code, err) == (0, "")
    assert "2 participant(s), 2 dwi run(s)" in text
    assert "6 x 5 x 4 x 16 voxels of 2.00 x 2.01 x 2.01 mm; 1 b=0; b=1000 (15 directions)" in text
    assert "model dti: will run: recipe auto; the data support it" in text
    assert "model csd: will run: recipe auto, the first of" in text
    assert "the largest step is" in text
    assert "._sub-01_dwi.nii.gz" in text
    assert "Memory: about" in text
    assert "Disk: about" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_cannot_run_is_told_why(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], add_run: Callable[..., Path]
) -> None:
    add_run(bids, "04", n_directions=4)
    code, text, _ = dry_run(capsys, bids, tmp_path / "out", "--participant-label", "04", "--models", "dti")
    assert "model dti: will not run: refused: The tensor has 7 unknowns" in text
    assert "model csd: left out: " in text
    assert code == 0


def test_no_image_is_opened_beyond_its_header(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], add_run: Callable[..., Path]
) -> None:
    path = add_run(bids, "01", shape=(64, 64, 28))  # several of the reader's blocks
    whole = gzip.decompress(path.read_bytes())
    # A wrong checksum is an error to whoever reads the voxels.
    damaged = bytearray(gzip.compress(whole))
    damaged[-6] ^= 0xFF
    path.write_bytes(bytes(damaged))
    code, text, _ = dry_run(capsys, bids, tmp_path / "out", "--participant-label", "01")
    assert code == 0
    assert "64 x 64 x 28 x 16" in text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("sub-01_dwi.bval", "0 1000\n", 65),
        ("sub-01_dwi.bvec", "not a number\n", 65),
        ("sub-01_dwi.nii.gz", "version https://git-lfs.github.com/spec/v1\n", 66),
        ("sub-01_dwi.json", "{", 65),
    ],
)
def test_bad_inputs_are_found_without_a_run(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, expected: int
) -> None:
    (bids / "sub-01/dwi" / name).write_text(content)
    code, text, err = dry_run(capsys, bids, tmp_path / "out", "--participant-label", "01", "02")
    assert code == expected
    assert name in err
    assert "model dti: will run" in text, "the other participant's plan is still shown"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder, *GenTract.tiny(0).weights(), card="tiny")
    return str(folder)


def test_what_is_generated_with_what_is_said(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: str
) -> None:
    words = ["--participant-label", "01", "--tracking", "gentract", "--gentract-weights", weights]
    code, text, _ = dry_run(capsys, bids, tmp_path / "out", *words)
    assert code == 0
    assert "streamlines of 3 bundles are generated" in text
    assert "streamlines gentract: will be refused: a slab of 8 mm" in text
    assert "gentract" not in dry_run(capsys, bids, tmp_path / "out", "--participant-label", "01")[1]


def test_weights_and_bundles_that_are_not_there_end_the_run_before_it_starts(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: str
) -> None:
    code, _, err = dry_run(capsys, bids, tmp_path, "--tracking", "gentract", "--gentract-weights", str(tmp_path))
    assert code == 69
    assert "E-WEIGHTS-MISSING" in err
    words = ["--tracking", "gentract", "--gentract-weights", weights, "--gentract-bundles", "tw"]
    code, _, err = dry_run(capsys, bids, tmp_path / "out", *words)
    assert code == 64
    assert "did you mean two" in err


def test_estimates_grow_with_the_data() -> None:
    small, large = (96, 96, 60, 33), (140, 140, 92, 300)
    assert disk_gb(large, (1.5, 1.5, 1.5), 0) > 2
    assert disk_gb(small, (2.0, 2.0, 2.0), 100_000) > disk_gb(small, (2.0, 2.0, 2.0), 0)


def test_real_dataset(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = dry_run(capsys, test_data / "bids_real", tmp_path / "out")
    assert code == 0
    assert "6 participant(s)" in text
    assert "sub-xa30_dir-AP" in text
    assert "anatomy: none; registered by its b=0" in text
    assert "sub-xa30_acq-nonorm" not in text or "Ignored" in text


def test_bundles_are_announced_and_weights_that_are_not_there_stop_the_run(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(tmp_path / "tiny-1", *BundleCodec.tiny(0).weights(), card="")
    words = ("--participant-label", "01", "--encode-bundles", "--codec-weights", str(tmp_path / "tiny-1"))
    code, text, _ = dry_run(capsys, bids, tmp_path / "out", *words)
    assert code == 0
    assert "bundles of sdstream: will be named if the registration passes" in text
    assert "Bundles are named (2 of them) with the weights tiny-1" in text
    code, _, err = dry_run(capsys, bids, tmp_path / "out", *words[:-1], str(tmp_path / "none-1"))
    assert (code, "E-WEIGHTS-MISSING" in err) == (69, True)
