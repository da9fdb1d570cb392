"""The group level: what the ledgers and maps of an output folder say, and nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tractode.bids.dataset import write_description
from tractode.bids.manifest import Ledger
from tractode.cli.run import main
from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid
from tractode.io.nifti import write_image
from tractode.workflows.group import DICTIONARY, write_group


def finished(out: Path, label: str, affine: torch.Tensor, fa: float) -> None:
    """What a participant's run leaves, in small."""
    ledger = Ledger(out, label, "run")
    run = f"sub-{label}_ses-a_dir-AP"
    steps = [f"{run}_prepare-dwi", f"{run}_fit-dti", f"{run}_track-sdstream", f"{run}_measure-boundary"]
    ledger.promise(
        [{"step": f"sub-{label}_prepare-T1w", "run": f"sub-{label}"}, *({"step": step, "run": run} for step in steps)]
    )
    grid = ImageGrid((4, 3, 2), affine, f"{run}_dwi")
    mask = torch.zeros(1, 4, 3, 2)
    mask[:, 1:3] = 1
    values = torch.where(mask > 0, fa, 9.0)
    folder = Path(f"sub-{label}/ses-a/dwi")
    with ledger.writing(f"sub-{label}_prepare-T1w", [], {}) as writer:
        writer.facts.update(shape=[4, 3, 2], quality={"dice": 0.93}, folding={"n_folded": 0})
    with ledger.writing(steps[0], [], {}) as writer:
        writer.write(
            "mask", folder / f"{run}_desc-brain_mask.nii.gz", lambda path: write_image(path, Image(grid, mask))
        )
        writer.facts.update(
            shape=[4, 3, 2, 33], voxel_sizes=[2.0, 2.0, 2.5], shells=[{"b": 1000, "directions": 32}], n_b0=1
        )
        writer.facts["gradients"] = {"verdict": "PASS"}
    with ledger.writing(steps[1], [], {}) as writer:
        name = f"{run}_model-tensor_param-fa_dwimap.nii.gz"
        writer.write("fa", folder / name, lambda path: write_image(path, Image(grid, values)))
    with ledger.writing(steps[2], [], {}) as writer:
        writer.facts.update(n_streamlines=100, median_length_mm=42.5)
    with ledger.writing(steps[3], [], {}) as writer:
        writer.facts["boundary"] = {"distance": 0.61}


@pytest.fixture
def out(tmp_path: Path, oblique_affine: torch.Tensor) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    write_description(folder, None)
    for index, label in enumerate(("01", "02")):
        finished(folder, label, oblique_affine, 0.3 + index / 10)
    ledger = Ledger(folder, "03", "run")
    ledger.promise([{"step": "sub-03_prepare-dwi", "run": "sub-03"}, {"step": "sub-03_fit-dti", "run": "sub-03"}])
    ledger.record_error(
        "sub-03_prepare-dwi", InputDataError("<b>wrong</b>\ttable", id="E-X"), {"gradients": {"verdict": "FAIL"}}
    )
    (folder / "sub-01.html").write_text("")
    return folder


def read(out: Path) -> list[dict[str, str]]:
    with (out / "group_desc-qc.tsv").open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_rows_say_what_the_runs_left(out: Path) -> None:
    write_group(out)
    first, second, third = read(out)
    assert first["participant_id"] == "sub-01"
    assert first["session_id"] == "ses-a"
    assert (first["status"], third["status"]) == ("complete", "failed")
    assert first["n_volumes"] == "33"
    assert first["voxel_volume"] == "10.0"
    assert first["max_b"] == "1000"
    assert (first["gradient_verdict"], third["gradient_verdict"]) == ("PASS", "FAIL")
    assert np.isclose(float(first["median_fa"]), 0.3, atol=1e-3), "inside the mask only"
    assert np.isclose(float(second["median_fa"]), 0.4, atol=1e-3)
    assert first["template_dice"] == "0.93"
    assert (first["boundary_distance"], third["boundary_distance"]) == ("0.61", "n/a")
    assert first["n_streamlines"] == "100"
    assert third["n_errors"] == "1"
    assert third["median_fa"] == "n/a"


def test_every_column_is_in_the_dictionary_and_the_page(out: Path) -> None:
    write_group(out)
    assert list(read(out)[0]) == list(DICTIONARY) == list(json.loads((out / "group_desc-qc.json").read_text()))
    page = (out / "group.html").read_text()
    assert all(column in page for column in DICTIONARY)
    assert 'href="sub-01.html"' in page
    assert 'href="sub-02.html"' not in page
    assert "<b>wrong</b>" not in page
    assert "&lt;b&gt;wrong" in page


def test_idempotent_and_reads_nothing_but_the_output(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "not-there"), str(out), "group"]) == 0
    before = {path: path.read_bytes() for path in out.glob("group*")}
    assert len(before) == 3
    assert main([str(tmp_path / "not-there"), str(out), "dataset", "--nprocs", "1"]) == 0
    assert {path: path.read_bytes() for path in out.glob("group*")} == before
    assert "group.html" in capsys.readouterr().out


def test_a_missing_output_is_seen(out: Path) -> None:
    next(out.glob("sub-01/**/*_dwimap.nii.gz")).unlink()
    write_group(out)
    assert read(out)[0]["status"] == "unfinished"
    assert read(out)[0]["median_fa"] == "n/a"


def test_labels_and_empty_folders(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["x", str(out), "group", "--participant-label", "02"]) == 0
    assert [row["participant_id"] for row in read(out)] == ["sub-02"]
    assert main(["x", str(out), "group", "--participant-label", "09"]) == 18
    assert main(["x", str(tmp_path / "none"), "group"]) == 66
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def with_bundles(out: Path, label: str, weights: str, rows: list[str]) -> None:
    """A step that named bundles, after those that are there."""
    ledger = Ledger(out, label, "run")
    step = f"sub-{label}_ses-a_dir-AP_encode-sdstream"
    ledger.promise([*ledger.plan()["steps"], {"step": step, "run": f"sub-{label}_ses-a_dir-AP"}])
    text = "bundle\tn_streamlines\tlength\twidth\tconfidence\tlatent_000\tlatent_001\n" + "".join(rows)
    coding = {"Weights": {"Name": "codec-1", "SHA256": {"model.safetensors": weights, "settings.toml": "ff"}}}
    with ledger.writing(step, [], {}) as writer:
        path = Path(f"sub-{label}/ses-a/dwi/sub-{label}_ses-a_dir-AP_track-sdstream_bundles.tsv")
        writer.write("bundles", path, lambda path: path.write_text(text))
        writer.facts.update(track="sdstream", coding=coding)


def test_bundles_of_all_are_gathered_and_mapped(out: Path) -> None:
    write_group(out)
    assert not (out / "group_bundles.tsv").exists()
    assert "Map of the latents" not in (out / "group.html").read_text()
    rows = ["Association_ArcuateFasciculusL\t5\t90.1\t4.2\t0.91\t1.5\t-2\n", "CCBody\t7\t80\t6\t0.8\t0\t3\n"]
    with_bundles(out, "01", "aa", rows)
    with_bundles(out, "02", "aa", rows[:1])
    with_bundles(out, "03", "bb", rows[1:])
    write_group(out)
    with (out / "group_bundles.tsv").open() as stream:
        found = list(csv.DictReader(stream, delimiter="\t"))
    assert [(row["participant_id"], row["bundle"], row["weights"]) for row in found] == [
        ("sub-01", "Association_ArcuateFasciculusL", "aa"), ("sub-01", "CCBody", "aa"),
        ("sub-02", "Association_ArcuateFasciculusL", "aa"), ("sub-03", "CCBody", "bb"),
    ]  # fmt: skip
    assert found[0]["session_id"] == "ses-a"
    assert found[0]["latent_001"] == "-2"
    assert found[0].keys() == json.loads((out / "group_bundles.json").read_text()).keys()
    page = (out / "group.html").read_text()
    assert "Map of the latents" in page
    assert "1 rows of the table were made with other weights" in page
    before = (out / "group.html").read_bytes()
    write_group(out)
    assert (out / "group.html").read_bytes() == before


@pytest.mark.parametrize("text", ["", "bundle\tlatent_000\nCC\tx\n", "bundle\tlatent_000\nCC\n", "a\tb\n1\t2\n", "\0"])
def test_a_table_that_cannot_be_read_is_passed_over(out: Path, text: str) -> None:
    with_bundles(out, "01", "aa", [])
    (out / "sub-01/ses-a/dwi/sub-01_ses-a_dir-AP_track-sdstream_bundles.tsv").write_text(text)
    write_group(out)
    assert not (out / "group_bundles.tsv").exists()
