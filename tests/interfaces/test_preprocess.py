"""Preprocessing as the app runs it: every step's switch, what is written of it, preprocessed scans, runs put together."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tests.interfaces.painted_head import LOST, MOVED, SHIFT, Head, part_of

from tractode.bids.found import DwiRun
from tractode.bids.manifest import StepWriter
from tractode.bids.query import find_participants
from tractode.bids.spec_files import load
from tractode.errors import InputDataError
from tractode.fields import DWI, Image
from tractode.interfaces import masks, prepared_files, preprocess, scan
from tractode.interfaces.preprocess import Part, PreprocessPlan, Steps, slice_axis_of
from tractode.interfaces.scan import PrepareDwi
from tractode.interfaces.step import Job
from tractode.io.dwi import IngestPolicy
from tractode.io.gradients import write_gradients
from tractode.io.nifti import read_image, write_image
from tractode.preprocess.gradient_check import GradientVerdict, check_gradients
from tractode.reports import figures_gradients, figures_slices
from tractode.reports.reportlet import Reportlet

ALL = PreprocessPlan("auto", "auto", "auto", "auto", "auto", sloppy=True)


@pytest.fixture
def quick(head: Head, monkeypatch: pytest.MonkeyPatch, verdict: GradientVerdict) -> None:
    """Without the check of the table and without pictures, which other tests look at."""
    monkeypatch.setattr(scan, "check_gradients", lambda *_: verdict)
    monkeypatch.setattr(prepared_files, "figures", lambda *_: [])
    monkeypatch.setattr(scan, "_compared", lambda *_: [])
    monkeypatch.setattr(figures_slices, "mosaic", lambda *_, **__: _BLANK)
    monkeypatch.setattr(figures_gradients, "sphere", lambda *_, **__: _BLANK)


_BLANK = Reportlet("blank", "dwi", "", "", "", "html")


@pytest.fixture(scope="module")
def verdict(head: Head) -> GradientVerdict:
    series = head.series()
    return check_gradients(DWI(head.grid, series, head.gtab, series[0] > 100), torch.Generator().manual_seed(0))


def write_run(root: Path, head: Head, label: str = "", seed: int = 0, n: int | None = None, **more: Any) -> None:
    stem = root / "sub-01" / "dwi" / f"sub-01_{label}dwi"
    stem.parent.mkdir(parents=True, exist_ok=True)
    facts = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05, "SliceEncodingDirection": "k"} | more
    stem.with_suffix(".json").write_text(json.dumps(facts))
    kept = slice(0, n)
    write_image(stem.with_suffix(".nii.gz"), Image(head.grid, head.series(seed)[kept]))
    write_gradients(head.gtab[kept], head.grid.affine, stem.with_suffix(".bval"), stem.with_suffix(".bvec"))


def prepared(root: Path, plan: PreprocessPlan, *, combine: bool = False, run: DwiRun | None = None) -> Any:
    if run is None:
        (run,) = find_participants(root, sdc="none", combine_runs=combine).participants[0].runs
    job = Job(root, root / "out", "01", "run", "cpu", 0, 1, True)
    step = PrepareDwi(job=job, step="prepare", run=run, policy=IngestPolicy(), plan=plan, accept_gradients=True)
    return step.run().outputs


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_every_step_does_its_work_and_says_so(
    head: Head, verdict: GradientVerdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scan, "check_gradients", lambda *_: verdict)
    monkeypatch.setattr(scan, "_compared", lambda *_: [])
    write_run(tmp_path, head)
    done = prepared(tmp_path, ALL)
    records = done.facts["preprocessing"]
    assert [name for name, record in records.items() if record["done"]] == list(records), records
    assert list(records) == ["denoising", "unringing", "motion", "outliers", "bias"]

    confounds = rows(done.outputs["confounds"])
    assert len(confounds) == len(head.gtab)
    shift = torch.tensor([[float(row[f"trans_{c}"]) for c in "xyz"] for row in confounds])
    assert float((shift[MOVED] - shift.median(0).values - torch.tensor([0.0, SHIFT, 0.0])).norm()) < 1.5
    assert int(confounds[LOST[0]]["slice_outliers"]) >= 1
    slices = json.loads(Path(done.outputs["slice-qc"]).read_text())["Runs"]["sub-01"]
    assert list(LOST) in slices["Outliers"]
    assert slices["SliceAxis"] == "k"

    (row,) = rows(done.outputs["image-qc"])
    assert float(row["processed_masked_neighbor_corr"]) > float(row["raw_masked_neighbor_corr"])
    assert int(row["num_bad_slices"]) == done.facts["outlier_slices"] >= 1
    for kind in ("image-qc", "confounds"):
        dictionary = json.loads(Path(done.outputs[f"{kind}-sidecar"]).read_text())
        assert list(dictionary) == list(rows(done.outputs[kind])[0])
        assert all(entry["Description"] for entry in dictionary.values())

    content = json.loads(Path(done.outputs["dwi-sidecar"]).read_text())
    assert {name: step["Done"] for name, step in content["Preprocessing"].items()} == {
        n.capitalize(): True for n in records
    }
    cited = {key for _, key in done.facts["sentences"]}
    assert cited <= set(load("references")["references"])
    assert len(cited) == 5
    pictures = " ".join(done.facts["reportlets"])
    for name in ("steps", "noise", "weighted", "carpet", "motion", "slices", "bias"):
        assert f"desc-{name}_" in pictures

    # The moved volume and the lost slice are back where the rest is.
    after = read_image(Path(done.outputs["dwi"]), "scan")[0].values
    before = head.series()
    brain = read_image(Path(done.outputs["mask"]), "scan")[0].mask
    for volume, where in ((MOVED, brain), (LOST[0], brain & _slice(brain, LOST[1]))):
        like = next(v for v in range(len(head.gtab)) if v not in (MOVED, LOST[0]) and not head.gtab.is_b0[v])
        assert _alike(after, volume, like, where) > _alike(before, volume, like, where) + 0.02


def _slice(mask: torch.Tensor, number: int) -> torch.Tensor:
    out = torch.zeros_like(mask)
    out[:, :, number] = True
    return out


def _alike(signal: torch.Tensor, volume: int, other: int, where: torch.Tensor) -> float:
    """1 minus the relative difference of two volumes."""
    return 1 - float((signal[volume] - signal[other])[where].abs().mean() / signal[other][where].mean())


def test_an_empty_mask_that_came_along_is_not_used(head: Head, tmp_path: Path) -> None:
    reference = Image(head.grid, head.series()[:1])
    step = SimpleNamespace(inputs=SimpleNamespace(run=SimpleNamespace(mask=tmp_path / "mask.nii.gz")))
    for inside, is_taken in ((torch.zeros_like(reference.values), False), (reference.values > 0, True)):
        write_image(step.inputs.run.mask, Image(head.grid, inside.to(torch.uint8)))
        assert (PrepareDwi._given(step, reference) is not None) == is_taken


@pytest.mark.usefixtures("quick")
def test_what_is_switched_off_leaves_the_scan_as_it_is(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, head)
    done = prepared(tmp_path, PreprocessPlan(sloppy=True))
    assert {record["why"] for record in done.facts["preprocessing"].values()} == {"switched off"}
    after = read_image(Path(done.outputs["dwi"]), "scan")[0].values
    assert torch.equal(after, read_image(tmp_path / "sub-01/dwi/sub-01_dwi.nii.gz", "scan")[0].values)
    assert "confounds" not in done.outputs
    assert rows(done.outputs["image-qc"])[0]["processed_num_directions"] == "12"
    assert done.facts["sentences"] == []

    # A scan that was preprocessed elsewhere is not processed again, whatever is asked for.
    (run,) = find_participants(tmp_path, sdc="none").participants[0].runs
    done = prepared(tmp_path, ALL, run=replace(run, done_by="QSIPrep 1.0", mask=Path(done.outputs["mask"])))
    assert all("QSIPrep 1.0" in record["why"] for record in done.facts["preprocessing"].values())
    assert torch.equal(read_image(Path(done.outputs["dwi"]), "scan")[0].values, after)
    assert json.loads(Path(done.outputs["dwi-sidecar"]).read_text())["Description"].endswith(
        "preprocessed by QSIPrep 1.0"
    )
    assert "QSIPrep" in done.facts["distortion_correction"]


def test_what_a_scan_cannot_support_is_left_out_or_refused(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, head, n=4)
    (run,) = find_participants(tmp_path, sdc="none").participants[0].runs
    signal = head.series()[:4]
    series = DWI(head.grid, signal, head.gtab[:4], signal[0] > 100)
    steps = Steps()
    assert not steps.wants("motion", "auto", "", "too few")
    assert steps.records["motion"] == {"done": False, "why": "too few"}
    with pytest.raises(InputDataError, match="too few") as caught:
        steps.wants("motion", "on", "", "too few")
    assert caught.value.id == "E-PREPROCESS-CANNOT"
    part = Part(run, series, Image(head.grid, signal[:1]), {})
    preprocess.clean(part, replace(ALL, unring="none"), "cpu")
    preprocess.find_motion(part, ALL, "cpu")
    assert not any(record["done"] for record in part.steps.records.values())
    assert "motion, which was not" in part.steps.records["outliers"]["why"]
    assert part.scan is series
    with pytest.raises(InputDataError, match="Denoising was asked for"):
        preprocess.clean(part, replace(ALL, denoise="on"), "cpu")


def test_a_mask_of_another_grid_is_not_said_to_be_used(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    series = DWI(head.grid, head.series(), head.gtab, torch.ones(head.grid.shape, dtype=torch.bool))
    own = Image(head.grid, series.mask[None])
    verdict = SimpleNamespace(mask=own, masks={}, passed=True, record=lambda: {"used": ["threshold"]})
    monkeypatch.setattr(masks, "scan_mask", lambda *_: verdict)
    run, writer = Mock(spec=DwiRun), Mock(spec=StepWriter)
    run.name, run.mask, writer.facts = "sub-01", Path("its_mask.nii.gz"), {}
    _, notes = masks.voted_mask(writer, "01", series, lambda _: None, "auto", run)
    assert writer.facts["brain_mask"]["used"] == ["threshold"]
    assert [note.id for note in notes] == ["W-MASK-GRID"]
    _, notes = masks.voted_mask(writer, "01", series, lambda _: own, "auto", run)
    assert writer.facts["brain_mask"]["used"] == ["given"]
    assert notes == []


@pytest.mark.usefixtures("quick")
def test_runs_put_together(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        write_run(tmp_path, head, f"run-{number}_", number)
    done = prepared(tmp_path, PreprocessPlan(bias="on", sloppy=True), combine=True)
    assert Path(done.outputs["dwi"]).name == "sub-01_desc-preproc_dwi.nii.gz"
    assert read_image(Path(done.outputs["dwi"]), "scan")[0].values.shape[0] == 2 * len(head.gtab)
    assert done.facts["shape"][3] == 2 * len(head.gtab)
    record = done.facts["preprocessing"]["combining"]
    assert record["done"]
    assert record["factors"] == pytest.approx([1.0, 1.0], abs=0.02)
    content = json.loads(Path(done.outputs["dwi-sidecar"]).read_text())
    assert "sub-01_run-2" in content["Preprocessing"]["Combining"]["Runs"]
    assert len(content["Sources"]) == 6
    assert {Path(path).name for role, path in done.outputs.items() if role.startswith("verdict")} == {
        "sub-01_run-1_desc-gradients_qc.json", "sub-01_run-2_desc-gradients_qc.json"
    }  # fmt: skip


def test_a_step_that_was_asked_for_and_fails_is_an_error(head: Head) -> None:
    part = part_of(head, 2)
    empty = replace(part.scan, mask=torch.zeros_like(part.scan.mask))
    with pytest.raises(InputDataError, match="E-BIAS-EMPTY"):
        preprocess.even(empty, part.reference, PreprocessPlan(bias="on"), Steps(), "")
    _, shading = preprocess.even(empty, part.reference, PreprocessPlan(bias="auto"), part.steps, "")
    assert shading is None
    part.steps.did("outliers", "two", slices_left=2)
    assert [note.id for note in preprocess.failures([part], part.steps)] == ["W-PREPROCESS-FAILED", "W-SLICES-LOST"]
    with pytest.raises(InputDataError, match="Outliers"):
        preprocess.find_motion(part, PreprocessPlan(outliers="on"), "cpu")


@pytest.mark.parametrize(
    ("metadata", "axis"),
    [
        ({}, 2),
        ({"SliceEncodingDirection": "i-"}, 0),
        ({"PhaseEncodingDirection": "j"}, 2),
        ({"PhaseEncodingDirection": "k-"}, 0),
        ({"SliceEncodingDirection": "j", "PhaseEncodingDirection": "k"}, 1),
    ],
)
def test_the_axis_across_slices(metadata: dict[str, str], axis: int) -> None:
    assert slice_axis_of(metadata) == axis


def test_numbers_that_are_none_are_na() -> None:
    from tractode.bids.quality_tables import dictionary, table

    text = table([{"a": 1, "b": math.nan}, {"a": 0.25, "c": "x"}])
    assert text.splitlines() == ["a\tb\tc", "1\tn/a\tn/a", "0.25\tn/a\tx"]
    assert dictionary("image_qc", ["CNR2_mean"])["CNR2_mean"] == load("quality")["image_qc"]["CNR_mean"]


def test_a_step_that_one_of_the_joined_runs_lacks_is_told() -> None:
    first, second = Steps(), Steps()
    first.did("denoising", "MP-PCA")
    first.did("motion", "every volume registered")
    second.did("denoising", "MP-PCA")
    second.left("motion", "too few volumes")
    first.add_others([("sub-01_run-2", second)])
    assert first.records["denoising"] == {"done": True, "why": "MP-PCA"}
    assert not first.records["motion"]["done"]
    assert "sub-01_run-2: too few volumes" in first.records["motion"]["why"]
