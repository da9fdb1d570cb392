"""The steps that find a field and put a scan right, on a small painted head with a known field, as the app would run them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tractode.bids.query import find_participants
from tractode.errors import InputDataError
from tractode.fields import GradientTable, Image, ImageGrid
from tractode.interfaces.distortion import EstimateField
from tractode.interfaces.scan import PrepareDwi
from tractode.interfaces.step import Job
from tractode.io.builtin_template import load_builtin
from tractode.io.dwi import IngestPolicy
from tractode.io.gradients import write_gradients
from tractode.io.nifti import read_image, write_image
from tractode.ops import epi
from tractode.reports import figures_distortion
from tractode.simulate.gradients import multi_shell
from tractode.simulate.susceptibility import field_of_air, shimmed

READOUT = 0.06
ECHOES = (0.00492, 0.00738)


class Head:
    """A b=0 image of the template, oblique and left-handed, and the field of the air in its skull."""

    def __init__(self) -> None:
        turn = torch.tensor([[0.0, -0.15, 0.05], [0.15, 0.0, -0.1], [-0.05, 0.1, 0.0]], dtype=torch.float64)
        affine = torch.eye(4, dtype=torch.float64)
        affine[:3, :3] = torch.linalg.matrix_exp(turn) @ torch.diag(torch.tensor([-4.0, 4.0, 4.0], dtype=torch.float64))
        affine[:3, 3] = torch.tensor([0.0, -18.0, 15.0], dtype=torch.float64) - affine[:3, :3] @ torch.tensor(
            [24.5, 29.5, 21.5], dtype=torch.float64
        )
        self.grid = ImageGrid((50, 60, 44), affine, "scan")
        points = self.grid.centres()
        grey, white, t1w = (load_builtin(kind, 2.0) for kind in ("GM", "WM", "T1w"))
        brain = (t1w.values > 0.15 * t1w.values.amax()).float()
        fluid = (brain - grey.values - white.values).clamp(0, 1) * brain
        painted = Image(t1w.grid, 0.6 * white.values + 0.85 * grey.values + 1.6 * fluid)
        self.signal = 800 * painted.sample(points).movedim(-1, 0)
        self.magnitude = 500 * t1w.sample(points).movedim(-1, 0) / t1w.values.amax()
        self.brain = Image(t1w.grid, brain).sample(points)[..., 0] > 0.5
        self.hz = 1.5 * shimmed(field_of_air(points, torch.tensor([0.0, 0.0, 1.0])), points, self.brain.float())

    def distorted(self, sign: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sign + 1)
        moved = epi.distorted(self.signal, epi.shift_vox(self.hz, sign, READOUT), 1)
        return moved + 8 * torch.randn(moved.shape, generator=generator).abs()


@pytest.fixture(scope="module")
def head() -> Head:
    return Head()


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_run(root: Path, head: Head, label: str, sign: int, direction: str) -> GradientTable:
    gtab = multi_shell(((1000.0, 6),), 1)
    stem = root / "sub-01" / "dwi" / f"sub-01_{label}dwi"
    write_json(stem.with_suffix(".json"), {"PhaseEncodingDirection": direction, "TotalReadoutTime": READOUT})
    weights = torch.where(gtab.is_b0, 1.0, math.exp(-0.8)).float()
    image = Image(head.grid, head.distorted(sign) * weights[:, None, None, None])
    write_image(stem.with_suffix(".nii.gz"), image)
    write_gradients(gtab, head.grid.affine, stem.with_suffix(".bval"), stem.with_suffix(".bvec"))
    return gtab


def steps(root: Path, **request: Any) -> tuple[Any, dict[str, Any], str]:
    """What `EstimateField` and `PrepareDwi` make of the first run."""
    participant = find_participants(root, **request).participants[0]
    assert not participant.failures, participant.failures
    correction = participant.corrections[0]
    job = Job(root, root / "out", "01", "run", "cpu", 0, 1, False)
    served = [other for other in participant.corrections if other.key == correction.key]
    found = EstimateField(job=job, step="field", corrections=served, policy=IngestPolicy()).run().outputs
    prepare = PrepareDwi(
        job=job, step="prepare", run=correction.run, policy=IngestPolicy(), accept_gradients=True,
        corrections={correction.run.name: correction}, fields=[found.outputs], fields_facts=[found.facts],
    )  # fmt: skip
    done = prepare.run().outputs
    return done, found.outputs, found.facts["distortion"][correction.run.name]


def error_hz(head: Head, field: Path, pose: list[list[float]] | None = None) -> float:
    """Median error in the brain, the constant that a shift along the encoding leaves open taken out."""
    found, _ = read_image(field, "scan")
    points = head.grid.centres()
    off = (found.sample(points, outside="nearest")[..., 0] - head.hz)[head.brain]
    return float((off - off.median()).abs().median())


def image_error(head: Head, path: str) -> float:
    """Median error where things were moved by one to four voxels; nearer to the air signal is lost for good."""
    image, _ = read_image(Path(path), "scan")
    moved = head.brain & (head.hz.abs() > 15) & (head.hz.abs() < 60)
    return float((image.values[0] - head.signal[0])[moved].abs().median())


def test_two_reversed_runs(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures_distortion, "pair", lambda *_, **__: [])
    for label, sign, direction in (("dir-AP_", -1, "j-"), ("dir-PA_", 1, "j")):
        write_run(tmp_path, head, label, sign, direction)
    done, field, record = steps(tmp_path)
    assert record["applied"], record["reason"]
    assert record["sign"] == -1
    assert record["after"] < 0.5 * record["before"]
    assert error_hz(head, Path(field["field"])) < 2.0
    assert Path(field["field"]).name == "sub-01_dir-AP_desc-reversed_fieldmap.nii.gz"
    assert Path(field["field"]).parent.name == "fmap"
    assert image_error(head, done.outputs["dwiref"]) < 0.6 * image_error(head, done.outputs["uncorrected"])
    sidecar = json.loads(Path(done.outputs["dwi-sidecar"]).read_text())
    assert sidecar["SusceptibilityDistortionCorrected"] is True
    assert sidecar["DistortionCorrectionMethod"] == "reversed"
    assert sidecar["DistortionCorrectionField"] == f"bids::sub-01/fmap/{Path(field['field']).name}"
    told = json.loads(Path(field["field-sidecar"]).read_text())
    assert told["Units"] == "Hz"
    assert told["Verdicts"]["sub-01_dir-PA"]["applied"] is True
    figures = {path.name for path in (tmp_path / "out/sub-01/figures").iterdir()}
    assert {f"sub-01_dir-{way}_desc-sdc_fieldmap.html" for way in ("AP", "PA")} <= figures
    assert [note["id"] for note in done.facts["notes"] if "SDC" in note["id"]] == ["N-SDC"]


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "applied"), [("j-", False), ("j", True)])
def test_a_phase_difference_is_used_only_the_right_way_round(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str, applied: bool
) -> None:
    """M05: a sidecar whose sign contradicts the image."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures_distortion, "single", lambda *_, **__: [])
    write_run(tmp_path, head, "", 1, direction)
    stem = tmp_path / "sub-01" / "fmap" / "sub-01_phasediff.nii.gz"
    write_json(stem.with_name("sub-01_phasediff.json"), {"EchoTime1": ECHOES[0], "EchoTime2": ECHOES[1]})
    phase = torch.remainder(2 * math.pi * (ECHOES[1] - ECHOES[0]) * head.hz + math.pi, 2 * math.pi) - math.pi
    write_image(stem, Image(head.grid, phase[None]))
    write_image(stem.with_name("sub-01_magnitude1.nii.gz"), Image(head.grid, head.magnitude))
    done, field, record = steps(tmp_path)
    assert record["applied"] is applied, record
    assert error_hz(head, Path(field["field"])) < 1.0
    assert ("uncorrected" in done.outputs) is applied
    sidecar = json.loads(Path(done.outputs["dwi-sidecar"]).read_text())
    assert sidecar["SusceptibilityDistortionCorrected"] is applied
    if applied:
        assert image_error(head, done.outputs["dwiref"]) < 0.6 * image_error(head, done.outputs["uncorrected"])
        assert "no link given" in record["link"]
    else:
        assert "opposite phase encoding" in record["reason"]
        assert any(note["id"] == "W-SDC-NONE" for note in done.facts["notes"])


def test_a_pair_that_cannot_be_read_leaves_the_run_uncorrected(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, head, "dir-AP_", -1, "j-")
    epi = tmp_path / "sub-01" / "fmap" / "sub-01_dir-PA_epi.nii.gz"
    write_json(epi.with_name("sub-01_dir-PA_epi.json"), {"PhaseEncodingDirection": "j", "TotalReadoutTime": READOUT})
    epi.write_bytes(b"no image")
    done, field, record = steps(tmp_path)
    assert not record["applied"]
    assert "sub-01_dir-PA_epi.nii.gz" in record["reason"]
    assert "field" not in field
    assert "uncorrected" not in done.outputs
    participant = find_participants(tmp_path).participants[0]
    job = Job(tmp_path, tmp_path / "out", "01", "run", "cpu", 0, 1, False)
    required = EstimateField(
        job=job, step="again", corrections=list(participant.corrections), policy=IngestPolicy(), is_required=True
    )
    with pytest.raises(InputDataError):
        required.run()
