"""Regions and tissues brought into a scan through its registrations, and where the tissues of a participant are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe
from scipy.spatial.transform import Rotation

from tractode.bids.query import AnatFile, DwiRun
from tractode.bids.templates import BUILT_IN, Template
from tractode.bids.tissues import find_tissue_source, need_tissue_source
from tractode.errors import InputDataError, MissingInputError
from tractode.fields import Affine, Image, ImageGrid
from tractode.interfaces.regions import CarryRegions
from tractode.interfaces.step import Job
from tractode.io.nifti import read_image, write_image
from tractode.io.transforms import write_itk
from tractode.settings import Settings
from tractode.workflows.anatomy import Anatomy
from tractode.workflows.tissues import carry_regions

DWI, ANAT = "sub-01_dir-AP_dwi", "sub-01_T1w"
SHAPE = (22, 20, 18)


def pose(angle: float, shift: tuple[float, float, float], source: str, target: str) -> Affine:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [angle, -angle, angle / 2], degrees=True).as_matrix())
    matrix[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    return Affine(matrix, source, target)


TO_ANAT = pose(8.0, (3.0, -5.0, 4.0), DWI, ANAT)
TO_TEMPLATE = pose(-5.0, (-2.0, 6.0, 1.0), ANAT, BUILT_IN)


@pytest.fixture
def given(tmp_path: Path, oblique_affine: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A scan, and its stored registrations to anatomy and template."""
    monkeypatch.chdir(tmp_path)
    grid = ImageGrid(SHAPE, oblique_affine, DWI)
    radius = (grid.centres() - middle(grid)).norm(dim=-1)
    write_image(tmp_path / "dwiref.nii.gz", Image(grid, (200 - radius)[None]))
    write_image(tmp_path / "mask.nii.gz", Image(grid, radius[None] < 20))
    links = {"anat": (TO_ANAT, "T1w"), "template": (TO_TEMPLATE, BUILT_IN)}
    made: dict[str, Any] = {"prepared": {role: str(tmp_path / f"{role}.nii.gz") for role in ("dwiref", "mask")}}
    for name, (transform, label) in links.items():
        for role, way in (("from", transform), ("to", transform.inverse())):
            write_itk(tmp_path / f"{name}-{role}.h5", way, grid)
        made[f"{name}_link"] = {f"{role}-{label}": str(tmp_path / f"{name}-{role}.h5") for role in ("from", "to")}
        made[f"{name}_facts"] = {"quality": {"passed": True}}
    template = Template(BUILT_IN, 2, tmp_path / "dwiref.nii.gz", None)
    return {**made, "anat_space": ANAT, "anat_modality": "T1w", "template": template}


def middle(grid: ImageGrid) -> torch.Tensor:
    return grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2).float()


def carry(tmp_path: Path, given: dict[str, Any], **options: Any) -> Any:
    job = Job(tmp_path, tmp_path / "out", "01", "run", "cpu", 0, 1, False)
    here = tmp_path / "sub-01_dir-AP_dwi.nii.gz"
    run = DwiRun(here, here, here, {}, {"sub": "01", "dir": "AP"}, None, "sub-01_dir-AP")
    return CarryRegions(job=job, step="carry", run=run, **given, **options).run().outputs


def ball(tmp_path: Path, space: str, centre: torch.Tensor, radius: float, name: str) -> str:
    """A mask of a ball on a 1.5 mm grid of a space."""
    affine = torch.diag(torch.tensor([-1.5, 1.5, 1.5, 1.0], dtype=torch.float64))
    affine[:3, 3] = centre.double() + torch.tensor([22.0, -22, -22])
    grid = ImageGrid((30, 30, 30), affine, space)
    path = tmp_path / name
    write_image(path, Image(grid, (grid.centres() - centre).norm(dim=-1)[None] < radius))
    return str(path)


def test_regions_land_where_the_transforms_say(given: dict[str, Any], tmp_path: Path) -> None:
    grid = ImageGrid(SHAPE, read_image(tmp_path / "mask.nii.gz", DWI)[0].grid.affine, DWI)
    there = TO_TEMPLATE.map(TO_ANAT.map(middle(grid).double()))
    path = ball(tmp_path, BUILT_IN, there.float(), 9.0, "region.nii.gz")
    result = carry(tmp_path, given, regions={"include1": path})
    region, _ = read_image(Path(result.outputs["region-include1"]), DWI)
    assert region.grid.matches(grid)
    centres = grid.centres()[region.mask]
    assert float((centres.mean(0) - middle(grid)).norm()) < 0.3
    volume = len(centres) * float(torch.det(grid.affine[:3, :3]).abs())
    assert volume == pytest.approx(4 / 3 * 3.1416 * 9**3, rel=0.05)
    content = json.loads(Path(result.outputs["region-include1-sidecar"]).read_text())
    assert content["Type"] == "ROI"
    assert Path(result.outputs["region-include1"]).name == "sub-01_dir-AP_desc-include1_mask.nii.gz"
    assert result.facts["regions"]["include1"]["voxels"] == len(centres)
    assert len(result.facts["reportlets"]) == 1


def test_labels_become_tissues_of_the_scan(given: dict[str, Any], tmp_path: Path) -> None:
    grid = ImageGrid(SHAPE, read_image(tmp_path / "mask.nii.gz", DWI)[0].grid.affine, DWI)
    centre = TO_ANAT.map(middle(grid).double()).float()
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = centre.double() - 24
    anat = ImageGrid((49, 49, 49), affine, ANAT)
    radius = (anat.centres() - centre).norm(dim=-1)
    labels = torch.zeros(49, 49, 49)
    labels[radius < 20], labels[radius < 15], labels[radius < 6] = 3, 2, 10
    path = tmp_path / "labels.nii.gz"
    write_image(path, Image(anat, labels[None]), dtype="int16")
    result = carry(tmp_path, given, tissues="labels", tissue_path=str(path))
    maps, _ = read_image(Path(result.outputs["tissues"]), DWI)
    assert maps.values.shape[0] == 5
    assert max(maps.grid.voxel_sizes) == pytest.approx(1.0, abs=0.02)
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    for distance, tissue in ((3.0, 1), (10.0, 2), (17.5, 0)):
        at = maps.sample(middle(grid) + distance * directions)
        assert float((at.argmax(-1) == tissue).float().mean()) > 0.99
    total = maps.values.sum(0)
    assert bool(((total - 1).abs().minimum(total) < 1e-5).all())
    content = json.loads(Path(result.outputs["tissues-sidecar"]).read_text())
    assert content["LabelMap"] == ["CGM", "SGM", "WM", "CSF", "PT"]
    assert result.facts["cites"] == ["Smith2012", "Fischl2002"]


def test_what_cannot_be_brought_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    far = ball(tmp_path, BUILT_IN, torch.tensor([400.0, 0, 0]), 9.0, "far.nii.gz")
    with pytest.raises(InputDataError, match=r"E-REGION-EMPTY.*far\.nii\.gz"):
        carry(tmp_path, given, regions={"exclude1": far})
    given["anat_facts"] = {"quality": {"passed": False, "reason": "poor overlap"}}
    with pytest.raises(InputDataError, match=r"E-REGION-REGISTRATION.*poor overlap"):
        carry(tmp_path, given, regions={"exclude1": far})


def test_tissues_are_found_among_derivatives(tmp_path: Path) -> None:
    bids, extra = tmp_path / "bids", tmp_path / "extra"
    with pytest.raises(MissingInputError, match="E-TISSUE-MISSING") as caught:
        need_tissue_source(bids, "01", "a", [extra])
    assert str(extra) in str(caught.value)

    def put(path: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"image")
        return file

    put("bids/derivatives/fmriprep/sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-aseg_dseg.nii.gz")
    put("bids/derivatives/fmriprep/sub-02/anat/sub-02_desc-aseg_dseg.nii.gz")
    assert find_tissue_source(bids, "01") is None
    plain = put("bids/derivatives/fmriprep/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz")
    own = put("bids/derivatives/fmriprep/sub-01/ses-a/anat/sub-01_ses-a_desc-aparcaseg_dseg.nii.gz")
    for session, expected in ((None, plain), ("a", own), ("b", plain)):
        found = find_tissue_source(bids, "01", session)
        assert found is not None
        assert (found.path, found.kind) == (expected, "labels")
    better = put("extra/sub-01/anat/sub-01_desc-5tt_probseg.nii.gz")
    found = find_tissue_source(bids, "01", "a", [extra])
    assert found is not None
    assert (found.path, found.kind) == (better, "five_tissue")


def test_what_an_earlier_run_wrote_is_no_source_of_labels(tmp_path: Path) -> None:
    bids, out = tmp_path / "bids", tmp_path / "bids" / "derivatives" / "tractode"
    written = out / "sub-01" / "anat" / "sub-01_desc-5tt_probseg.nii.gz"
    written.parent.mkdir(parents=True)
    written.write_bytes(b"image")
    node = pe.Node(IdentityInterface(["x"]), "n")
    anatomy = Anatomy(AnatFile(bids / "T1w.nii", {}, {"sub": "01"}, "T1w", None), "sub-01_T1w", node, {})
    run = DwiRun(bids / "d.nii", bids / "d.bval", bids / "d.bvec", {}, {"sub": "01"}, None, "sub-01")
    with pytest.raises(MissingInputError, match="E-TISSUE-MISSING"):
        carry_regions(run, {}, Settings(bids, out, act="labels"), "01", anatomy)
    assert carry_regions(run, {}, Settings(bids, tmp_path, act="labels"), "01", anatomy).inputs.tissue_path == str(
        written
    )
