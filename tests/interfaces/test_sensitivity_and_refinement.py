"""The steps that map a connection's sensitivity and refine orientations, run on a small simulated scan as the app would."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tractode.bids.query import DwiRun
from tractode.fields import Image
from tractode.interfaces.model import FitModel
from tractode.interfaces.refinement import RefineOrientations
from tractode.interfaces.sensitivity import MapSensitivity
from tractode.interfaces.step import Job
from tractode.io.gradients import write_gradients
from tractode.io.nifti import read_image, write_image
from tractode.ops import smooth
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import Phantom, PhantomSettings, phantom
from tractode.tracking.sdstream import SDStream


@pytest.fixture(scope="module")
def scene() -> Phantom:
    gtab = multi_shell(((1000.0, 12), (2500.0, 30)), 2)
    return phantom(
        gtab, PhantomSettings(regions=("crossing",), size=15, voxel_mm=4.0, snr=15.0), space="sub-01_dir-AP_dwi"
    )


@pytest.fixture(scope="module")
def folder(scene: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `PrepareDwi`, `FitModel` and `CarryRegions` would have left."""
    there = tmp_path_factory.mktemp("scan")
    grid, ends = scene.dwi.grid, scene.bundles["CrossA"]
    mask = smooth.dilate(scene.white_matter.mask, (1, 1, 1)) & scene.dwi.mask
    write_image(there / "dwi.nii.gz", Image(grid, scene.dwi.signal))
    write_image(there / "mask.nii.gz", Image(grid, mask[None]))
    write_image(there / "dwiref.nii.gz", Image(grid, scene.dwi.signal[scene.dwi.gtab.is_b0].mean(0, keepdim=True)))
    write_image(there / "one.nii.gz", Image(grid, ends.start[None]))
    write_image(there / "two.nii.gz", Image(grid, ends.end[None]))
    write_gradients(scene.dwi.gtab, grid.affine, there / "dwi.bval", there / "dwi.bvec")
    return there


def common(folder: Path, output: Path, step: str) -> dict:
    files = {
        "dwi": "dwi.nii.gz",
        "bval": "dwi.bval",
        "bvec": "dwi.bvec",
        "mask": "mask.nii.gz",
        "dwiref": "dwiref.nii.gz",
    }
    prepared = {role: str(folder / name) for role, name in files.items()}
    run = DwiRun(
        *(folder / files[role] for role in ("dwi", "bval", "bvec")), {}, {"sub": "01", "dir": "AP"}, None, "sub-01_dir-AP"
    )  # fmt: skip
    job = Job(folder, output, "01", "run", "cpu", 0, 1, False)
    return {"job": job, "step": step, "run": run, "prepared": prepared}


@pytest.fixture(scope="module")
def fitted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        return FitModel(**common(folder, made / "out", "fit"), model="csd").run().outputs.outputs


def test_the_sensitivity_step_writes_its_maps(
    folder: Path, fitted: dict[str, str], scene: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    regions = {"region-end1": str(folder / "one.nii.gz"), "region-end2": str(folder / "two.nii.gz")}
    tracker = SDStream(step_mm=1.0, angle=math.radians(30), min_length=20.0, compiled=False)
    step = MapSensitivity(
        **common(folder, tmp_path / "out", "sense"), orientations=fitted, regions=regions, tracker=tracker, n_seeds=400
    )  # fmt: skip
    done = step.run().outputs
    stem = "sub-01_dir-AP_model-csd_param-{}_dwimap"
    for role in ("sensitivity", "sensitivitysignal", "sensitivityanisotropy"):
        assert done.outputs[role] == str(tmp_path / "out" / "sub-01" / "dwi" / f"{stem.format(role)}.nii.gz")
    strength, _ = read_image(Path(done.outputs["sensitivity"]), scene.dwi.grid.space)
    bundle = smooth.dilate(scene.bundles["CrossA"].mask, (1, 1, 1))
    assert float(strength.values[0][bundle].sum()) > 0.9 * float(strength.values.sum()) > 0
    content = json.loads(Path(done.outputs["sensitivity-sidecar"]).read_text())
    assert content["Units"] == "1"
    assert content["Model"]["Parameters"]["ContributingStreamlines"] == done.facts["n_lines"] > 10
    assert 0 <= content["Model"]["Parameters"]["ShareEndedByRulesWithoutDerivative"] < 0.2
    assert len(content["Sources"]) == 3
    figures = tmp_path / "out" / "sub-01" / "figures"
    assert len(list(figures.glob("*_desc-sensitivity*_dwimap.webp"))) == 2


def test_the_refinement_step_writes_a_field_that_tracking_takes(
    folder: Path, fitted: dict[str, str], scene: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = RefineOrientations(**common(folder, tmp_path / "out", "refine"), orientations=fitted).run().outputs
    name = "sub-01_dir-AP_model-csd_param-fod_desc-refined_dwimap"
    assert done.outputs["fod"] == str(tmp_path / "out" / "sub-01" / "dwi" / f"{name}.nii.gz")
    refined, _ = read_image(Path(done.outputs["fod"]), scene.dwi.grid.space)
    before, _ = read_image(Path(fitted["fod"]), scene.dwi.grid.space)
    assert refined.values.shape == before.values.shape
    truth = scene.fibres.fod.coeffs
    white = scene.white_matter.mask
    error = [float((image.values - truth)[:, white].square().mean()) for image in (before, refined)]
    assert error[1] < error[0]
    content = json.loads(Path(done.outputs["fod-sidecar"]).read_text())
    assert content["OrientationEncoding"]["SphericalHarmonicDegree"] == 8
    assert content["Model"]["Parameters"]["FibreContinuity"] == 100
    assert done.facts["noise"] == pytest.approx(1 / 15, rel=0.4)
    figures = list((tmp_path / "out" / "sub-01" / "figures").glob("*.webp"))
    assert len(figures) == 7
    assert torch.isfinite(refined.values).all()
