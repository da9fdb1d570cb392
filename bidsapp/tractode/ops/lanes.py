"""Several voxels side by side as one number: what compiled loops need to use a processor's vector registers to the full.

In a compiled function `load` gives the numbers at consecutive places of a contiguous array as one value, with ``+ - * /``
among its kind and with plain numbers, and `store` puts it back. A loop over a small matrix that is written for one voxel
then runs for all of them at once: every voxel's arithmetic is the same whatever place it has, so neither its place nor
its neighbours matter to its result. A value fills one 64-byte register (16 float32, 8 float64); processors without such
registers take several steps. There is no paper: this is a type for numba, made of LLVM's vectors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.extending import models, overload, register_model

BYTES = 64
intrinsic: Any = extending.intrinsic  # what it makes is called from compiled code only, without the first argument


class Lanes(types.Type):
    """The type of such a value, of numbers of type ``dtype``."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.count = BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Lanes({dtype}, {self.count})")


@register_model(Lanes)
class _Register(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), kind.count))


def _place(context: Any, builder: Any, kind: Lanes, array: Any, value: Any, index: Any) -> Any:
    pointer = builder.gep(context.make_array(array)(context, builder, value).data, [index])
    return builder.bitcast(pointer, context.get_value_type(kind).as_pointer())


@intrinsic
def load(_context: Any, array: Any, index: Any) -> Any:
    """The numbers from ``index`` on of a one-dimensional contiguous array."""
    kind = Lanes(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, kind, array, *arguments), align=array.dtype.bitwidth // 8)

    return kind(array, types.intp), generate


@intrinsic
def store(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Puts them from ``index`` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, value, array, *arguments[:2])
        builder.store(arguments[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


def _spread(context: Any, builder: Any, kind: Lanes, number: Any) -> Any:
    vector = context.get_value_type(kind)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None)
    )


def _combine(instruction: str, left: Any, right: Any) -> Any:
    kind = left if isinstance(left, Lanes) else right

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        both = [
            value
            if isinstance(given, Lanes)
            else _spread(context, builder, kind, context.cast(builder, value, given, kind.dtype))
            for value, given in zip(arguments, signature.args, strict=True)
        ]
        return getattr(builder, instruction)(*both)

    return kind(left, right), generate


@intrinsic
def _add(_context: Any, left: Any, right: Any) -> Any:
    return _combine("fadd", left, right)


@intrinsic
def _subtract(_context: Any, left: Any, right: Any) -> Any:
    return _combine("fsub", left, right)


@intrinsic
def _multiply(_context: Any, left: Any, right: Any) -> Any:
    return _combine("fmul", left, right)


@intrinsic
def _divide(_context: Any, left: Any, right: Any) -> Any:
    return _combine("fdiv", left, right)


def _overload(function: Callable[..., Any], combine: Callable[..., Any]) -> None:
    """Lets compiled code write the operator where one side is of this type."""

    def choose(left: Any, right: Any) -> Callable[..., Any] | None:
        if not (isinstance(left, Lanes) or isinstance(right, Lanes)):
            return None
        return lambda left, right: combine(left, right)  # noqa: PLW0108 (numba compiles a function of its own)

    overload(function, strict=False)(choose)


_overload(operator.add, _add)
_overload(operator.sub, _subtract)
_overload(operator.mul, _multiply)
_overload(operator.truediv, _divide)


def _called(name: str, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = context.get_value_type(value)
        scalar = "f32" if value.dtype == types.float32 else "f64"
        symbol = f"llvm.{name}.v{value.count}{scalar}"
        kind = ir.FunctionType(vector, [vector] * len(arguments))
        function = builder.module.globals.get(symbol) or ir.Function(builder.module, kind, name=symbol)
        return builder.call(function, arguments)

    return generate


@intrinsic
def sqrt(_context: Any, value: Any) -> Any:
    """The square root of each."""
    return value(value), _called("sqrt", value)


@intrinsic
def smaller(_context: Any, left: Any, right: Any) -> Any:
    """The smaller of each pair."""
    return left(left, right), _called("minnum", left)


@intrinsic
def larger(_context: Any, left: Any, right: Any) -> Any:
    """The larger of each pair."""
    return left(left, right), _called("maxnum", left)


@intrinsic
def nearest(_context: Any, value: Any) -> Any:
    """The whole number nearest to each."""
    return value(value), _called("rint", value)


def _bits(context: Any, builder: Any, kind: Lanes, value: Any) -> tuple[Any, Any]:
    """The numbers as whole ones of the same bits, and how many of these belong to the fraction."""
    whole = ir.VectorType(ir.IntType(kind.dtype.bitwidth), kind.count)
    fraction = np.finfo(kind.dtype.name).nmant
    return builder.bitcast(value, whole), ir.Constant(whole, [fraction] * kind.count)


@intrinsic
def exponent(_context: Any, value: Any) -> Any:
    """The whole e of each ``m 2^e``, with ``m² ≥ 1/2`` and ``m² < 2``; of positive numbers that are not subnormal."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, fraction = _bits(context, builder, value, arguments[0])
        root = int(np.sqrt(np.array(0.5, value.dtype.name)).view(f"i{value.dtype.bitwidth // 8}"))
        above = builder.sub(bits, ir.Constant(bits.type, [root] * value.count))
        return builder.sitofp(builder.ashr(above, fraction), arguments[0].type)

    return value(value), generate


@intrinsic
def scaled(_context: Any, value: Any, power: Any) -> Any:
    """``value · 2^power`` for whole powers, where neither is 0, subnormal or too large."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, fraction = _bits(context, builder, value, arguments[0])
        moved = builder.shl(builder.fptosi(arguments[1], bits.type), fraction)
        return builder.bitcast(builder.add(bits, moved), arguments[0].type)

    return value(value, value), generate


@intrinsic
def spread(_context: Any, array: Any, number: Any) -> Any:
    """The same number in every place; of the type that `load` gives for ``array``."""
    kind = Lanes(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(context, builder, kind, context.cast(builder, arguments[1], number, kind.dtype))

    return kind(array, number), generate


@intrinsic
def negative(_context: Any, value: Any) -> Any:
    """Which are below 0, as the bits of a whole number: bit 0 is the first place."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        below = builder.fcmp_ordered("<", arguments[0], ir.Constant(arguments[0].type, None))
        return builder.zext(builder.bitcast(below, ir.IntType(value.count)), ir.IntType(64))

    return types.int64(value), generate


@intrinsic
def lowest(_context: Any, bits: Any) -> Any:
    """The place of the lowest bit of a whole number that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate
