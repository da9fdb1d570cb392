"""The example of ``docs/extending.md`` as a user would add it: held to the laws, and fitted by the app's own interface."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tractode.bids.query import DwiRun
from tractode.contracts import SignalModel
from tractode.fields import GradientTable, Image, ImageGrid
from tractode.interfaces import model as interface
from tractode.interfaces.step import Job
from tractode.io.gradients import write_gradients
from tractode.io.nifti import read_image, write_image
from tractode.models import MODELS
from tractode.ops import sphere
from tractode.registry import Registry

ROOT = Path(__file__).parents[2]
TABLES = ("five directions", "one plane", "no weighting")


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


laws = _load(ROOT / "tests" / "contracts" / "test_signal_model.py", "laws_of_signal_models")
LAWS = [law for name, law in vars(laws).items() if name.startswith("test_")]


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """The registry with the line that the page tells one to add."""
    _load(ROOT / "docs" / "examples" / "ball.py", "example_ball")
    known = {name: f"{MODELS[name].__module__}:{MODELS[name].__qualname__}" for name in MODELS}
    yield Registry(MODELS.noun, {**known, "ball": "example_ball:Ball"})
    del sys.modules["example_ball"]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
def test_the_example_keeps_the_law(law: Callable[..., None], registry: Registry) -> None:
    if "kind" in law.__code__.co_varnames[: law.__code__.co_argcount]:
        for table in TABLES:
            law(registry["ball"](), table)
    else:
        law(registry["ball"]())


@pytest.fixture
def prepared(tmp_path: Path, oblique_affine: torch.Tensor, registry: Registry) -> dict[str, str]:
    """What `PrepareDwi` would have left of a scan whose signal is that of balls, D and S0 rising along the first axis."""
    grid = ImageGrid((8, 9, 10), oblique_affine, "sub-01_dwi")
    directions = torch.cat([torch.zeros(2, 3), sphere.directions(12)]).double()
    is_b0 = directions.norm(dim=-1) == 0
    gtab = GradientTable(torch.where(is_b0, 0.0, 1000.0).double(), directions, is_b0)
    model: SignalModel = registry["ball"]()
    diffusivity = torch.linspace(0.5e-3, 1.5e-3, 8, dtype=torch.float64)[:, None, None].expand(8, 9, 10)
    params = torch.stack([diffusivity.ravel(), 6 + 100 * diffusivity.ravel()], dim=-1)
    signal = model.predict(params, gtab).mT.reshape(-1, 8, 9, 10).float()
    mask = torch.zeros(1, 8, 9, 10, dtype=torch.bool)
    mask[:, 1:7, 1:8, 1:9] = True
    paths = {"dwi": "s.nii.gz", "bval": "s.bval", "bvec": "s.bvec", "mask": "mask.nii.gz"}
    found = {role: str(tmp_path / name) for role, name in paths.items()}
    write_image(Path(found["dwi"]), Image(grid, signal))
    write_image(Path(found["mask"]), Image(grid, mask))
    write_gradients(gtab, oblique_affine, Path(found["bval"]), Path(found["bvec"]))
    return found


def test_the_app_fits_the_example_and_names_its_maps(
    prepared: dict[str, str], tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interface, "MODELS", registry)
    monkeypatch.chdir(tmp_path)
    job = Job(tmp_path, tmp_path / "out", "01", "run", "cpu", 0, 1, False)
    files = [Path(prepared[role]) for role in ("dwi", "bval", "bvec")]
    run = DwiRun(*files, {}, {"sub": "01", "dir": "AP"}, None, "sub-01_dir-AP")
    step = interface.FitModel(job=job, step="sub-01_dir-AP_fit-ball", run=run, prepared=prepared, model="ball")
    outputs = step.run().outputs.outputs
    folder = tmp_path / "out" / "sub-01" / "dwi"
    stems = {param: f"sub-01_dir-AP_model-ball_param-{param}_dwimap" for param in ("diffusivity", "s0")}
    assert {path.name for path in folder.iterdir()} == {
        f"{s}{end}" for s in stems.values() for end in (".json", ".nii.gz")
    }
    assert outputs["diffusivity"] == str(folder / f"{stems['diffusivity']}.nii.gz")
    image, _ = read_image(Path(outputs["diffusivity"]), "sub-01_dwi")
    inside = torch.linspace(0.5e-3, 1.5e-3, 8)[1:7]
    torch.testing.assert_close(image.values[0, 1:7, 4, 5], inside, rtol=1e-3, atol=0)
    assert float(image.values[0, 0].abs().max()) == 0
    content = json.loads((folder / f"{stems['diffusivity']}.json").read_text())
    assert content["Description"] == "Isotropic diffusivity"
    assert content["Units"] == "mm^2/s"
    assert content["Model"]["Description"] == "ball"
    assert "OrientationEncoding" not in content


def test_the_page_shows_the_file_that_is_tested() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert "examples/ball.py" in page
    assert '"ball": "tractode.models.ball:Ball"' in page
