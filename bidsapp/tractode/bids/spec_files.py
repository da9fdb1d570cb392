"""The facts of `bids/spec/*.yaml`, read once each."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any


@cache
def load(name: str) -> dict[str, Any]:
    """The content of ``spec/<name>.yaml``. Shared between callers: do not change it."""
    import yaml

    text = files("tractode.bids").joinpath("spec", f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)
