"""The step that weights streamlines: from files to files, both models, and what the report is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tractode.bids.query import DwiRun
from tractode.errors import InputDataError
from tractode.fields import GradientTable, Image, ImageGrid, Streamlines
from tractode.interfaces.step import Job
from tractode.interfaces.weights import WeightStreamlines
from tractode.io.gradients import write_gradients
from tractode.io.nifti import read_image, write_image
from tractode.io.tractogram import read_tractogram, write_tractogram
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.reports.reportlet import Reportlet

SPACE = "sub-01_dir-AP_dwi"


@pytest.fixture
def prepared(tmp_path: Path, oblique_affine: torch.Tensor) -> dict[str, dict[str, str]]:
    """What the steps before would have left: one fibre population along the second storage axis, denser to one side."""
    grid = ImageGrid((8, 9, 7), oblique_affine, SPACE)
    along = (oblique_affine[:3, 1] / oblique_affine[:3, 1].norm())[None]
    on = sphere.directions(200, hemisphere=True)
    lobe = torch.linalg.lstsq(sh.basis(on, 8), (on @ along.mT).pow(8)).solution.float()
    density = torch.linspace(0.5, 2.0, 8)[:, None, None].expand(8, 9, 7)
    bvecs = torch.cat([torch.zeros(2, 3, dtype=torch.float64), sphere.directions(20)])
    gtab = GradientTable(torch.tensor([0.0] * 2 + [2500.0] * 20).double(), bvecs, bvecs.norm(dim=-1) == 0)
    signal = 100 * density * (1.2 - (bvecs @ along.mT).square().float())[:, :, None, None]
    start = torch.tensor([[1.0, 1.0, 3.0]], dtype=torch.float64)
    step = torch.linspace(0, 6, 30, dtype=torch.float64)[:, None] * torch.tensor([[0.0, 1.0, 0.0]])
    lines = [grid.to_world(start + torch.tensor([[0.4 * n, 0.0, 0.0]]) + step).float() for n in range(14)]
    dwi = {role: str(tmp_path / f"{role}.nii.gz") for role in ("dwi", "mask", "dwiref")}
    dwi |= {role: str(tmp_path / f"dwi.{role}") for role in ("bval", "bvec")}
    write_image(Path(dwi["dwi"]), Image(grid, signal.float()))
    write_image(Path(dwi["dwiref"]), Image(grid, signal[:1].float()))
    write_image(Path(dwi["mask"]), Image(grid, torch.ones(1, *grid.shape, dtype=torch.bool)))
    write_gradients(gtab, oblique_affine, Path(dwi["bval"]), Path(dwi["bvec"]))
    orientations = {"fod": str(tmp_path / "fod.nii.gz"), "fod-sidecar": str(tmp_path / "fod.json")}
    write_image(Path(orientations["fod"]), Image(grid, lobe[:, :, None, None] * density))
    response = {"ResponseFunction": {"Type": "zsh", "Coefficients": [[250.0, -80.0, 12.0]]}}
    Path(orientations["fod-sidecar"]).write_text(json.dumps(response))
    track = {"tractogram": str(tmp_path / "lines.trx"), "tractogram-sidecar": str(tmp_path / "lines.json")}
    write_tractogram(Path(track["tractogram"]), Streamlines.from_list(lines, SPACE), grid)
    Path(track["tractogram-sidecar"]).write_text(json.dumps({"Description": "lines", "Parameters": {"StepSize": 0.2}}))
    return {"prepared": dwi, "orientations": orientations, "tractogram": track}


def step(tmp_path: Path, given: dict[str, dict[str, str]], model: str) -> WeightStreamlines:
    job = Job(tmp_path, tmp_path / "out", "01", "run", "cpu", 0, 1, False)
    files = [Path(given["prepared"][role]) for role in ("dwi", "bval", "bvec")]
    run = DwiRun(*files, {}, {"sub": "01", "dir": "AP"}, None, "sub-01_dir-AP")
    return WeightStreamlines(
        job=job, step="sub-01_dir-AP_weights-sdstream", run=run, track="sdstream", model=model, formats=["trx", "tck"], **given
    )  # fmt: skip


@pytest.mark.parametrize("model", ["fod", "signal"])
def test_weights_are_written_with_the_lines_and_the_fit_is_told(
    prepared: dict[str, dict[str, str]], tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = step(tmp_path, prepared, model).run().outputs
    folder = tmp_path / "out" / "sub-01" / "dwi"
    stem = "sub-01_dir-AP_track-sdstream"
    expected = {f"{stem}_desc-weighted_tractogram{end}" for end in (".trx", ".json", ".txt")}
    expected |= {
        f"{stem}_param-{p}_desc-weighted_dwimap{e}" for p in ("residual", "explained") for e in (".nii.gz", ".json")
    }
    assert {path.name for path in folder.iterdir()} == expected
    lines, notes = read_tractogram(Path(result.outputs["tractogram"]), SPACE)
    weights = lines.per_streamline["weights"]
    assert not notes
    assert len(lines) == 14
    text = [float(line) for line in Path(result.outputs["weights"]).read_text().split()]
    torch.testing.assert_close(torch.tensor(text), weights, rtol=1e-6, atol=1e-7)
    # The density rises along the first axis, and so must the weights.
    assert float(weights[-4:].mean()) > 1.2 * float(weights[:4].mean())
    explained, _ = read_image(Path(result.outputs["explained"]), SPACE)
    assert 0 < float(explained.values.max()) <= 1
    content = json.loads(Path(result.outputs["tractogram-sidecar"]).read_text())
    assert content["Parameters"] == {"StepSize": 0.2}
    assert content["StreamlineWeights"]["Data"] == "dps/weights"
    assert content["StreamlineWeights"]["Fit"]["after"]["sse"] < content["StreamlineWeights"]["Fit"]["before"]["sse"]
    assert result.facts["citation"] == {"fod": "Smith2015", "signal": "Pestilli2014"}[model]
    for relative in result.facts["reportlets"]:
        path = tmp_path / "out" / relative
        assert Reportlet.from_files(path.read_bytes(), path.with_suffix(".webp").read_bytes()).section == "weights"


def test_an_fod_without_response_cannot_predict_the_signal(
    prepared: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(prepared["orientations"]["fod-sidecar"]).write_text("{}")
    with pytest.raises(InputDataError, match="E-WEIGHTS-RESPONSE"):
        step(tmp_path, prepared, "signal").run()


def test_an_empty_tractogram_is_an_error(
    prepared: dict[str, dict[str, str]], tmp_path: Path, oblique_affine: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = ImageGrid((8, 9, 7), oblique_affine, SPACE)
    write_tractogram(Path(prepared["tractogram"]["tractogram"]), Streamlines.from_list([], SPACE), grid)
    with pytest.raises(InputDataError, match="E-WEIGHTS-EMPTY"):
        step(tmp_path, prepared, "fod").run()
