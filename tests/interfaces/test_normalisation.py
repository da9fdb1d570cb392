"""A scan's maps carried into a template and into the participant's anatomy: right names, sidecars, grids and directions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation

from tractode.bids.query import DwiRun
from tractode.bids.templates import BUILT_IN, Template
from tractode.fields import Affine, Image, ImageGrid, Streamlines
from tractode.interfaces.normalisation import NormaliseDwi
from tractode.interfaces.step import Job
from tractode.io.nifti import read_image, write_image
from tractode.io.tractogram import read_tractogram
from tractode.io.tractogram_stream import read_groups, stream_to
from tractode.io.transforms import write_itk
from tractode.ops import reorient_fod, sphere, symmetric
from tractode.ops import spherical_harmonics as sh

DWI, ANAT = "sub-01_dwi", "sub-01_T1w"
FIBRE = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)


def pose(angle: float, source: str, target: str) -> Affine:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [angle, -angle, angle / 2], degrees=True).as_matrix())
    return Affine(matrix, source, target)


TO_DWI, TO_ANAT = pose(12.0, ANAT, DWI), pose(20.0, BUILT_IN, ANAT)


@pytest.fixture
def given(tmp_path: Path, oblique_affine: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Uniform maps of one fibre in a box at the origin, an anatomical image, and the stored registrations."""
    monkeypatch.chdir(tmp_path)
    affine = oblique_affine.clone()
    affine[:3, :3] *= 3
    affine[:3, 3] = -affine[:3, :3] @ torch.tensor([5.0, 4.5, 4.0]).double()
    grid = ImageGrid((11, 10, 9), affine, DWI)
    tensor = symmetric.from_matrix(
        1.5e-3 * torch.outer(FIBRE, FIBRE) + torch.diag(torch.tensor([2e-4, 3e-4, 2e-4]).double())
    )
    maps = {
        "dti": {
            "diffusivity": tensor,
            "direction": FIBRE,
            **dict.fromkeys(("fa", "md", "ad", "rd", "s0"), torch.tensor([0.7])),
        },
        "csd": {"fod": reorient_fod.point_spread(FIBRE, 4), "afd": torch.tensor([1.0])},
    }
    fits = []
    for model, values in maps.items():
        fits.append({})
        for param, value in values.items():
            path = tmp_path / f"sub-01_{model}_{param}_dwimap.nii.gz"
            write_image(path, Image(grid, value.float()[:, None, None, None].expand(-1, *grid.shape)))
            native = {"Model": {"Parameters": {"Order": 4}}, "ResponseFunction": {"Coefficients": [[3.0, -1.0]]}}
            path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(native))
            fits[-1][param] = str(path)
    anat = ImageGrid((40, 44, 36), torch.diag(torch.tensor([-1.5, 1.5, 1.5, 1]).double()), ANAT)
    anat = ImageGrid(
        anat.shape, anat.affine + torch.tensor([[0, 0, 0, 30.0], [0, 0, 0, -33], [0, 0, 0, -27], [0, 0, 0, 0]]), ANAT
    )
    radius = anat.centres().norm(dim=-1)[None]
    write_image(tmp_path / "anat.nii.gz", Image(anat, 100 - radius))
    write_image(tmp_path / "mask.nii.gz", Image(anat, radius < 22))
    made: dict[str, Any] = {"models": list(maps), "fits": fits, "tractograms": [], "tracks": []}
    for name, transform, label in (("anat", TO_DWI, "T1w"), ("template", TO_ANAT, BUILT_IN)):
        for role, way in (("to", transform), ("from", transform.inverse())):
            write_itk(tmp_path / f"{name}-{role}.h5", way, grid)
        made[f"{name}_link"] = {f"{role}-{label}": str(tmp_path / f"{name}-{role}.h5") for role in ("from", "to")}
        made[f"{name}_facts"] = {"quality": {"passed": True}}
    return {**made, "anat_space": ANAT, "anat_modality": "T1w"}


def carry(tmp_path: Path, given: dict[str, Any], **options: Any) -> Any:
    job = Job(tmp_path, tmp_path / "out", "01", "run", "cpu", 0, 1, False)
    here = tmp_path / "sub-01_dwi.nii.gz"
    run = DwiRun(here, here, here, {}, {"sub": "01"}, None, "sub-01")
    return NormaliseDwi(job=job, step="normalise", run=run, **given, **options).run().outputs


def check_directions(outputs: dict[str, str], carried: torch.Tensor) -> ImageGrid:
    """Every kind of map at the origin shows the fibre where the transforms put it."""
    at = torch.zeros(3)
    images = {role: read_image(Path(path), "x")[0] for role, path in outputs.items() if path.endswith("map.nii.gz")}
    value = {role: image.sample(at).double() for role, image in images.items()}

    def apart(direction: torch.Tensor) -> float:
        return float(torch.rad2deg(sphere.angle(direction, carried)))

    assert apart(value["tensor-direction"]) < 0.1
    assert apart(symmetric.eigen(value["tensor-diffusivity"])[1][:, 0]) < 0.5  # the other axes differ a little
    many = sphere.directions(8000)
    assert apart(many[(sh.basis(many, 4) @ value["csd-fod"]).argmax()]) < 1.5
    assert float(value["tensor-fa"]) == pytest.approx(0.7, abs=1e-4)
    assert images["csd-fod"].grid.matches(images["tensor-diffusivity"].grid)
    return images["csd-fod"].grid


def test_into_the_anatomy_through_one_registration(given: dict[str, Any], tmp_path: Path) -> None:
    anatomy = {
        "prepared_anat": {"anat": str(tmp_path / "anat.nii.gz")},
        "normalised_anat": {"mask": str(tmp_path / "mask.nii.gz")},
    }
    done = carry(tmp_path, given, **anatomy)
    grid = check_directions(done.outputs, TO_DWI.inverse().map(FIBRE))
    size = 3 * (2.0 * 2.3 * 2.6) ** (1 / 3)  # the scan's voxel, along the axes of the anatomy
    assert grid.voxel_sizes == pytest.approx((size,) * 3, rel=1e-4)
    name = Path(done.outputs["csd-fod"]).name
    assert name == "sub-01_space-T1w_model-csd_param-fod_dwimap.nii.gz"
    content = json.loads(Path(done.outputs["csd-fod-sidecar"]).read_text())
    assert content["Reorientation"]["Modulation"] == "none"
    assert content["OrientationEncoding"]["Reference"] == "xyz"
    assert content["OrientationEncoding"]["SphericalHarmonicDegree"] == 4
    assert content["ResponseFunction"]["Coefficients"] == [[3.0, -1.0]]
    assert content["SpatialReference"] == "bids::anat.nii.gz"
    assert (
        "principal directions"
        in json.loads(Path(done.outputs["tensor-diffusivity-sidecar"]).read_text())["Reorientation"]["Method"]
    )
    assert done.facts["citation"] == "raffelt2012"
    assert sum("fod" in name for name in done.facts["reportlets"]) == 3


def test_into_a_template_through_the_whole_chain(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "tractode.interfaces.normalisation"
    monkeypatch.setattr(f"{module}.figures_glyphs.fod_glyphs", lambda *_, **__: [])  # the other test draws them
    monkeypatch.setattr(f"{module}.figures_registration.flicker", lambda *_, **__: None)
    monkeypatch.setattr(f"{module}.save_reportlets", lambda *_: None)
    template = Template(BUILT_IN, 4, Path(given["fits"][0]["fa"]), None)
    done = carry(tmp_path, given, template=template, modulation="jacobian")
    grid = check_directions(done.outputs, TO_ANAT.inverse().map(TO_DWI.inverse().map(FIBRE)))
    scalars = read_image(Path(done.outputs["tensor-fa"]), "x")[0].grid
    assert scalars.voxel_sizes == pytest.approx((4.0,) * 3)
    # 4 mm cubes are less than half of the scan's voxels: orientations stay at the scan's size.
    assert math.prod(grid.voxel_sizes) == pytest.approx(27 * 2.0 * 2.3 * 2.6, rel=1e-3)
    content = json.loads(Path(done.outputs["csd-fod-sidecar"]).read_text())
    assert content["Reorientation"]["Modulation"] == "jacobian"
    assert "SpatialReference" not in content


def test_generated_streamlines_are_carried_without_maps_and_keep_their_groups(
    given: dict[str, Any], tmp_path: Path
) -> None:
    grid = read_image(Path(given["fits"][0]["fa"]), DWI)[0].grid
    lines = Streamlines.from_list([torch.rand(5, 3) * 8, torch.rand(7, 3) * 8], DWI)
    path = tmp_path / "sub-01_track-gentract_tractogram.trx"
    with stream_to(path, grid) as out:
        out.append(lines)
        out.add_groups({"AF_L": torch.tensor([1])})
    path.with_suffix(".json").write_text(json.dumps({"StreamlineGeneration": {"Space": BUILT_IN}}))
    write_image(tmp_path / "dwiref.nii.gz", Image(grid, torch.ones(1, *grid.shape)))
    only = {"models": [], "fits": [], "tractograms": [{"tractogram": str(path)}], "tracks": ["gentract"]}
    anatomy = {
        "prepared_anat": {"anat": str(tmp_path / "anat.nii.gz")},
        "normalised_anat": {"mask": str(tmp_path / "mask.nii.gz")},
    }
    prepared = {"dwiref": str(tmp_path / "dwiref.nii.gz")}
    outputs = carry(tmp_path, {**given, **only}, prepared=prepared, **anatomy).outputs
    assert set(outputs) >= {"gentract-tractogram", "gentract-tractogram-sidecar"}
    assert not any(role.startswith(("csd", "tensor")) for role in outputs)
    written = Path(outputs["gentract-tractogram"])
    assert torch.allclose(read_tractogram(written, ANAT)[0].points, TO_DWI.inverse().map(lines.points), atol=1e-3)
    assert read_groups(written)["AF_L"].tolist() == [1]
    assert "generated for" in json.loads(Path(outputs["gentract-tractogram-sidecar"]).read_text())["Description"]


def test_nothing_is_carried_through_a_registration_that_failed(given: dict[str, Any], tmp_path: Path) -> None:
    given["anat_facts"] = {"quality": {"passed": False, "reason": "heads apart"}}
    anatomy = {
        "prepared_anat": {"anat": str(tmp_path / "anat.nii.gz")},
        "normalised_anat": {"mask": str(tmp_path / "mask.nii.gz")},
    }
    done = carry(tmp_path, given, **anatomy)
    assert done.outputs == {}
    assert "No outputs in T1w" in done.facts["skipped"]
