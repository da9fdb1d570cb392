"""Raw datasets of empty files: all that the search for runs looks at."""

from __future__ import annotations

import json
from pathlib import Path

SIDECAR = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05}


def write(path: Path, content: str | bytes = b"data") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def add_run(root: Path, name: str, *, gradients: bool = True, sidecar: dict | None = SIDECAR) -> Path:
    """A dwi run of the given name, its folder taken from the name."""
    entities = dict(pair.split("-") for pair in name.split("_"))
    folder = root / f"sub-{entities['sub']}" / (f"ses-{entities['ses']}" if "ses" in entities else "") / "dwi"
    image = write(folder / f"{name}_dwi.nii.gz")
    if gradients:
        write(folder / f"{name}_dwi.bval", "0 1000\n")
        write(folder / f"{name}_dwi.bvec", "0 1\n0 0\n0 0\n")
    if sidecar is not None:
        write(folder / f"{name}_dwi.json", json.dumps(sidecar))
    return image
