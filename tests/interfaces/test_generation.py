"""Streamlines generated for a scan: the field reaches the model as it is, the lines come back where they belong, and what the model was not made for is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation

from tractode.bids.query import DwiRun
from tractode.bids.templates import BUILT_IN, Template
from tractode.errors import InputDataError, UsageError
from tractode.fields import Affine, Image, ImageGrid, ShField
from tractode.fields.reorient import reoriented
from tractode.generative.gentract import GenTract
from tractode.generative.space import normalised, training_grid
from tractode.interfaces.generated_comparison import CompareGenerated
from tractode.interfaces.generation import Generate
from tractode.interfaces.generation_plan import GenerationPlan, check_bundles
from tractode.interfaces.step import Job
from tractode.interfaces.tracking_plan import TrackingPlan
from tractode.io.nifti import write_image
from tractode.io.tractogram import read_tractogram
from tractode.io.tractogram_stream import read_groups
from tractode.io.transforms import write_itk
from tractode.io.weights import shipped, write_weights
from tractode.ops import reorient_fod

DWI, ANAT = "sub-01_dwi", "sub-01_T1w"
N = 60


def pose(angle: float, shift: tuple[float, float, float], source: str, target: str) -> Affine:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [angle, -angle, angle / 2], degrees=True).as_matrix())
    matrix[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    return Affine(matrix, source, target)


TO_ANAT = pose(9.0, (12.0, -5.0, 7.0), BUILT_IN, ANAT)
TO_DWI = pose(-14.0, (-3.0, 9.0, 14.0), ANAT, DWI)
HERE = TO_ANAT.then(TO_DWI)
CENTRE = torch.tensor([0.0, -18.0, 8.0])


def truth(grid: ImageGrid, order: int = 6) -> ShField:
    """On a grid of the template: fibres along x on the left and oblique on the right of an ellipsoid of white matter."""
    at = grid.centres()
    inside = ((at - CENTRE) / torch.tensor([62.0, 78.0, 60.0])).norm(dim=-1) < 1
    sides = [
        reorient_fod.point_spread(torch.tensor(way, dtype=torch.float64), order).float()
        for way in ([1.0, 0.0, 0.0], [0.0, 0.6, 0.8])
    ]
    coeffs = torch.where(at[..., :1] < 0, sides[0], sides[1]) * inside[..., None]
    return ShField(grid, coeffs.permute(3, 0, 1, 2).contiguous(), order)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that expects about such a field, and whose flow stays where it starts: on its atlas."""
    model = GenTract.tiny(0)
    model.network.mean.copy_(normalised(truth(training_grid(), 4)).coeffs)
    folder = tmp_path_factory.mktemp("weights") / "tiny-1"
    tensors, settings = model.weights()
    write_weights(folder, tensors, {**settings, "training": {"n_synthetic": 40, "n_participants": 2}}, card="tiny")
    return folder


@pytest.fixture
def given(tmp_path: Path, oblique_affine: torch.Tensor, weights: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A whole brain on coarse voxels, stored oblique and left-handed, and its registrations."""
    monkeypatch.chdir(tmp_path)
    return scan(tmp_path, oblique_affine, weights, (32, 36, 26))


def scan(tmp_path: Path, oblique_affine: torch.Tensor, weights: Path, shape: tuple[int, int, int]) -> dict:
    affine = oblique_affine.clone()
    affine[:3, :3] *= 2.7
    middle = HERE.map(CENTRE.double())
    affine[:3, 3] = middle - affine[:3, :3] @ ((torch.tensor(shape) - 1) / 2).double()
    grid = ImageGrid(shape, affine, DWI)
    field = reoriented(truth(training_grid()), grid, HERE.inverse())
    brain = ((grid.centres() - middle.float()).norm(dim=-1) < 95)[None]
    amount = field.coeffs[:1] / field.coeffs[:1].max()
    images = {"fod": field.coeffs, "mask": brain, "dwiref": amount * 80 + brain * 20.0, "fa": amount * 0.6}
    for name, values in images.items():
        write_image(tmp_path / f"{name}.nii.gz", Image(grid, values))
    made: dict[str, Any] = {
        "prepared": {role: str(tmp_path / f"{role}.nii.gz") for role in ("mask", "dwiref")},
        "orientations": {"fod": str(tmp_path / "fod.nii.gz")},
        "template": Template(BUILT_IN, 2, tmp_path / "fa.nii.gz", None),
        "plan": TrackingPlan(n_streamlines=N),
        "generation": GenerationPlan(weights=weights),
        "anat_space": ANAT,
        "anat_modality": "T1w",
    }
    for name, transform, label in (("anat", TO_DWI, "T1w"), ("template", TO_ANAT, BUILT_IN)):
        write_itk(tmp_path / f"{name}-to.h5", transform, grid)
        made[f"{name}_link"] = {f"to-{label}": str(tmp_path / f"{name}-to.h5")}
        made[f"{name}_facts"] = {"quality": {"passed": True}}
    return made


def run_of(tmp_path: Path) -> DwiRun:
    here = tmp_path / "sub-01_dwi.nii.gz"
    return DwiRun(here, here, here, {}, {"sub": "01"}, None, "sub-01")


def generate(tmp_path: Path, given: dict, folder: str = "out", seed: int = 0, **options: Any) -> Any:
    job = Job(tmp_path, tmp_path / folder, "01", "run", "cpu", seed, 1, True)
    return Generate(job=job, step="generate", run=run_of(tmp_path), method="gentract", **{**given, **options}).run()


@pytest.fixture(scope="module")
def only_files() -> Any:
    """Without figures, which one test looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generate, "_show", lambda *_: None)
        yield


def test_lines_come_back_where_the_atlas_lies_in_the_scan(
    given: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ShField] = []
    context = GenTract.context
    monkeypatch.setattr(GenTract, "context", lambda self, field: (seen.append(field), context(self, field))[1])
    outputs = generate(tmp_path, given, formats=["trx", "tck"]).outputs.outputs

    # The field that the model sees is the true one, away from borders, though it was carried there and back.
    expected = truth(training_grid()).coeffs
    core = ((training_grid().centres() - CENTRE).norm(dim=-1) < 45) & (training_grid().centres()[..., 0].abs() > 12)
    assert float((seen[0].coeffs - expected)[:, core].abs().max()) < 0.03 * float(expected.max())

    # The lines: back in the template they are the atlas's, but for the noise they start with.
    lines, notes = read_tractogram(Path(outputs["tractogram"]), DWI)
    assert notes == []
    assert len(lines) == N
    assert (lines.n_points == 64).all()
    there = lines.moved(HERE.inverse()).points.reshape(N, 64, 3)
    atlas = GenTract.tiny(0).source
    bundle = lines.per_streamline["bundle"]
    ends = torch.stack([atlas.knots[:, 0], atlas.knots[:, -1]], 1)
    off = (there[:, [0, -1]][:, None] - ends[None]).norm(dim=-1).mean(-1)
    off[bundle[:, None] != atlas.bundle[None]] = torch.inf
    assert float(off.amin(1).mean()) < 4.0
    confidence = lines.per_streamline["confidence"]
    assert confidence.dtype == torch.float32
    assert bool(((confidence >= 0) & (confidence <= 1)).all())
    copy, _ = read_tractogram(Path(outputs["tck"]), DWI)
    assert torch.equal(copy.points, lines.points)
    groups = read_groups(Path(outputs["tractogram"]))
    assert set(groups) <= {"one", "two", "three"}
    assert sum(map(len, groups.values())) == N
    for name, index in groups.items():
        assert (bundle[index] == ("one", "two", "three").index(name)).all()


def test_the_sidecar_says_what_made_the_lines(given: dict, tmp_path: Path, weights: Path) -> None:
    done = generate(tmp_path, given).outputs
    content = json.loads(Path(done.outputs["tractogram-sidecar"]).read_text())
    made = content["StreamlineGeneration"]
    sums = (weights / "sha256").read_text()
    assert made["Weights"]["Name"] == "tiny-1"
    assert {f"{digest}  {name}" for name, digest in made["Weights"]["SHA256"].items()} == set(sums.splitlines())
    assert made["Space"] == BUILT_IN
    assert made["Registration"] == f"scan → T1w → {BUILT_IN}"
    rows = made["Bundles"]
    assert [row["Name"] for row in rows] == ["one", "two", "three"]
    assert (
        sum(row["Accepted"] for row in rows) == N == content["StreamlineReconstructionDensity"]["AcceptedStreamlines"]
    )
    assert [row["Generated"] for row in rows] == [row["Accepted"] for row in rows]  # none was left out
    assert all(row["SpreadMillimetres"] > 0 for row in rows)
    assert made["StreamlinesLeavingBrainMask"] == 0
    assert content["StreamlineSeeding"]["Sources"] == []
    assert "not tracked" in content["Description"]
    assert content["StreamlinePropagation"]["Algorithm"]["Name"] == "GenTract"
    assert content["StreamlinePropagation"]["StepSize"] is None
    assert done.facts["citation"] == "sargood2025"
    assert done.facts["n_streamlines"] == N
    assert done.facts["notes"] == []
    figures = {Path(name).name for name in done.facts["reportlets"]}
    assert {
        f"sub-01_desc-{name}_tractogram.json" for name in ("gentract", "gentractslabs", "gentractbundles")
    } <= figures
    panel = json.loads((tmp_path / "out/sub-01/figures/sub-01_desc-gentractconfidence_tractogram.json").read_text())
    assert panel["section"] == "generation"
    assert "trained on 40 simulated participants and 2 people" in panel["caption"]


def test_the_seed_decides_the_lines(given: dict, tmp_path: Path, only_files: None) -> None:
    found = [
        Path(generate(tmp_path, given, f"out{i}", seed=seed).outputs.outputs["tractogram"]).read_bytes()
        for i, seed in enumerate((3, 3, 4))
    ]
    assert found[0] == found[1] != found[2]


def test_a_finished_result_is_taken_up_again(given: dict, tmp_path: Path, only_files: None, weights: Path) -> None:
    first = generate(tmp_path, given).outputs
    path = Path(first.outputs["tractogram"])
    before = path.stat().st_mtime_ns
    assert generate(tmp_path, given).outputs.facts == first.facts
    assert path.stat().st_mtime_ns == before
    generate(tmp_path, given, generation=GenerationPlan(weights=weights, steps=1))
    assert path.stat().st_mtime_ns != before


def test_without_anatomy_the_direct_registration_serves_and_it_is_said(
    given: dict, tmp_path: Path, oblique_affine: torch.Tensor, only_files: None
) -> None:
    write_itk(tmp_path / "direct.h5", Affine(TO_DWI.matrix @ TO_ANAT.matrix, BUILT_IN, DWI), training_grid())
    direct = {"template_link": {f"to-{BUILT_IN}": str(tmp_path / "direct.h5")}, "anat_space": "", "anat_link": {}}
    done = generate(tmp_path, given, **direct).outputs
    assert "affine" in done.facts["generation"]["Registration"]
    assert any("without an anatomical image" in note["message"] for note in done.facts["notes"])
    assert done.facts["n_streamlines"] == N


def test_a_registration_that_failed_is_no_ground_to_draw_on(given: dict, tmp_path: Path) -> None:
    failed = {"quality": {"passed": False, "reason": "heads apart"}}
    with pytest.raises(InputDataError, match="heads apart") as caught:
        generate(tmp_path, given, template_facts=failed)
    assert (caught.value.id, caught.value.exit_code) == ("E-GENTRACT-REGISTRATION", 65)


def _slab(given: dict, tmp_path: Path, affine: torch.Tensor, weights: Path) -> dict:
    return scan(tmp_path, affine, weights, (32, 36, 10))


def _rewritten(tmp_path: Path, change: Any) -> None:
    from tractode.io.nifti import read_image

    image, _ = read_image(tmp_path / "fod.nii.gz", DWI)
    write_image(tmp_path / "fod.nii.gz", Image(image.grid, change(image.values)))


def _turned(values: torch.Tensor) -> torch.Tensor:
    """As of a gradient table with swapped axes: x → y → z → x."""
    turn = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    flat = values.flatten(1).T
    return reorient_fod.reorient(flat, turn.expand(len(flat), 3, 3), 6, "none").T.reshape(values.shape)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "covers"),
        (lambda values: values * 0, "agree too little"),
        (lambda values: values[:6], "order 2"),
        (_turned, "agree too little"),
    ],
    ids=["slab", "empty", "low order", "turned"],
)
def test_what_the_model_was_not_made_for_is_refused_with_the_reason(
    given: dict, tmp_path: Path, oblique_affine: torch.Tensor, weights: Path, change: Any, said: str
) -> None:
    if change is None:
        given = _slab(given, tmp_path, oblique_affine, weights)
    else:
        _rewritten(tmp_path, change)
    with pytest.raises(InputDataError, match=said) as caught:
        generate(tmp_path, given)
    assert caught.value.id == "E-GENTRACT-DATA"


def test_bundles_by_name(given: dict, tmp_path: Path, only_files: None, weights: Path) -> None:
    chosen = GenerationPlan(weights=weights, bundles=("two",))
    done = generate(tmp_path, given, generation=chosen).outputs
    lines, _ = read_tractogram(Path(done.outputs["tractogram"]), DWI)
    assert (lines.per_streamline["bundle"] == 1).all()
    assert done.facts["generation"]["BundlesAskedFor"] == ["two"]
    with pytest.raises(UsageError, match=r"did you mean one"):
        GenerationPlan(weights=weights, bundles=("on",)).model("gentract")


def test_a_name_like_none_is_answered_with_all() -> None:
    with pytest.raises(UsageError, match="choose from AF_L, CC"):
        check_bundles(["?"], ["AF_L", "CC"])


def test_weights_that_were_changed_are_refused(given: dict, tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "mine-1"
    folder.mkdir()
    for path in weights.iterdir():
        content = path.read_bytes()
        (folder / path.name).write_bytes(content[:-1] + b"x" if path.suffix == ".safetensors" else content)
    with pytest.raises(InputDataError, match="sha256"):
        generate(tmp_path, given, generation=GenerationPlan(weights=folder))


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(InputDataError, match="not weights of gentract") as caught:
        GenerationPlan(weights=shipped("contrastive")).model("gentract")
    assert caught.value.id == "E-GENTRACT-WEIGHTS"


def test_lines_that_are_not_sure_enough_are_left_out_and_counted(
    given: dict, tmp_path: Path, only_files: None, weights: Path
) -> None:
    usual = read_tractogram(Path(generate(tmp_path, given).outputs.outputs["tractogram"]), DWI)[0]
    least = float(usual.per_streamline["confidence"].median())
    done = generate(tmp_path, given, "sure", generation=GenerationPlan(weights=weights, min_confidence=least)).outputs
    lines, _ = read_tractogram(Path(done.outputs["tractogram"]), DWI)
    assert len(lines) == N
    assert float(lines.per_streamline["confidence"].min()) >= least
    rows = done.facts["generation"]["Bundles"]
    assert sum(row["Generated"] for row in rows) > 1.5 * N
    assert done.facts["n_generated"] == sum(row["Generated"] for row in rows)
    with pytest.raises(InputDataError) as caught:
        generate(tmp_path, given, "none", generation=GenerationPlan(weights=weights, min_confidence=1.0))
    assert caught.value.id == "E-GENTRACT-EMPTY"


def test_rules_on_finished_lines_hold_for_generated_ones(given: dict, tmp_path: Path, only_files: None) -> None:
    from tractode.io.nifti import read_image

    mask, _ = read_image(tmp_path / "mask.nii.gz", DWI)
    there = HERE.inverse().map(mask.grid.centres().double())
    # The two bundles at the back pass through it, the one in front does not come near it.
    region = ((there[..., 1] < 5) & (there[..., 0].abs() < 80))[None]
    write_image(tmp_path / "region.nii.gz", Image(mask.grid, region))
    for kind, holds in (("include", lambda touched: touched.all()), ("exclude", lambda touched: not touched.any())):
        done = generate(tmp_path, given, kind, regions={f"region-{kind}1": str(tmp_path / "region.nii.gz")}).outputs
        lines, _ = read_tractogram(Path(done.outputs["tractogram"]), DWI)
        inside = Image(mask.grid, region).sample(lines.points, "nearest")[:, 0].reshape(N, 64) > 0.5
        assert holds(inside.any(1))
        content = json.loads(Path(done.outputs["tractogram-sidecar"]).read_text())
        key = {"include": "InclusionRegions", "exclude": "ExclusionRegions"}[kind]
        assert len(content["StreamlineAcceptanceCriteria"][key]) == 1


def test_tissues_cut_generated_lines_where_grey_matter_begins(given: dict, tmp_path: Path, only_files: None) -> None:
    from tractode.io.nifti import read_image

    mask, _ = read_image(tmp_path / "mask.nii.gz", DWI)
    grid = mask.grid.resampled(3.0)
    there = HERE.inverse().map(grid.centres().double())
    white = (there[..., 0].abs() < 25).float()  # a slab of white matter between two of cortex, all lines cross it
    tissues = torch.stack([1 - white, 0 * white, white, 0 * white, 0 * white])
    write_image(tmp_path / "tissues.nii.gz", Image(grid, tissues))
    act = TrackingPlan(n_streamlines=None, n_seeds=N, with_act=True)
    done = generate(tmp_path, given, "act", plan=act, regions={"tissues": str(tmp_path / "tissues.nii.gz")}).outputs
    lines, _ = read_tractogram(Path(done.outputs["tractogram"]), DWI)
    assert 2 < len(lines) < N / 2  # most end in white matter and are left out
    assert int(lines.n_points.min()) > 5
    assert int(lines.n_points.max()) < 64
    assert "seed_point" not in lines.per_streamline
    ends = torch.cat([lines.offsets[:-1], lines.offsets[1:] - 1])
    across = HERE.inverse().map(lines.points[ends].double())[:, 0].abs()
    assert float((across - 25).abs().max()) < 4.0
    content = json.loads(Path(done.outputs["tractogram-sidecar"]).read_text())
    assert content["StreamlineAcceptanceCriteria"]["AnatomicalSegmentation"].endswith("tissues.nii.gz")


def test_generated_beside_tracked(given: dict, tmp_path: Path, only_files: None) -> None:
    first = generate(tmp_path, given).outputs.outputs
    other = generate(tmp_path, given, "other", seed=9).outputs.outputs
    job = Job(tmp_path, tmp_path / "out", "01", "run", "cpu", 0, 1, True)
    common = {name: given[name] for name in ("prepared", "orientations")}
    step = CompareGenerated(
        job=job, step="compare", run=run_of(tmp_path), track="gentract", generated=first, tracks=["sdstream"],
        tractograms=[other], tensor={"fa": str(tmp_path / "fa.nii.gz")}, **common,
    )  # fmt: skip
    done = step.run().outputs
    content = json.loads(Path(done.outputs["comparison"]).read_text())
    assert Path(done.outputs["comparison"]).name == "sub-01_track-gentract_desc-comparison_qc.json"
    assert content["Methods"]["sdstream"]["density"]["correlation"] > 0.3
    mine = content["Methods"]["gentract"]
    lines, _ = read_tractogram(Path(first["tractogram"]), DWI)
    at = lines.moved(HERE.inverse()).points - CENTRE
    inside = (at / torch.tensor([62.0, 78.0, 60.0])).norm(dim=-1) < 1
    assert mine["alignment"]["in_white_matter"] == pytest.approx(float(inside.float().mean()), abs=0.06)
    assert "density" not in mine
    # On the left fibres run as the lines do, and on the right across them.
    assert 20 < mine["alignment"]["angle_deg"] < 60
    assert len(done.facts["reportlets"]) == 2


def test_the_file_is_whole_for_other_readers(given: dict, tmp_path: Path, only_files: None) -> None:
    trx = pytest.importorskip("trx.trx_file_memmap")
    path = Path(generate(tmp_path, given).outputs.outputs["tractogram"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    loaded = trx.load(str(path))
    assert {name: len(index) for name, index in loaded.groups.items()} == {
        k: len(v) for k, v in read_groups(path).items()
    }
    assert loaded.data_per_streamline["confidence"].shape == (N, 1)
    loaded.close()
