"""The gallery's examples of sensitivity and refinement, run as the pages show them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "docs" / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sensitivity_predicts_what_lesions_do(tmp_path: Path) -> None:
    example = load("sensitivity")
    probe, found = example.ask()
    # A handful of lines join the ends in this small phantom.
    assert found.connection > 5
    changes = []
    for centre in ((13.0, 9.0, -17.0), (-13.0, 9.0, -17.0)):
        altered = example.lesion(centre)
        with torch.no_grad():
            after = float(example.soft_connection(example.fitted(altered), probe))
        changes.append((found.predicted_change(altered), after - found.connection))
    on, beside = changes
    assert on[0] < 0
    assert on[1] < 0
    assert abs(beside[1]) < abs(on[1])
    assert abs(beside[0]) < abs(on[0])
    example.draw(found, str(tmp_path / "map.png"))


@pytest.mark.slow
def test_refinement_helps(tmp_path: Path) -> None:
    example = load("refinement")
    before, after = example.refined()
    assert example.angular_error(after) < 0.8 * example.angular_error(before)
    lines = [example.track(params) for params in (before, after)]
    scores = [example.score(part) for part in lines]
    assert scores[1]["VC"] > scores[0]["VC"]
    assert scores[1]["OL"] >= scores[0]["OL"] - 0.02
    example.draw(*lines, str(tmp_path / "lines.png"))


@pytest.mark.parametrize("name", ["sensitivity", "refinement"])
def test_the_pages_show_the_files_that_are_tested(name: str) -> None:
    page = (ROOT / "docs" / "gallery" / f"{name}.md").read_text(encoding="utf-8")
    assert f"examples/{name}.py" in page
