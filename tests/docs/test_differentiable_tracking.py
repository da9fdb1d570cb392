"""The gallery's example of gradients runs as a user would run it, and does what its page says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "differentiable_tracking.py"


def test_the_example_reaches_its_target() -> None:
    spec = importlib.util.spec_from_file_location("differentiable_tracking", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = example.main()
    assert found["miss_before_mm"] > 1.5
    assert found["miss_after_mm"] < 0.3
    assert found["voxels_that_matter"] > 10
    assert found["largest_growth"] >= 1


def test_the_page_shows_the_file_that_is_tested() -> None:
    page = (ROOT / "docs" / "gallery" / "differentiable_tracking.md").read_text(encoding="utf-8")
    assert "examples/differentiable_tracking.py" in page
