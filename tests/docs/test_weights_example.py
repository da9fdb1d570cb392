"""The gallery's example of streamline weights, run as the page shows it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_weights_are_nearer_to_the_truth_than_counts(tmp_path: Path) -> None:
    """Half the sum of absolute differences of shares: counts of an uneven sampling against both kinds of weights."""
    spec = importlib.util.spec_from_file_location(
        "example_weights", ROOT / "docs" / "examples" / "streamline_weights.py"
    )
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    by_fod, by_signal, counts = example.explained()

    def error(values: torch.Tensor) -> float:
        return 0.5 * float((example.shares(values, counts) - example.truth()).abs().sum())

    plain = error(torch.ones(sum(counts), dtype=torch.float64))
    assert error(by_fod.weights) < 0.5 * plain
    assert error(by_signal.weights) < 0.5 * plain
    example.draw(by_fod, by_signal, counts, str(tmp_path / "weights.png"))
    assert (tmp_path / "weights.png").stat().st_size > 5000


def test_the_page_shows_the_file_that_is_tested() -> None:
    page = (ROOT / "docs" / "gallery" / "streamline_weights.md").read_text(encoding="utf-8")
    assert "examples/streamline_weights.py" in page
