"""How loops are compiled: numba, without the interpreter's lock, kept on disk where that can be.

Kept code is found again by a digest of the file of a kernel and of those that it imports, because numba
itself looks only at the file of the function that is called and would miss a change in one that it calls. So: whatever
a kernel calls stands in its own package or in `tractode.ops`, and is imported by its full name. This module takes part of
a second to import (numba), so those that hold kernels are imported only where they run.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import numba
from numba.core import config as numba_config

# Sums may be reordered and products fused with them: vector instructions need both. NaN and infinity keep their meaning.
RULES = {"reassoc", "contract", "nsz", "arcp"}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, for the types it is called with; kept on disk if any folder can be written.

    The folder is ``NUMBA_CACHE_DIR``, or else ``tractode/kernels`` in the user's cache folder.
    """
    config: Any = numba_config  # numba sets its names as it reads the environment
    before = config.CACHE_DIR
    config.CACHE_DIR = _folder(before, function.__module__)
    try:
        return numba.njit(nogil=True, fastmath=RULES, error_model="numpy", cache=True)(inspect.unwrap(function))
    except RuntimeError:  # numba found no folder that it may write to
        return inner(function)
    finally:
        config.CACHE_DIR = before


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that only kernels call: it becomes part of theirs."""
    # What checks annotations at run time (in the tests) wraps the function; numba needs the function itself.
    return numba.njit(nogil=True, fastmath=RULES, error_model="numpy")(inspect.unwrap(function))


def _folder(given: str, module: str) -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(given or os.path.join(home, "tractode", "kernels"), _digest(module))


@cache
def _digest(module: str) -> str:
    """Of the sources that a kernel's module is made of, whatever their dates: those it imports, followed within here."""
    sources: dict[str, bytes] = {}
    waiting = [module, __name__]
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
