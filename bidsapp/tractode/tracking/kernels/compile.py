"""How the loops of this package are compiled: numba, without the interpreter's lock, kept on disk where that can be.

Kept code is found again by a digest of all files of this package, because numba itself looks only at the file of the
function that is called and would miss a change in one that it calls. So: whatever a kernel calls stands in this package.
"""

from __future__ import annotations

import hashlib
import inspect
import os
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
    config.CACHE_DIR = _folder(before)
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


def _folder(given: str) -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(given or os.path.join(home, "tractode", "kernels"), _digest())


@cache
def _digest() -> str:
    """Of the sources of this package, whatever their dates."""
    digest = hashlib.sha256()
    for file in sorted(resources.files(__package__).iterdir(), key=lambda item: item.name):
        if file.name.endswith(".py"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
