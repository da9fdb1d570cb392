"""The ways from a start to a streamline, by name."""

from __future__ import annotations

from tractode.generative.diffusion import Diffusion
from tractode.generative.flow_matching import FlowMatching, Prediction

Path = FlowMatching | Diffusion
PATHS = ("bridge", "flow", "diffusion")
"""``bridge``: straight from the atlas's streamline; ``flow``: straight from noise; ``diffusion``: from noise."""

__all__ = ["PATHS", "Path", "Prediction", "path_of"]


def path_of(name: str) -> Path:
    """The path of that name; `ValueError` for another."""
    if name not in PATHS:
        raise ValueError(f"{name!r} is none of {', '.join(PATHS)}.")
    return Diffusion() if name == "diffusion" else FlowMatching()
