"""The output as others see it: names and sidecars pass the BIDS validator, and pybids finds them by our entities."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import tractode
from tractode.bids import dataset, sidecar
from tractode.bids.index import pybids_config
from tractode.bids.names import derivative, sidecar_of
from tractode.contracts import MapSpec
from tractode.errors import ConfigurationError, OutputError

TEMPLATE = "MNI152NLin2009cAsym"
FA = MapSpec("fa", "Fractional anisotropy", "1")
TENSOR = MapSpec("diffusivity", "Diffusion tensor", "mm^2/s", "tensor", invariant=False)
FOD = MapSpec("fod", "Fibre orientation distribution", "1/sr", "sh", invariant=False)
TRACKER = {"StepSize": 0.3, "MaximumAngle": 60.0, "CutoffAmplitude": 0.1, "MinimumLength": 15.0, "MaximumLength": 300.0}


@pytest.fixture
def bids_dir(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.1/x"}')
    return root


@pytest.fixture
def output(tmp_path: Path, bids_dir: Path) -> Path:
    """Every kind of file the app writes, with tiny images, for one participant without and one with sessions."""
    root = tmp_path / "out"
    dataset.write_description(root, bids_dir)
    for entities in ({"sub": "01", "dir": "AP"}, {"sub": "02", "ses": "a", "run": "01"}):
        _write_participant(root, bids_dir, entities)
    (root / "logs/sub-01/steps").mkdir(parents=True)
    (root / "logs/sub-01/steps/x.json").write_text("{}")
    (root / "group_desc-qc.tsv").write_text("participant_id\nsub-01\n")
    (root / "group_desc-qc.json").write_text("{}")
    (root / "group.html").write_text("<html></html>")
    return root


def _write_participant(root: Path, bids_dir: Path, run: dict[str, str]) -> None:
    raw = [bids_dir / "sub-01/dwi/sub-01_dir-AP_dwi.nii.gz"]
    anat = {key: value for key, value in run.items() if key in ("sub", "ses")}
    preproc = sidecar.preproc_sidecar("DWI as acquired", raw, bids_dir, metadata={"EchoTime": 0.1, "PatientName": "x"})
    dwi = _image(root, derivative(run, desc="preproc", suffix="dwi", extension=".nii.gz"), 3, preproc)
    for extension, text in ((".bval", "0 1000 1000\n"), (".bvec", "0 1 0\n0 0 1\n0 0 0\n")):
        dwi.with_name(dwi.name.replace(".nii.gz", extension)).write_text(text)
    _image(root, derivative(run, suffix="dwiref", extension=".nii.gz"), 1, sidecar.dwiref_sidecar([dwi], bids_dir))
    for home, source in (("dwi", run), ("anat", anat)):
        mask = sidecar.mask_sidecar([dwi], bids_dir)
        _image(root, derivative(source, desc="brain", suffix="mask", datatype=home, extension=".nii.gz"), 1, mask)
    for spec, model, volumes, options in (
        (FA, "tensor", 1, {}),
        (TENSOR, "tensor", 6, {}),
        (FOD, "csd", 45, {"sh_order": 8, "response": [[3.0, -1.0, 0.5]]}),
    ):
        for space in (None, TEMPLATE, "T1w"):
            content = sidecar.map_sidecar(spec, model, {"FitMethod": "wls"}, [dwi], bids_dir, space=space, **options)
            name = derivative(run, model=model, param=spec.param, space=space, suffix="dwimap", extension=".nii.gz")
            _image(root, name, volumes, content)
    content = sidecar.tractogram_sidecar(
        "sdstream", TRACKER, [dwi], bids_dir, seed_mask=dwi, mask=dwi, n_seeds=9, n_generated=8, n_accepted=7
    )
    for extension in (".trx", ".tck"):
        _file(root, derivative(run, track="sdstream", suffix="tractogram", extension=extension), content)
    moved = content | {"SpatialReference": "bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"}
    _file(root, derivative(run, space="T1w", track="sdstream", suffix="tractogram", extension=".trx"), moved)
    _file(root, derivative(run, desc="gradients", suffix="qc", extension=".json"), None)
    for home, source, moving, fixed in (("dwi", run, "dwi", "T1w"), ("anat", anat, "T1w", TEMPLATE)):
        for first, second in ((moving, fixed), (fixed, moving)):
            for extension in (".h5", ".x5"):
                name = derivative(
                    source, datatype=home, from_=first, to=second, mode="image", suffix="xfm", extension=extension
                )
                _file(root, name, sidecar.xfm_sidecar(first, second, [dwi], bids_dir))
    for space in (None, TEMPLATE):
        content = sidecar.preproc_sidecar("T1w", raw, bids_dir, space=space)
        _image(root, derivative(anat, desc="preproc", space=space, suffix="T1w", extension=".nii.gz"), 1, content)
    _file(root, derivative(run, datatype="figures", desc="fa", suffix="dwimap", extension=".png"), None)
    (root / f"sub-{run['sub']}.html").write_text("<html></html>")


def _file(root: Path, relative: Path, content: dict | None) -> Path:
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")
    if content is not None:
        sidecar_of(path).write_text(json.dumps(content, allow_nan=False))
    return path


def _image(root: Path, relative: Path, volumes: int, content: dict) -> Path:
    path = _file(root, relative, content)
    shape = (4, 4, 4) if volumes == 1 else (4, 4, 4, volumes)
    image = nibabel.Nifti1Image(np.zeros(shape, dtype=np.float32), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


def _validator() -> str | None:
    beside = Path(sys.executable).with_name("bids-validator-deno")
    return str(beside) if beside.exists() else shutil.which("bids-validator-deno")


def _errors(root: Path) -> list[tuple[str, str]]:
    command = [_validator() or "", "--format", "json", "--ignoreWarnings", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [(issue["code"], issue["location"]) for issue in issues if issue["severity"] == "error"]


@pytest.mark.reference
@pytest.mark.skipif(_validator() is None, reason="bids-validator-deno is not installed")
def test_the_validator_finds_no_error(output: Path) -> None:
    assert _errors(output) == []
    # And it does look: a stray file, or the ignore file gone, are errors.
    stray = output / "sub-01/dwi/sub-01_stray.nii.gz"
    stray.write_bytes(b"")
    assert any("stray" in location for _, location in _errors(output))
    stray.unlink()
    (output / ".bidsignore").unlink()
    assert len(_errors(output)) > 5


def test_pybids_finds_outputs_by_our_entities(output: Path) -> None:
    from bids.layout import BIDSLayout

    layout = BIDSLayout(output, validate=False, config=["bids", "derivatives", pybids_config()])
    found = layout.get(param="fa", extension=".nii.gz", space=None, subject="01", return_type="filename")
    assert [Path(path).name for path in found] == ["sub-01_dir-AP_model-tensor_param-fa_dwimap.nii.gz"]
    found = layout.get(track="sdstream", extension=".trx", space=None, return_type="filename")
    assert [Path(path).name for path in found] == [
        "sub-01_dir-AP_track-sdstream_tractogram.trx",
        "sub-02_ses-a_run-01_track-sdstream_tractogram.trx",
    ]
    assert layout.get_metadata(found[0])["StreamlinePropagation"]["StepSize"] == TRACKER["StepSize"]


def test_description_says_what_made_it_from_what(output: Path, bids_dir: Path) -> None:
    content = json.loads((output / "dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"][0]["Name"] == "tractode"
    assert content["GeneratedBy"][0]["Version"] == tractode.__version__
    assert content["DatasetLinks"] == {"raw": bids_dir.as_uri()}
    assert content["SourceDatasets"] == [{"URL": bids_dir.as_uri(), "DOI": "doi:10.1/x"}]


def test_writing_again_changes_nothing(output: Path, bids_dir: Path) -> None:
    path = output / "dataset_description.json"
    before = path.stat().st_mtime_ns, path.read_bytes()
    dataset.write_description(output, bids_dir)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    (output / ".bidsignore").write_text("")
    dataset.write_description(output, bids_dir)
    assert "*_dwimap.*" in (output / ".bidsignore").read_text()


def test_output_of_another_version(output: Path, bids_dir: Path) -> None:
    path = output / "dataset_description.json"
    path.write_text(path.read_text().replace(tractode.__version__, "0.0.1"))
    with pytest.raises(ConfigurationError, match=r"0\.0\.1") as caught:
        dataset.write_description(output, bids_dir)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    "content", ['{"GeneratedBy": [{"Name": "other"}]}', '{"Name": "x"}', "[]", "{", '{"GeneratedBy": []}']
)
def test_output_that_is_not_ours(tmp_path: Path, bids_dir: Path, content: str) -> None:
    path = tmp_path / "foreign" / "dataset_description.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(OutputError) as caught:
        dataset.write_description(path.parent, bids_dir)
    assert caught.value.exit_code == 73
    assert path.read_text() == content


def test_output_is_never_the_input(tmp_path: Path, bids_dir: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(bids_dir)
    for folder in (bids_dir, bids_dir / "deep/er", link, link / "inside", tmp_path / "raw/../raw"):
        with pytest.raises(OutputError):
            dataset.write_description(folder, bids_dir)
    assert [path.name for path in bids_dir.iterdir()] == ["dataset_description.json"]
    (tmp_path / "taken/sub-01").mkdir(parents=True)
    with pytest.raises(OutputError, match="participants"):
        dataset.write_description(tmp_path / "taken", bids_dir)
