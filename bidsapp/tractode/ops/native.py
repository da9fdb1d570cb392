"""Compiled loops that are called without numba once they are on disk: importing numba and its registries takes most of a second.

A function of pointers and plain numbers is compiled by numba as one that C could call; its machine code is kept beside
numba's own (see `tractode.ops.compile`) and loaded by llvmlite alone, in a twentieth of a second. It is found again by the sources, the
processor and the versions it was made with. Calls let go of the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np

from tractode.ops.kept import folder

_lock = Lock()
_engines: list[Any] = []  # code lives as long as its engine


def call(module: str, name: str, *arguments: np.ndarray | float | int) -> None:
    """``name`` of a module of kernels, for contiguous arrays (given as pointers), whole numbers (int64) and others (float64)."""
    kinds = tuple(_kind(a) for a in arguments)
    with _lock:
        function = _function(module, name, kinds)
    result, exception = ctypes.c_void_p(), ctypes.c_void_p()  # written to, of no use
    function(
        ctypes.byref(result),
        ctypes.byref(exception),
        *(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments),
    )


def _kind(argument: np.ndarray | float | int) -> str:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return argument.dtype.name
    return "int" if isinstance(argument, int) else "float"


@cache
def _function(module: str, name: str, kinds: tuple[str, ...]) -> Callable[..., int]:
    from llvmlite import binding

    if not _engines:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
    made_with = (binding.get_process_triple(), *_processor(binding), binding.llvm_version_info)
    label = hashlib.sha256(repr((made_with, sys.version, kinds)).encode()).hexdigest()[:16]
    path = os.path.join(folder(module), f"{name}-{label}.native")
    symbol, code = _read(path) or _made(module, name, kinds, path)
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    types: list[Any] = [{"int": ctypes.c_int64, "float": ctypes.c_double}.get(kind, ctypes.c_void_p) for kind in kinds]
    return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *types)(
        engine.get_function_address(symbol)
    )


def _processor(binding: Any) -> tuple[str, str]:
    """Its name, and what it can where that is known."""
    try:
        return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    except RuntimeError:
        return binding.get_host_cpu_name(), ""


def _read(path: str) -> tuple[str, bytes] | None:
    """Symbol and code of a file; None where there is no such file or it is damaged."""
    try:
        with open(path, "rb") as file:
            digest, symbol, code = file.read().split(b"\n", 2)
    except (OSError, ValueError):
        return None
    whole = hashlib.sha256(symbol + code).hexdigest().encode() == digest
    return (symbol.decode(), code) if whole else None


def _made(module: str, name: str, kinds: tuple[str, ...], path: str) -> tuple[str, bytes]:
    """Compiles, and keeps the code if the folder can be written."""
    from tractode.ops.compile import machine_code

    symbol, code = machine_code(getattr(import_module(module), name), kinds)
    digest = hashlib.sha256(symbol.encode() + code).hexdigest()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
            file.write(f"{digest}\n{symbol}\n".encode() + code)
        os.replace(file.name, path)
    except OSError:
        pass
    return symbol, code
