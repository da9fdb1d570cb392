"""Weights of several files, and terms of their own. (One file: `tests/training/test_contrastive.py`.)"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tractode.errors import InputDataError, ResourceUnavailableError
from tractode.io import weights
from tractode.io.weights import read_weights, write_card, write_weights


def test_large_weights_lie_in_several_files_each_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGEST", 4096)
    tensors = {f"layer{n}": torch.randn(20, 30) for n in range(9)}
    write_weights(tmp_path, tensors, {"a": 1}, "# card", "terms")
    files = sorted(path.name for path in tmp_path.glob("model*"))
    assert len(files) > 2
    assert files[0] == "model-001.safetensors"
    assert all((tmp_path / name).stat().st_size <= 4096 for name in files)
    stored, settings = read_weights(tmp_path)
    assert settings == {"a": 1}
    assert {name: value.half() for name, value in tensors.items()}.keys() == stored.keys()
    assert all(torch.equal(stored[name], value.half().float()) for name, value in tensors.items())
    assert (tmp_path / "LICENSE").read_text() == "terms"
    write_card(tmp_path, "# another")
    read_weights(tmp_path)
    last = tmp_path / files[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    with pytest.raises(InputDataError, match="E-WEIGHTS-SUM"):
        read_weights(tmp_path)
    last.unlink()
    with pytest.raises(ResourceUnavailableError, match="E-WEIGHTS-MISSING"):
        read_weights(tmp_path)


def test_sums_that_name_no_model_or_another_folder_are_not_believed(tmp_path: Path) -> None:
    write_weights(tmp_path, {"a": torch.ones(2)}, {}, "")
    lines = (tmp_path / "sha256").read_text().splitlines()
    (tmp_path / "sha256").write_text("\n".join(line for line in lines if "settings" in line))
    with pytest.raises(ResourceUnavailableError, match="E-WEIGHTS-MISSING"):
        read_weights(tmp_path)
    (tmp_path / "sha256").write_text("\n".join(line.replace("  model", "  ../model") for line in lines))
    with pytest.raises(ResourceUnavailableError, match="E-WEIGHTS-MISSING"):
        read_weights(tmp_path)
