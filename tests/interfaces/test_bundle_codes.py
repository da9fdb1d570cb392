"""Bundles of a tractogram: lines go to the codec's space and come back where they were, with names, and what cannot be coded is counted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation

from tractode.bids.query import DwiRun
from tractode.bids.templates import BUILT_IN, Template
from tractode.errors import InputDataError, UsageError
from tractode.fields import Affine, Image, ImageGrid, Streamlines
from tractode.fields.line_shape import one_way, resampled
from tractode.generative.bounded_code import largest_error, refined
from tractode.generative.codec import BundleCodec
from tractode.interfaces.bundle_codes import EncodeBundles
from tractode.interfaces.codec_plan import CodecPlan, names_of
from tractode.interfaces.step import Job
from tractode.io.compressed_tractogram import read_compressed, restored
from tractode.io.nifti import write_image
from tractode.io.tractogram import read_tractogram
from tractode.io.tractogram_stream import read_groups, stream_to
from tractode.io.transforms import write_itk
from tractode.io.weights import write_weights

DWI, ANAT = "sub-01_dwi", "sub-01_T1w"
N = 40


def pose(angle: float, shift: tuple[float, float, float], source: str, target: str) -> Affine:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [angle, -angle, angle / 2], degrees=True).as_matrix())
    matrix[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    return Affine(matrix, source, target)


TO_ANAT = pose(9.0, (12.0, -5.0, 7.0), BUILT_IN, ANAT)
TO_DWI = pose(-14.0, (-3.0, 9.0, 14.0), ANAT, DWI)
HERE = TO_ANAT.then(TO_DWI)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny codec whose namer tells left from right, as its latent of a line's middle says."""
    folder = tmp_path_factory.mktemp("weights") / "tiny-1"
    tensors, settings = BundleCodec.tiny(0).weights()
    write_weights(folder, tensors, settings, card="tiny")
    return folder


@pytest.fixture(scope="module")
def lines() -> Streamlines:
    """In the template: bent lines on both sides, of 10 to 60 points."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for number in range(N):
        share = torch.linspace(0, 1, int(torch.randint(10, 60, (1,), generator=generator)))[:, None]
        ends = torch.randn(2, 3, generator=generator) * torch.tensor([8.0, 25, 15])
        side = torch.tensor([30.0 if number % 2 else -30.0, 0, 0])
        made.append(side + ends[0] + share * (ends[1] - ends[0]) + torch.tensor([0, 0, 15.0]) * torch.sin(3 * share))
    return Streamlines.from_list(made, BUILT_IN)


@pytest.fixture
def given(
    tmp_path: Path, oblique_affine: torch.Tensor, weights: Path, lines: Streamlines, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    affine, shape = oblique_affine.clone(), (20, 22, 18)
    affine[:3, :3] *= 4
    affine[:3, 3] = HERE.map(torch.zeros(3).double()) - affine[:3, :3] @ ((torch.tensor(shape) - 1) / 2).double()
    grid = ImageGrid(shape, affine, DWI)
    for name in ("mask", "dwiref"):
        write_image(tmp_path / f"{name}.nii.gz", Image(grid, torch.ones(1, *shape)))
    made: dict[str, Any] = {
        "prepared": {role: str(tmp_path / f"{role}.nii.gz") for role in ("mask", "dwiref")},
        "tractogram": {"tractogram": str(tmp_path / "sub-01_track-sdstream_tractogram.trx")},
        "template": Template(BUILT_IN, 2, tmp_path / "mask.nii.gz", None),
        "plan": CodecPlan(weights=weights, min_confidence=0.0),
        "anat_space": ANAT,
        "anat_modality": "T1w",
    }
    for name, transform, label in (("anat", TO_DWI, "T1w"), ("template", TO_ANAT, BUILT_IN)):
        write_itk(tmp_path / f"{name}-from.h5", transform.inverse(), grid)
        made[f"{name}_link"] = {f"from-{label}": str(tmp_path / f"{name}-from.h5")}
        made[f"{name}_facts"] = {"quality": {"passed": True}}
    put(tmp_path, lines.moved(HERE), grid)
    return made


def put(tmp_path: Path, here: Streamlines, grid: ImageGrid) -> None:
    path = tmp_path / "sub-01_track-sdstream_tractogram.trx"
    with stream_to(path, grid) as out:
        out.append(here)
    path.with_suffix(".json").write_text('{"StreamlineSeeding": {}, "Description": "tracked"}')


def run(tmp_path: Path, given: dict[str, Any], folder: str = "out", **options: Any) -> Any:
    path = tmp_path / "sub-01_dwi.nii.gz"
    job = Job(tmp_path, tmp_path / folder, "01", "run", "cpu", 0, 1, True)
    dwi = DwiRun(path, path, path, {}, {"sub": "01"}, None, "sub-01")
    return EncodeBundles(job=job, step="encode", run=dwi, track="sdstream", **{**given, **options}).run().outputs


@pytest.fixture
def only_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without figures, which one test looks at."""
    monkeypatch.setattr(EncodeBundles, "_show", lambda *_: None)


def test_lines_stay_where_they_are_and_have_the_codes_of_the_template(
    given: dict, tmp_path: Path, weights: Path, lines: Streamlines, only_files: None
) -> None:
    done = run(tmp_path, given)
    path = Path(done.outputs["bundles-tractogram"])
    assert path.name == "sub-01_track-sdstream_desc-bundles_tractogram.trx"
    here, notes = read_tractogram(path, DWI)
    assert notes == []
    assert torch.allclose(here.points, lines.moved(HERE).points.float(), atol=1e-4)
    codec = given["plan"].codec()
    data = here.per_streamline
    there = here.moved(HERE.inverse())
    assert torch.equal(data["code"].long(), codec.encode(there).values) or (
        (data["code"].long() == codec.encode(there).values).float().mean() > 0.97  # the file rounds to float32
    )
    bundle, confidence = codec.namer.named(codec.dequantise(data["code"].long()), 0.0)
    assert torch.equal(data["bundle"].long(), bundle)
    assert torch.allclose(data["confidence"], confidence.float())
    assert data["index"].tolist() == list(range(N))
    groups = read_groups(path)
    assert {name: index.tolist() for name, index in groups.items()} == {
        name: (bundle == number).nonzero().ravel().tolist()
        for number, name in enumerate(codec.names)
        if bool((bundle == number).any())
    }


def test_the_compressed_file_decodes_within_its_bound(
    given: dict, tmp_path: Path, weights: Path, lines: Streamlines, only_files: None
) -> None:
    done = run(tmp_path, given)
    path = Path(done.outputs["compressed"])
    assert path.name == f"sub-01_space-{BUILT_IN}_track-sdstream_desc-compressed_tractogram.safetensors"
    content, codec = read_compressed(path), given["plan"].codec()
    back = restored(content, codec)
    assert content.weights == {
        name: digest for digest, name in map(str.split, (weights / "sha256").read_text().splitlines())
    }
    truth = one_way(lines)
    for row in range(N):
        one = truth.select(torch.tensor([row]))
        assert float(largest_error(one, back[row][None])) <= 2.0 + 0.01
    facts = json.loads(Path(done.outputs["compressed-sidecar"]).read_text())["Compression"]
    assert facts["LargestErrorMillimetres"] <= 2.0
    assert facts["StreamlinesKeptAsPoints"] == int(content.is_exact.sum())
    assert facts["Bytes"] == path.stat().st_size
    assert facts["BytesOfTRXFloat16"] == 6 * len(lines.points) + 4 * (N + 1)
    even = (resampled(truth, 64) - torch.stack([refined(line[None])[0] for line in back])).norm(dim=-1)
    assert facts["PointErrorMillimetres"]["Mean"] == pytest.approx(float(even.mean()), abs=1e-3)
    again, _ = names_of(content, codec, 0.0)
    there = read_tractogram(Path(done.outputs["bundles-tractogram"]), DWI)[0].per_streamline["bundle"]
    assert (again == there).float().mean() > 0.8  # with fewer stages a name may change


def test_the_table_summarises_every_bundle(given: dict, tmp_path: Path, only_files: None) -> None:
    done = run(tmp_path, given)
    path = Path(done.outputs["bundles"])
    assert path.name == "sub-01_track-sdstream_bundles.tsv"
    with path.open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert sum(int(row["n_streamlines"]) for row in rows) + done.facts["coding"]["Other"] == N
    known = json.loads(Path(done.outputs["bundles-sidecar"]).read_text())
    assert all(set(row) <= set(known) for row in rows)
    assert [name for name in rows[0] if name.startswith("latent_")][:2] == ["latent_000", "latent_001"]
    groups = read_groups(Path(done.outputs["bundles-tractogram"]))
    here, _ = read_tractogram(Path(done.outputs["bundles-tractogram"]), DWI)
    for row in rows:
        assert float(row["length"]) == pytest.approx(float(here.lengths()[groups[row["bundle"]]].mean()), abs=0.01)
    trx = pytest.importorskip("trx.trx_file_memmap")
    loaded = trx.load(done.outputs["bundles-tractogram"])
    for row in rows:
        numbers = loaded.data_per_group[row["bundle"]]["latent"].ravel().tolist()
        assert numbers == pytest.approx([float(row[f"latent_{k:03d}"]) for k in range(len(numbers))], abs=1e-4)
    loaded.close()


def test_lines_that_have_no_code_are_set_aside_and_counted(
    given: dict, tmp_path: Path, lines: Streamlines, only_files: None
) -> None:
    here = lines.moved(HERE)
    broken = here[0].clone().float()
    broken[3] = torch.nan
    odd = [broken, here[1][:1].float(), here[2].float(), here[3].float() + 400, here[4][:0].float(), here[5].float()]
    grid = ImageGrid((5, 6, 7), torch.eye(4, dtype=torch.float64), DWI)
    put(tmp_path, Streamlines.from_list(odd, DWI), grid)
    done = run(tmp_path, given)
    assert done.facts["coding"]["SetAside"] == {"NotFinite": 1, "TooShort": 2, "OutsideTemplate": 1}
    kept, _ = read_tractogram(Path(done.outputs["bundles-tractogram"]), DWI)
    assert kept.per_streamline["index"].tolist() == [2, 5]
    assert len(read_compressed(Path(done.outputs["compressed"]))) == 2
    assert any("4 streamlines were set aside" in note["message"] for note in done.facts["notes"])


def test_no_line_at_all_still_leaves_whole_files(given: dict, tmp_path: Path) -> None:
    put(tmp_path, Streamlines.from_list([], DWI), ImageGrid((5, 6, 7), torch.eye(4, dtype=torch.float64), DWI))
    done = run(tmp_path, given)
    assert len(read_compressed(Path(done.outputs["compressed"]))) == 0
    assert Path(done.outputs["bundles"]).read_text().count("\n") == 1


def test_it_is_deterministic_and_taken_up_again(given: dict, tmp_path: Path, only_files: None) -> None:
    first, second = run(tmp_path, given), run(tmp_path, given, "again")
    for role in ("bundles-tractogram", "bundles", "compressed"):
        assert Path(first.outputs[role]).read_bytes() == Path(second.outputs[role]).read_bytes()
    path = Path(first.outputs["compressed"])
    before = path.stat().st_mtime_ns
    assert run(tmp_path, given).facts == first.facts
    assert path.stat().st_mtime_ns == before
    other = CodecPlan(weights=given["plan"].weights, min_confidence=0.0, max_error_mm=4.0)
    assert read_compressed(Path(run(tmp_path, given, plan=other).outputs["compressed"])).bound_mm == 4.0


def test_the_report_shows_them(given: dict, tmp_path: Path) -> None:
    done = run(tmp_path, given)
    figures = [json.loads((tmp_path / "out" / name).read_text()) for name in done.facts["reportlets"]]
    assert {figure["section"] for figure in figures} == {"bundles"}
    kinds = {"3views", "alone", "table"}
    assert {figure["name"].split("bundle")[-1].removeprefix("s").split("_")[0] for figure in figures} == kinds
    assert any("tiny-1" in figure["caption"] for figure in figures)
    facts = json.loads(Path(done.outputs["bundles-tractogram-sidecar"]).read_text())
    assert facts["BundleCoding"]["Registration"] == f"scan → T1w → {BUILT_IN}"
    assert facts["StreamlineSeeding"] == {}
    assert facts["Sources"] == ["bids::sub-01_track-sdstream_tractogram.trx"]


def test_without_anatomy_the_direct_registration_serves_and_it_is_said(
    given: dict, tmp_path: Path, lines: Streamlines, only_files: None
) -> None:
    grid = ImageGrid((5, 6, 7), torch.eye(4, dtype=torch.float64), DWI)
    direct = Affine(TO_DWI.matrix @ TO_ANAT.matrix, BUILT_IN, DWI).inverse()
    write_itk(tmp_path / "direct.h5", direct, grid)
    link = {"template_link": {f"from-{BUILT_IN}": str(tmp_path / "direct.h5")}, "anat_space": "", "anat_link": {}}
    alone, through = run(tmp_path, given, "alone", **link), run(tmp_path, given)
    assert any("affine registration" in note["message"] for note in alone.facts["notes"])
    assert "affine" in alone.facts["coding"]["Registration"]
    assert alone.facts["bundles"][0]["Streamlines"] == through.facts["bundles"][0]["Streamlines"]


@pytest.mark.parametrize("which", ["anat", "template"])
def test_a_registration_that_failed_is_no_ground_for_names(given: dict, tmp_path: Path, which: str) -> None:
    failed = {"quality": {"passed": False, "reason": "heads apart"}}
    with pytest.raises(InputDataError, match="heads apart") as caught:
        run(tmp_path, given, **{f"{which}_facts": failed})
    assert (caught.value.id, caught.value.exit_code) == ("E-CODEC-REGISTRATION", 65)


def _without_namer(folder: Path, tensors: dict, settings: dict) -> None:
    write_weights(folder, tensors, {key: value for key, value in settings.items() if key != "namer"}, card="")


def _of_another_kind(folder: Path, tensors: dict, settings: dict) -> None:
    write_weights(folder, {"x": torch.zeros(2)}, {"network": {"n": 3}}, card="")


@pytest.mark.parametrize("make", [_without_namer, _of_another_kind])
def test_weights_that_cannot_name_are_refused(tmp_path: Path, make: Callable[[Path, dict, dict], None]) -> None:
    make(tmp_path / "w-1", *BundleCodec.tiny(0).weights())
    with pytest.raises(InputDataError) as caught:
        CodecPlan(weights=tmp_path / "w-1").codec()
    assert caught.value.id == "E-CODEC-WEIGHTS"


def test_a_bound_too_small_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        CodecPlan(0.01, weights=tmp_path / "none").codec()
