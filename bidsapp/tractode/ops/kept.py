"""Where compiled code is kept on disk: in a folder named by a digest of the sources it was made from."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from importlib import resources

_COMPILER = "tractode.ops.compile"


def folder(module: str, given: str = "") -> str:
    """That of a module of kernels: in ``given``, ``NUMBA_CACHE_DIR``, or else ``tractode/kernels`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    chosen = given or os.environ.get("NUMBA_CACHE_DIR") or os.path.join(home, "tractode", "kernels")
    return os.path.join(chosen, _digest(module))


@cache
def _digest(module: str) -> str:
    """Of the sources that a kernel's module is made of, whatever their dates: those it imports, followed within here."""
    sources: dict[str, bytes] = {}
    waiting = [module, _COMPILER]
    while waiting:
        name = waiting.pop()
        file = resources.files("tractode").joinpath(*name.split(".")[1:-1], f"{name.rpartition('.')[2]}.py")
        if name not in sources and name.startswith("tractode.") and file.is_file():
            sources[name] = file.read_bytes()
            if name.startswith((f"{module.rpartition('.')[0]}.", f"{__package__}.")):
                found = re.findall(rb"^from (tractode\.[\w.]+) import", sources[name], re.MULTILINE)
                waiting += [other.decode() for other in found]
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        digest.update(name.encode() + b"\0" + source)
    return digest.hexdigest()[:16]
