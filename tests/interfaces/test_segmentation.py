"""The step that segments an anatomical image, its own way or from what was given, and what it leaves for a scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tractode.bids.found import AnatFile
from tractode.bids.query import DwiRun
from tractode.bids.templates import BUILT_IN, Template
from tractode.bids.tissues import TissueSource, find_tissue_source
from tractode.errors import InputDataError
from tractode.fields import Affine, Image, ImageGrid, ShField
from tractode.interfaces import segmentation
from tractode.interfaces.regions import CarryRegions
from tractode.interfaces.segmentation import MeasureBoundary, SegmentAnat
from tractode.interfaces.step import Job
from tractode.interfaces.tracking_plan import TrackingPlan
from tractode.io.nifti import read_image, write_image
from tractode.io.transforms import write_itk
from tractode.tracking.anatomy import Anatomy

ANAT, DWI = "sub-01_T1w", "sub-01_dwi"
SHAPE = (40, 38, 34)


def spheres(grid: ImageGrid) -> torch.Tensor:
    """Grey, white, CSF fractions about the grid's middle."""
    middle = grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2)
    radius = (grid.centres(torch.float64) - middle).norm(dim=-1)

    def inside(of: float) -> torch.Tensor:
        return ((of - radius) / 2.4 + 0.5).clamp(0, 1)

    return torch.stack((inside(29) - inside(20), inside(20), inside(33) - inside(29))).float()


@pytest.fixture
def given(tmp_path: Path, oblique_affine: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A T1w, its registration to a template that is itself, and the template's tissues."""
    monkeypatch.chdir(tmp_path)
    grid = ImageGrid(SHAPE, oblique_affine, ANAT)
    tissues = spheres(grid)
    noise = 12 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    t1w = torch.einsum("t,tijk->ijk", torch.tensor([600.0, 900.0, 250.0]), tissues) + noise
    write_image(tmp_path / "t1w.nii.gz", Image(grid, t1w.abs()[None]))
    still = Affine(torch.eye(4, dtype=torch.float64), ANAT, BUILT_IN)
    write_itk(tmp_path / "from.h5", still, grid)
    monkeypatch.setattr(segmentation, "load_priors", lambda _: Image(grid.renamed(BUILT_IN), tissues))
    monkeypatch.setattr(segmentation, "tissue_files", lambda _: {"GM": tmp_path / "t1w.nii.gz"})
    source = tmp_path / "sub-01_T1w.nii.gz"
    return {
        "job": Job(tmp_path, tmp_path / "out", "01", "run", "cpu", 0, 1, True),
        "anat": AnatFile(source, {}, {"sub": "01"}, "T1w", None),
        "prepared": {"anat": str(tmp_path / "t1w.nii.gz")},
        "space": ANAT,
        "template": Template(BUILT_IN, 2, tmp_path / "t1w.nii.gz", None),
        "normalised": {f"from-{BUILT_IN}": str(tmp_path / "from.h5")},
        "normalised_facts": {"quality": {"passed": True}},
    }


def test_own_tissues_are_written_and_shown(given: dict[str, Any], tmp_path: Path) -> None:
    result = SegmentAnat(step="segment", **given).run().outputs
    assert {"GM", "WM", "CSF", "dseg", "five-tissue"} <= result.outputs.keys()
    assert Path(result.outputs["GM"]).name == "sub-01_label-GM_probseg.nii.gz"
    assert Path(result.outputs["dseg"]).name == "sub-01_dseg.nii.gz"
    labels, _ = read_image(Path(result.outputs["dseg"]), ANAT)
    truth = spheres(labels.grid)
    sure = truth.amax(0) > 0.9
    assert float((labels.values[0][sure] == truth.argmax(0)[sure] + 1).float().mean()) > 0.97
    five, _ = read_image(Path(result.outputs["five-tissue"]), ANAT)
    assert five.values.shape[0] == 5
    torch.testing.assert_close(five.values[:2].sum(0), read_image(Path(result.outputs["GM"]), ANAT)[0].values[0])
    content = json.loads(Path(result.outputs["dseg-sidecar"]).read_text())
    assert content["LabelMap"] == {"1": "GM", "2": "WM", "3": "CSF"}
    assert result.facts["tissues_from"] == "own"
    assert result.facts["citation"] == "ashburner2005"
    assert len(result.facts["reportlets"]) == 2


def test_maps_that_were_given_are_used(given: dict[str, Any], tmp_path: Path) -> None:
    grid = ImageGrid(SHAPE, read_image(tmp_path / "t1w.nii.gz", ANAT)[0].grid.affine, ANAT)
    anat = tmp_path / "derivatives" / "fmriprep" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for label, values in zip(("GM", "WM", "CSF"), spheres(grid), strict=True):
        write_image(anat / f"sub-01_label-{label}_probseg.nii.gz", Image(grid, values[None]))
    source = find_tissue_source(tmp_path, "01", fractions=True)
    assert source == TissueSource(
        anat / "sub-01_label-GM_probseg.nii.gz", "fractions",
        (anat / "sub-01_label-WM_probseg.nii.gz", anat / "sub-01_label-CSF_probseg.nii.gz"),
    )  # fmt: skip
    assert find_tissue_source(tmp_path, "01") is None
    assert find_tissue_source(tmp_path, "01", own=tmp_path / "derivatives" / "fmriprep", fractions=True) is None
    result = SegmentAnat(step="segment", source=source, **given).run().outputs
    white, _ = read_image(Path(result.outputs["WM"]), ANAT)
    torch.testing.assert_close(white.values[0], spheres(grid)[1], atol=1e-3, rtol=0)
    assert result.facts["tissues_from"] == "fractions"


def test_a_poor_registration_leaves_it_out(given: dict[str, Any]) -> None:
    given["normalised_facts"] = {"quality": {"passed": False, "reason": "poor overlap"}}
    result = SegmentAnat(step="segment", **given).run().outputs
    assert result.outputs == {}
    assert "quality gate" in result.facts["segmentation_skipped"]
    assert result.facts["notes"][0]["id"] == "W-SEG-NONE"


def test_the_scan_gets_tissues_and_a_measure_of_its_border(given: dict[str, Any], tmp_path: Path) -> None:
    made = SegmentAnat(step="segment", **given).run().outputs.outputs
    grid = ImageGrid(SHAPE, read_image(tmp_path / "t1w.nii.gz", ANAT)[0].grid.affine, DWI)
    tissues = spheres(grid)
    b0 = torch.einsum("t,tijk->ijk", torch.tensor([500.0, 380.0, 900.0]), tissues)
    write_image(tmp_path / "dwiref.nii.gz", Image(grid, b0[None]))
    write_image(tmp_path / "mask.nii.gz", Image(grid, tissues.sum(0, keepdim=True) > 0.5))
    for way, (source, target) in {"to": (ANAT, DWI), "from": (DWI, ANAT)}.items():
        write_itk(tmp_path / f"{way}.h5", Affine(torch.eye(4, dtype=torch.float64), source, target), grid)
    here = tmp_path / "sub-01_dwi.nii.gz"
    common = {
        "job": given["job"],
        "run": DwiRun(here, here, here, {}, {"sub": "01"}, None, "sub-01"),
        "prepared": {role: str(tmp_path / f"{role}.nii.gz") for role in ("dwiref", "mask")},
        "segmented": made,
        "anat_link": {f"{way}-T1w": str(tmp_path / f"{way}.h5") for way in ("to", "from")},
        "anat_facts": {"quality": {"passed": True}},
        "anat_space": ANAT,
        "anat_modality": "T1w",
    }
    measured = MeasureBoundary(step="boundary", **common).run().outputs
    assert measured.facts["boundary"]["distance"] < 0.7
    assert measured.facts["boundary"]["crossed"] > 0.95
    assert Path(measured.outputs["boundary"]).name == "sub-01_desc-boundary_qc.json"
    carried = CarryRegions(step="carry", tissues="segment", **common).run().outputs
    assert read_image(Path(carried.outputs["tissues"]), DWI)[0].values.shape[0] == 5
    stopping_and_seeding_follow(carried.outputs, Image(grid, tissues.sum(0, keepdim=True) > 0.5))
    common["segmented"] = {}
    assert "boundary_skipped" in MeasureBoundary(step="nothing", **common).run().outputs.facts
    with pytest.raises(InputDataError, match="E-TISSUE-SEGMENT"):
        CarryRegions(step="carry again", tissues="segment", **common).run()


def stopping_and_seeding_follow(regions: dict[str, str], brain: Image) -> None:
    """Lines are cut by the tissues that were found, and begin where their grey and white matter meet."""
    plan = TrackingPlan(where="interface", with_act=True)
    field = ShField(brain.grid, torch.zeros(1, *SHAPE), 0)
    material = plan.material(brain, None, field, regions)
    (rule,) = plan.rules(material)
    assert isinstance(rule, Anatomy)
    assert rule.tissues is material.tissues
    seeds = plan.seeding(material).draw(40, torch.Generator().manual_seed(0), 0).points
    middle = brain.grid.to_world((torch.tensor(SHAPE, dtype=torch.float64) - 1) / 2)
    assert float(((seeds.double() - middle).norm(dim=-1) - 20).abs().max()) < 2.0
