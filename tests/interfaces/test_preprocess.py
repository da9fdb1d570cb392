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

from tractode.bids.found import DwiRun
from tractode.bids.manifest import StepWriter
from tractode.bids.query import find_participants
from tractode.bids.spec_files import load
from tractode.errors import InputDataError
from tractode.fields import DWI, Affine, GradientTable, Image, ImageGrid
from tractode.interfaces import interpolating, masks, prepared_files, preprocess, scan
from tractode.interfaces.preprocess import Part, PreprocessPlan, Steps, slice_axis_of
from tractode.interfaces.quality_rows import confound_rows
from tractode.interfaces.scan import PrepareDwi
from tractode.interfaces.step import Job
from tractode.io.builtin_template import load_builtin
from tractode.io.dwi import IngestPolicy
from tractode.io.gradients import write_gradients
from tractode.io.nifti import read_image, write_image
from tractode.ops import sphere
from tractode.ops import volume_pose as pose
from tractode.preprocess import merge, resample
from tractode.preprocess.gradient_check import GradientVerdict, check_gradients
from tractode.reports import figures_gradients, figures_slices
from tractode.reports.reportlet import Reportlet

ALL = PreprocessPlan("auto", "auto", "auto", "auto", "auto", sloppy=True)
MOVED, LOST = 5, (8, 10)  # the volume that moved, and the volume and slice that lost signal
SHIFT = 4.0  # mm


class Head:
    """A painted head, oblique and left-handed: two b=0 volumes and twelve directions, one moved, one with a lost slice."""

    def __init__(self) -> None:
        turn = torch.tensor([[0.0, -0.15, 0.05], [0.15, 0.0, -0.1], [-0.05, 0.1, 0.0]], dtype=torch.float64)
        affine = torch.eye(4, dtype=torch.float64)
        affine[:3, :3] = torch.linalg.matrix_exp(turn) @ torch.diag(torch.tensor([-7.0, 7.0, 7.0], dtype=torch.float64))
        affine[:3, 3] = torch.tensor([0.0, -18.0, 12.0], dtype=torch.float64) - affine[:3, :3] @ torch.tensor(
            [13.5, 16.0, 11.5], dtype=torch.float64
        )
        self.grid = ImageGrid((28, 33, 24), affine, "scan")
        grey, white, t1w = (load_builtin(kind, 2.0) for kind in ("GM", "WM", "T1w"))
        brain = (t1w.values > 0.15 * t1w.values.amax()).float()
        fluid = (brain - grey.values - white.values).clamp(0, 1) * brain
        self.base = Image(t1w.grid, 0.6 * white.values + 0.85 * grey.values + 1.6 * fluid)
        self.decay = Image(t1w.grid, torch.cat([0.7 * white.values + 0.8 * grey.values + 3.0 * fluid, white.values]))
        directions = sphere.directions(12).double()
        bvecs = torch.cat([torch.zeros(1, 3), directions[:6], torch.zeros(1, 3), directions[6:]]).double()
        bvals = torch.where(bvecs.norm(dim=-1) > 0, 1000.0, 0.0).double()
        self.gtab = GradientTable(bvals, bvecs, bvals == 0)

    def series(self, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        volumes = []
        for volume in range(len(self.gtab)):
            points = self.grid.centres()
            points = points - torch.tensor([0.0, SHIFT, 0.0]) if volume == MOVED else points
            base, decay = self.base.sample(points)[..., 0], self.decay.sample(points)
            along = decay[..., 1] * (points[..., 0] > 0) * float(self.gtab.bvecs[volume, 0]) ** 2
            signal = 600 * base * torch.exp(-float(self.gtab.bvals[volume]) / 1000 * (decay[..., 0] + 0.4 * along))
            volumes.append((signal + 4 * torch.randn(signal.shape, generator=generator)).abs())
        volumes[LOST[0]][:, :, LOST[1]] *= 0.3
        return torch.stack(volumes)


@pytest.fixture(scope="module")
def head() -> Head:
    return Head()


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


def test_series_are_joined_at_one_brightness(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((5, 6, 7), oblique_affine, "a")
    gtab = GradientTable(
        torch.tensor([0.0, 1000.0]),
        torch.tensor([[0.0, 0, 0], [1, 0, 0]]),
        torch.tensor([True, False]),
        echo_time=torch.ones(2),
    )
    signal = 10 + torch.rand(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    first = DWI(grid, signal, gtab, torch.ones(5, 6, 7, dtype=torch.bool))
    beyond = 2.5 * signal
    beyond[:, 0] = 0  # outside its field of view
    other = DWI(grid, beyond, replace(gtab, echo_time=None), (signal[0] > 10.2) & (beyond[0] > 0))
    joined, factors = merge.merged([first, other])
    assert factors == pytest.approx([1.0, 0.4], rel=1e-5)
    assert torch.allclose(joined.signal[2:, 1:], signal[:, 1:])
    assert not bool(joined.signal[:, 0].any())
    assert joined.gtab.bvals.tolist() == [0, 1000, 0, 1000]
    assert joined.gtab.echo_time is None
    assert torch.equal(joined.mask, other.mask)
    with pytest.raises(InputDataError, match="overlap"):
        merge.merged([first, replace(other, mask=torch.zeros(5, 6, 7, dtype=torch.bool))])


def _part(head: Head, n: int, **known: Any) -> Part:
    series = head.series()[:n]
    run = DwiRun(Path("a"), Path("b"), Path("c"), {}, {}, None, "sub-01_run-2", done_by=known.pop("done_by", ""))
    scan = DWI(head.grid, series, head.gtab[:n], series[0] > 100)
    return Part(run, scan, Image(head.grid, series[:1]), {}, **known)


def _pose(head: Head, moved_mm: float, turn: float) -> Affine:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = pose.rotations(torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64) * turn)[0]
    matrix[:3, 3] = torch.tensor([moved_mm, 0.0, 0.0], dtype=torch.float64)
    return Affine(matrix, head.grid.space, head.grid.space)


def test_directions_of_a_joined_run_are_those_of_the_series(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of confounds has the directions that are fitted: turned to the first run's head."""
    first, second = _part(head, 3), _part(head, 3)
    for part in (first, second):
        part.estimate = resample._nothing(part.scan, None)
    second.estimate.rigid[1, 3] = 0.2
    first.noise, second.noise = (Image(head.grid, torch.full((1, *head.grid.shape), sigma)) for sigma in (3.0, 4.0))
    monkeypatch.setattr(merge, "way_between", lambda *_: _pose(head, 3.0, 0.3))
    still, _, notes = interpolating.joined([first, second], lambda _: None, lambda *_: None, "cpu")
    rows = confound_rows(first) + confound_rows(second)
    found = torch.tensor([[row[f"grad_{letter}"] for letter in "xyz"] for row in rows])
    torch.testing.assert_close(found.double(), still.scan.gtab.bvecs.double(), atol=1e-5, rtol=0)
    assert float((found[4] - head.gtab.bvecs[1]).norm()) > 0.1
    assert notes == []
    # A run that was interpolated has less noise; and only the grid is kept of what a part was.
    assert first.scan.signal.untyped_storage().nbytes() == 4
    assert still.noise is not None
    level = float(still.noise.values[0][still.scan.mask].median())
    assert 0.7 * (12.5**0.5) < level < 12.5**0.5
    assert not bool((still.scan.mask & ~still.seen).any())


def test_what_a_part_does_not_show_is_not_seen_in_the_whole(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored noughts of either run, where the other's head lies, with and without an interpolation."""
    shown = torch.ones(head.grid.shape, dtype=torch.bool)
    shown[:, :, :6] = False
    monkeypatch.setattr(merge, "way_between", lambda *_: _pose(head, 0.0, 0.0))
    for estimated in (False, True):
        for which in range(2):
            parts = [_part(head, 2), _part(head, 2)]
            parts[which].seen = shown
            for part in parts if estimated else []:
                part.estimate = resample._nothing(part.scan, None)
            still, _, _ = interpolating.joined(parts, lambda _: None, lambda *_: None, "cpu")
            assert torch.equal(still.seen, shown)


def test_runs_preprocessed_elsewhere_are_not_interpolated_again(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    for apart, says in ((0.5, []), (5.0, ["W-COMBINE-AGAIN"])):
        parts = [_part(head, 3, done_by="QSIPrep 1.0") for _ in range(2)]
        signal = parts[1].scan.signal
        way = _pose(head, apart, 0.0)
        monkeypatch.setattr(merge, "way_between", lambda *_, way=way: way)
        still, _, notes = interpolating.joined(parts, lambda _: None, lambda *_: None, "cpu")
        assert [note.id for note in notes] == says
        assert torch.allclose(still.scan.signal[3:], signal, rtol=1e-5) == (not says)


def test_voxels_that_left_the_view_are_counted(head: Head) -> None:
    mask = Image(head.grid, torch.ones(1, *head.grid.shape, dtype=torch.bool))
    seen = mask.mask.clone()
    assert interpolating.within_view(mask, seen, "run") == (mask, [])
    seen[:, :, -1] = False
    kept, (note,) = interpolating.within_view(mask, seen, "run")
    assert torch.equal(kept.mask, seen)
    assert note.id == "W-FIELD-OF-VIEW"
    assert note.message.startswith(f"run: {28 * 33} of {28 * 33 * 24} voxels")


def test_a_step_that_was_asked_for_and_fails_is_an_error(head: Head) -> None:
    part = _part(head, 2)
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
