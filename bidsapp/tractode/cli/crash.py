"""The crash bundle: what is needed to understand a bug of ours, in one file that a user can look through and send."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tractode import __version__
from tractode.io.atomic import atomic_path

_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "nibabel",
    "dipy",
    "pybids",
    "nipype",
    "nilearn",
    "nitransforms",
    "templateflow",
    "trx-python",
    "h5py",
)
_LOG_TAIL = 200_000
# Only settings of libraries; the rest of an environment may hold secrets.
_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TEMPLATEFLOW_HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "SLURM_JOB_ID",
)


def write_bundle(folder: Path, texts: Mapping[str, str], logs: Iterable[Path] = ()) -> Path:
    """A zip with the given texts, the machine's and packages' versions, and the ends of logs.

    It is put into ``folder``, or where temporary files go if that cannot be written. Holds no image data.
    """
    files = {**texts, "machine.json": json.dumps(_machine(), indent=2) + "\n"}
    for log in logs:
        if log.is_file():
            files[f"logs/{log.name}"] = log.read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    name = f"crash-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.zip"
    for place in (folder, Path(tempfile.gettempdir())):
        try:
            with atomic_path(place / name) as temporary:
                temporary.write_bytes(buffer.getvalue())
        except Exception:  # whatever is wrong with this place, the next may do, and the bug itself matters more
            continue
        return place / name
    return Path("(no crash bundle could be written)")


def traceback_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _machine() -> dict[str, object]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "tractode": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
