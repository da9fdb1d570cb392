"""How loops are compiled: numba, without the interpreter's lock, kept on disk where that can be.

Kept code is found again by a digest of the file of a kernel and of those that it imports, because numba
itself looks only at the file of the function that is called and would miss a change in one that it calls. So: whatever
a kernel calls stands in its own package or in `tractode.ops`, and is imported by its full name. This module takes part of
a second to import (numba), so those that hold kernels are imported only where they run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding
from numba.core import config as numba_config

from tractode.ops.kept import folder

# Sums may be reordered and products fused with them: vector instructions need both. NaN and infinity keep their meaning.
RULES = {"reassoc", "contract", "nsz", "arcp"}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, for the types it is called with; kept on disk if any folder can be written.

    The folder is ``NUMBA_CACHE_DIR``, or else ``tractode/kernels`` in the user's cache folder.
    """
    config: Any = numba_config  # numba sets its names as it reads the environment
    before = config.CACHE_DIR
    config.CACHE_DIR = folder(function.__module__, before)
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


def machine_code(function: Callable[..., Any], kinds: tuple[str, ...]) -> tuple[str, bytes]:
    """The name and the code of a function that uses nothing but its arguments, for `tractode.ops.native`.

    ``kinds`` of its arguments: ``int``, ``float``, or of a pointer the type that it points to. The code is called as one of C
    with two more pointers in front: numba's places for a result and an exception.
    """
    numbers = {"int": numba.types.int64, "float": numba.types.float64}
    given = [numbers[k] if k in numbers else numba.types.CPointer(getattr(numba.types, k)) for k in kinds]
    made: Any = numba.cfunc(numba.types.void(*given), fastmath=RULES, error_model="numpy")(inspect.unwrap(function))
    name, machine = made.native_name.removeprefix("cfunc."), made._library._codegen._tm
    module = binding.parse_assembly(made.inspect_llvm())
    for other in (*module.functions, *module.global_variables):
        if not other.is_declaration and other.name != name:
            other.linkage = "internal"
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, binding.create_pass_builder(machine, binding.create_pipeline_tuning_options()))
    needed = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    assert not needed, f"{function.__name__} needs {sorted(needed)}: it must not take memory or raise"
    return name, machine.emit_object(module)
