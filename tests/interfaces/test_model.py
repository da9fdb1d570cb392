"""Fitting in the app: maps by blocks, given responses, several tissues, uncertainty, and a group's responses."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tractode.bids import citations
from tractode.bids.manifest import Ledger
from tractode.bids.pulse_timing import pulse_timing
from tractode.bids.query import DwiRun
from tractode.contracts import table_of_shells
from tractode.errors import InputDataError, MissingInputError
from tractode.fields import Image, ImageGrid
from tractode.interfaces import fitting
from tractode.interfaces.model import FitModel
from tractode.interfaces.mtnormalise import NormaliseTissues
from tractode.interfaces.step import Job
from tractode.io.gradients import write_gradients
from tractode.io.nifti import read_image, write_image
from tractode.io.response import load_response, save_response
from tractode.models import MODELS
from tractode.models.tissue_response import tensor_responses
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.settings import Settings
from tractode.simulate.signal import watson
from tractode.workflows.group_responses import average_responses, group_file, response_files

SHAPE = (6, 5, 4)
BVALS = (1000.0, 2500.0)
PREFIX = "sub-01_dir-AP"


def mask() -> torch.Tensor:
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[1:5, 1:4, :3] = True
    return inside


@pytest.fixture
def prepared(tmp_path: Path, oblique_affine: torch.Tensor) -> dict[str, str]:
    """What `PrepareDwi` would have left of a scan with two shells, of tissues in known shares."""
    grid = ImageGrid(SHAPE, oblique_affine, "sub-01_dwi")
    gtab = table_of_shells(BVALS, 30)
    model = MODELS["msmt_csd"].with_responses(tensor_responses((0.0, *BVALS), 300.0), gtab)
    n = int(mask().sum())
    generator = torch.Generator().manual_seed(0)
    clean = model.predict(model.example(0, n), gtab)
    noisy = clean + torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    signal = torch.zeros(len(gtab), *SHAPE)
    signal[:, mask()] = noisy.clamp(min=0).mT.float()
    found = {role: str(tmp_path / name) for role, name in (("dwi", "s.nii.gz"), ("bval", "s.bval"), ("bvec", "s.bvec"))}
    found["mask"] = str(tmp_path / "mask.nii.gz")
    write_image(Path(found["dwi"]), Image(grid, signal))
    write_image(Path(found["mask"]), Image(grid, mask()[None]))
    write_gradients(gtab, oblique_affine, Path(found["bval"]), Path(found["bvec"]))
    return found


@pytest.fixture
def responses(tmp_path: Path) -> list[str]:
    """Files of the three tissues."""
    paths = []
    for response in tensor_responses((0.0, *BVALS), 300.0):
        paths.append(str(tmp_path / f"{response.tissue}.txt"))
        save_response(response, paths[-1])
    return paths


def fit(prepared: dict[str, str], out: Path, model: str, monkeypatch: pytest.MonkeyPatch, **options) -> FitModel:
    monkeypatch.chdir(out.parent)
    job = Job(out.parent, out, "01", "run", "cpu", 0, 1, False)
    files = [Path(prepared[role]) for role in ("dwi", "bval", "bvec")]
    run = DwiRun(*files, {}, {"sub": "01", "dir": "AP"}, None, PREFIX)
    return FitModel(job=job, step=f"{PREFIX}_fit-{model}", run=run, prepared=prepared, model=model, **options)


def test_several_tissues_with_given_responses(
    prepared: dict[str, str], responses: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = fit(prepared, tmp_path / "out", "msmt_csd", monkeypatch, responses=responses, reason="asked for")
    result = step.run().outputs
    assert result.outputs["fod"] == result.outputs["wm"], "what follows orientations finds them by one name"
    assert result.outputs["fod-sidecar"] == result.outputs["wm-sidecar"]
    assert Path(result.outputs["response-gm"]).name == f"{PREFIX}_model-msmtcsd_desc-gm_response.txt"
    assert "own_responses" not in result.facts
    assert "peak" not in result.outputs, "fixels were not asked for"
    fod, _ = read_image(Path(result.outputs["fod"]), "x")
    assert fod.values.shape == (45, *SHAPE)
    assert not bool(fod.values[:, ~mask()].any())
    gtab = table_of_shells(BVALS, 30)
    model = MODELS["msmt_csd"].with_responses(
        [load_response(p, t) for p, t in zip(responses, ("wm", "gm", "csf"), strict=True)], gtab
    )
    scan, _ = read_image(Path(prepared["dwi"]), "x")
    params = model.fit(scan.values[:, mask()].mT, gtab)
    torch.testing.assert_close(fod.values[:, mask()].mT, params[:, :45], rtol=1e-3, atol=1e-4)
    content = json.loads(Path(result.outputs["fod-sidecar"]).read_text())
    assert len(content["ResponseFunction"]["Coefficients"]) == 1 + len(BVALS)
    assert content["Model"]["Parameters"]["Tissues"] == ["wm", "gm", "csf"]
    csf = json.loads(Path(result.outputs["csf-sidecar"]).read_text())
    assert csf["ResponseFunction"]["Coefficients"] != content["ResponseFunction"]["Coefficients"]
    figures = [Path(path).name for path in result.facts["reportlets"]]
    assert any("tissues" in name for name in figures)


def test_responses_of_another_protocol_are_refused(
    prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for response in tensor_responses((0.0, 700.0), 300.0):
        paths.append(str(tmp_path / f"{response.tissue}.txt"))
        save_response(response, paths[-1])
    with pytest.raises(InputDataError, match="not for b"):
        fit(prepared, tmp_path / "out", "msmt_csd", monkeypatch, responses=paths).run()


def test_blocks_are_of_no_consequence(
    prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(prepared, tmp_path / "a", "dti", monkeypatch).run().outputs.outputs
    monkeypatch.setattr(fitting, "SLAB", 7)
    parts = fit(prepared, tmp_path / "b", "dti", monkeypatch, fixels=True).run().outputs.outputs
    assert "peak" not in parts, "a tensor has no fixels"
    for spec in MODELS["dti"].maps:
        assert Path(whole[spec.param]).read_bytes() == Path(parts[spec.param]).read_bytes(), spec.param


def test_the_spread_of_every_map_is_written(
    prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = fit(prepared, tmp_path / "out", "dti", monkeypatch, uncertainty="laplace").run().outputs
    assert citations.reference(result.facts["spread"][1])["doi"]
    for name in ("fa", "md", "direction"):
        path = Path(result.outputs[f"{name}-sd"])
        assert path.name == f"{PREFIX}_model-tensor_param-{name}_desc-sd_dwimap.nii.gz"
        values = read_image(path, "x")[0].values[0]
        assert bool((values[mask()] > 0).all())
        assert not bool(values[~mask()].any())
        content = json.loads(Path(result.outputs[f"{name}-sd-sidecar"]).read_text())
        assert content["Model"]["Parameters"]["UncertaintyMethod"] == "laplace"
        assert content["Model"]["Parameters"]["NoiseLevel"] == "residuals"
    assert float(read_image(Path(result.outputs["fa-sd"]), "x")[0].values[0][mask()].median()) < 0.1


def test_the_spread_of_a_denoised_scan_follows_its_noise_map(
    prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each voxel has its own level, not its neighbour's; where there is none, the others' median."""
    grid = read_image(Path(prepared["mask"]), "x")[0].grid
    found = []
    for number in range(2):
        level = torch.full((1, *SHAPE), 5.0)
        level[0, 1, 1, 1] = 0.0
        level[0, 2, 3, 1] *= 1 + number
        prepared["noise"] = str(tmp_path / f"noise{number}.nii.gz")
        write_image(Path(prepared["noise"]), Image(grid, level))
        result = fit(prepared, tmp_path / f"out{number}", "dti", monkeypatch, uncertainty="laplace").run().outputs
        found.append(read_image(Path(result.outputs["md-sd"]), "x")[0].values[0])
        content = json.loads(Path(result.outputs["md-sd-sidecar"]).read_text())
        assert content["Model"]["Parameters"]["NoiseLevel"] == "noise map of denoising"
    ratio = (found[1] / found[0])[mask()]
    other = torch.zeros(SHAPE, dtype=torch.bool)
    other[2, 3, 1] = True
    assert float(ratio[other[mask()]][0]) == pytest.approx(2, rel=0.1)
    torch.testing.assert_close(ratio[~other[mask()]], torch.ones(int(mask().sum()) - 1))


def crossings(prepared: dict[str, str], affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts two crossing fibres of known axes (RAS+; another pair in each voxel) and densities into the scan."""
    n, gtab = int(mask().sum()), table_of_shells(BVALS, 60)
    generator = torch.Generator().manual_seed(1)
    first, other = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    first = first / first.norm(dim=-1, keepdim=True)
    second = torch.linalg.cross(first, other)
    axes = torch.stack([first, second / second.norm(dim=-1, keepdim=True)], 1)
    shares = torch.tensor([0.6, 0.4], dtype=torch.float64)
    factors = watson(torch.full((n, 2), 12.0, dtype=torch.float64), 8)[..., sh.degrees(8) // 2]
    fod = (sh.basis(axes, 8) * factors * shares[:, None]).sum(1)
    model = MODELS["msmt_csd"].with_responses(tensor_responses((0.0, *BVALS), 300.0), gtab)
    signal = torch.zeros(len(gtab), *SHAPE)
    signal[:, mask()] = model.predict(torch.cat([fod, fod.new_zeros(n, 2)], 1), gtab).mT.float()
    write_image(Path(prepared["dwi"]), Image(ImageGrid(SHAPE, affine, "sub-01_dwi"), signal))
    write_gradients(gtab, affine, Path(prepared["bval"]), Path(prepared["bvec"]))
    return axes, shares


@pytest.mark.parametrize("name", ["csd", "msmt_csd", "gqi"])
def test_fixels_are_where_the_fibres_are(
    prepared: dict[str, str],
    responses: list[str],
    tmp_path: Path,
    oblique_affine: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    axes, shares = crossings(prepared, oblique_affine)
    given = {"csd": responses[:1], "msmt_csd": responses}.get(name, [])
    monkeypatch.setattr(fitting, "SLAB", 16)
    result = fit(prepared, tmp_path / "out", name, monkeypatch, responses=given, fixels=True).run().outputs
    label = MODELS[name].label
    for param, n_volumes in {"peak": 9, "fixelafd": 3, "dispersion": 3, "nufo": 1}.items():
        path = Path(result.outputs[param])
        assert path.name == f"{PREFIX}_model-{label}_param-{param}_dwimap.nii.gz"
        values = read_image(path, "x")[0].values
        assert len(values) == n_volumes
        assert not bool(values[:, ~mask()].any())
    peaks = read_image(Path(result.outputs["peak"]), "x")[0].values[:, mask()].mT.unflatten(1, (3, 3)).double()
    for k in range(2):
        assert float(sphere.angle(peaks[:, k], axes[:, k]).max()) < math.radians(6 if name == "gqi" else 3), k
    count = read_image(Path(result.outputs["nufo"]), "x")[0].values[0, mask()]
    torch.testing.assert_close(count.long(), (peaks.norm(dim=-1) > 0).sum(-1))
    if name != "gqi":
        density = read_image(Path(result.outputs["fixelafd"]), "x")[0].values[:2, mask()].mT.double()
        torch.testing.assert_close(density, shares.expand_as(density), rtol=0.1, atol=0.02)
    content = json.loads(Path(result.outputs["peak-sidecar"]).read_text())
    assert ("ResponseFunction" in content) is (name != "gqi")
    assert any("fixels" in Path(path).name for path in result.facts["reportlets"])
    assert content["OrientationEncoding"]["Type"] == "3vector"
    assert content["OrientationEncoding"]["Reference"] == "xyz"
    assert content["Fixels"]["LeastPeak"] == (0.0875 if name == "gqi" else 0.1)
    per_fixel = json.loads(Path(result.outputs["fixelafd-sidecar"]).read_text())
    assert per_fixel["Fixels"]["Order"] == "largest integral first"
    assert "OrientationEncoding" not in per_fixel
    assert citations.reference(result.facts["sentences"][0][1])["doi"]


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("sh2peaks") is None, reason="MRtrix3 is not installed")
def test_the_same_peaks_as_sh2peaks(
    prepared: dict[str, str],
    responses: list[str],
    tmp_path: Path,
    oblique_affine: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crossings(prepared, oblique_affine)
    found = fit(prepared, tmp_path / "out", "csd", monkeypatch, responses=responses[:1], fixels=True).run().outputs
    theirs = tmp_path / "peaks.nii"
    subprocess.run(["sh2peaks", "-quiet", "-num", "2", found.outputs["fod"], theirs], check=True)
    expected = read_image(theirs, "x")[0].values[:, mask()].mT.unflatten(1, (2, 3))
    ours = read_image(Path(found.outputs["peak"]), "x")[0].values[:6, mask()].mT.unflatten(1, (2, 3))
    torch.testing.assert_close(ours.norm(dim=-1), expected.norm(dim=-1), rtol=1e-3, atol=0.0)
    assert float(sphere.angle(ours, expected).max()) < math.radians(0.5)


def test_the_sidecar_tells_the_diffusion_time(
    prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = fit(prepared, tmp_path / "out", "mapmri", monkeypatch)

    def facts() -> tuple[dict[str, object], str]:
        gtab, notes = step._timed(table_of_shells(BVALS, 30))
        model = MODELS["mapmri"].for_data(torch.ones(1, len(gtab)), gtab)
        return model.facts(), notes[0]["message"]

    parameters, note = facts()
    assert parameters["DiffusionTimeAssumed"]
    assert "assumed" in note
    step.inputs.run.metadata.update({"SmallDelta": 0.0106, "BigDelta": 43.1})
    parameters, note = facts()
    assert parameters["DiffusionTime"] == pytest.approx(0.0431 - 0.0106 / 3)
    assert "DiffusionTimeAssumed" not in parameters
    assert "SmallDelta, BigDelta" in note
    assert step.parameters()["timing"] == pytest.approx([0.0106, 0.0431])


@pytest.mark.parametrize(
    ("metadata", "time", "problem"),
    [
        ({"SmallDelta": 14.2, "LargeDelta": 43.0}, 0.043 - 0.0142 / 3, ""),
        ({"DiffusionTime": 0.04}, 0.04, ""),
        ({"SmallDelta": [0.01] * 5, "BigDelta": [0.04] * 5}, 0.04 - 0.01 / 3, ""),
        ({"SmallDelta": 0.01, "BigDelta": [0.02, 0.04]}, None, "not one positive time"),
        ({"SmallDelta": 0.05, "BigDelta": 0.04}, None, "longer than"),
        ({"BigDelta": 0.04}, None, "without SmallDelta"),
        ({"BigDelta": "0.04", "SmallDelta": 0.01}, None, "not one positive time"),
        ({}, None, ""),
    ],
    ids=str,
)
def test_timings_of_pulses(metadata: dict[str, object], time: float | None, problem: str) -> None:
    timing, said = pulse_timing([metadata])
    assert (timing is None) is (time is None)
    if timing is not None:
        assert timing.big_delta - timing.small_delta / 3 == pytest.approx(time)
    assert problem in said
    assert pulse_timing([metadata, {"DiffusionTime": 0.9}])[0] is None, "runs that differ"


def test_a_model_that_the_data_cannot_support_is_refused(
    prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(prepared["bval"]).write_text(" ".join(["0" if i % 16 == 0 else "1000" for i in range(64)]))
    with pytest.raises(InputDataError, match="cannot be fitted"):
        fit(prepared, tmp_path / "out", "dki", monkeypatch).run()


def test_the_group_averages_what_participants_estimated_and_hands_it_out(tmp_path: Path) -> None:
    for label, size, own in (("01", 100.0, True), ("02", 300.0, True), ("03", 999.0, False)):
        ledger = Ledger(tmp_path, label, "run")
        ledger.promise([{"step": "fit", "run": f"sub-{label}"}])
        with ledger.writing("fit", [], {}) as writer:
            for response in tensor_responses((0.0, *BVALS), size):
                relative = Path(f"sub-{label}/dwi/sub-{label}_desc-{response.tissue}_response.txt")
                writer.write(f"response-{response.tissue}", relative, lambda path, r=response: save_response(r, path))
                if own:
                    writer.facts.setdefault("own_responses", []).append(f"response-{response.tissue}")
            writer.facts["label"] = "msmtcsd"
    settings = Settings(tmp_path / "in", tmp_path, response_group=True)
    with pytest.raises(MissingInputError, match="no average response"):
        response_files(settings, "msmtcsd")
    written, notes = average_responses(tmp_path, [Ledger(tmp_path, label) for label in ("01", "02", "03")])
    assert (len(written), notes) == (3, [])
    mean = load_response(group_file(tmp_path, "msmtcsd", "wm"), "wm")
    # As `responsemean`: each scaled to the mean of the sizes, 100 and 300.
    expected = tensor_responses((0.0, *BVALS), 200.0)[0]
    torch.testing.assert_close(mean.coefficients, expected.coefficients, rtol=1e-6, atol=1e-6)
    assert [Path(path).name for path in response_files(settings, "msmtcsd")] == [
        f"group_model-msmtcsd_desc-{tissue}_response.txt" for tissue in ("wm", "gm", "csf")
    ]


def test_tissues_on_one_scale_are_what_is_followed(
    tmp_path: Path, oblique_affine: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (14, 12, 10)
    grid = ImageGrid(shape, oblique_affine, "sub-01_dwi")
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(3, *shape, generator=generator) + 0.2
    shares = shares / shares.sum(0) / (4 * torch.pi) ** 0.5
    shading = (torch.linspace(-0.3, 0.3, 14)[:, None, None] + torch.linspace(-0.2, 0.2, 10)).exp().expand(shape)
    white = torch.cat([shares[:1], 0.1 * shares[:1].expand(5, -1, -1, -1)]) * shading
    inside = torch.zeros(1, *shape, dtype=torch.bool)
    inside[:, 1:-1, 1:-1, 1:-1] = True
    tissues = {}
    for name, values in {"wm": white, "gm": shares[1:2] * shading, "csf": shares[2:] * shading}.items():
        tissues[name] = str(tmp_path / f"{name}.nii.gz")
        write_image(Path(tissues[name]), Image(grid, values))
        (tmp_path / f"{name}.json").write_text(json.dumps({"Description": name, "Model": {"Parameters": {}}}))
    write_image(tmp_path / "mask.nii.gz", Image(grid, inside))
    job = Job(tmp_path, tmp_path / "out", "01", "run", "cpu", 0, 1, False)
    run = DwiRun(tmp_path / "x", tmp_path / "x", tmp_path / "x", {}, {"sub": "01", "dir": "AP"}, None, PREFIX)
    monkeypatch.chdir(tmp_path)
    step = NormaliseTissues(
        job=job,
        step=f"{PREFIX}_mtnormalise",
        run=run,
        prepared={"mask": str(tmp_path / "mask.nii.gz")},
        tissues=tissues,
    )
    outputs = step.run().outputs.outputs
    assert Path(outputs["fod"]).name == f"{PREFIX}_model-msmtcsd_param-wm_desc-mtnorm_dwimap.nii.gz"
    total = sum(read_image(Path(outputs[name]), "x")[0].values[0] for name in ("wm", "gm", "csf"))[inside[0]]
    assert float(total.std() / total.mean()) < 0.02, "the shading is gone"
    whole = read_image(Path(outputs["normalisation"]), "x")[0].values[0]
    assert not bool(whole[~inside[0]].any()), "the polynomial is not carried on beyond the mask"
    field = whole[inside[0]]
    assert float((field / shading[inside[0]]).log().std()) < 0.02
    ratio = read_image(Path(outputs["wm"]), "x")[0].values[:, inside[0]]
    torch.testing.assert_close(ratio[1], 0.1 * ratio[0], rtol=1e-4, atol=1e-6)
    assert json.loads(Path(outputs["wm-sidecar"]).read_text())["Balance"].keys() == {"wm", "gm", "csf"}
