"""What the kernels for the CPU compute with: numbers of float32, and vectors of them (chapter 08).

A compiler makes vector instructions of a loop where it can. Where time counts most, vectors are said outright: numba
has no type for them, so here is one, and each function on it is written as LLVM's own instructions. Functions that
numba compiles have no type hints: it infers types from a call's arguments.

Source: numba's manual, "Low-level extension API"; LLVM's language reference, "Vector Type".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

f32, u32, u64 = np.float32, np.uint32, np.uint64

_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")

LANES = 16 if "+avx512f" in _FEATURES else 8
"""Numbers in a vector, by what numba compiles for. One that the CPU has no register for takes two or more."""

_STAMP = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


_OPTIONS = {"fastmath": True, "nogil": True, "error_model": "numpy"}


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and keep the result on disk where that is possible.

    numba writes beside the function's file, or else into the user's cache.
    """
    try:
        compiled = numba.njit(function, cache=True, **_OPTIONS)
        # numba compiles again when the function's own file has changed. The same goes for what is inlined from here.
        file = compiled._cache._cache_file
        file._source_stamp = (file._source_stamp, _STAMP)
    except (RuntimeError, AttributeError):  # it can write to neither; or another numba names these otherwise
        return numba.njit(function, **_OPTIONS)
    return compiled


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into whatever calls it: a call that hands over twenty numbers costs as much as a few tokens' scores.

    A call still counts up and down, atomically, how many hold each array that it gets. So loops over tokens belong
    into such functions: with a call for each four of them, counting was up to two fifths of the decode kernel's time.
    """
    return numba.njit(function, forceinline=True, **_OPTIONS)


# --- numbers --------------------------------------------------------------------------------------------------------


def load(x):
    """Widen a number from memory to float32."""


@overload(load)
def _load_of(x):
    if isinstance(x, types.Float):
        return lambda x: x
    return lambda x: u32(u32(x) << u32(16)).view(f32)  # a bfloat16 is the upper half of a float32


def rounded(x, array):
    """Round a float32 to what the array holds: to nearest, ties to even."""


@overload(rounded)
def _rounded_of(x, array):
    if isinstance(array.dtype, types.Float):
        return lambda x, array: x

    def upper_half(x, array):
        bits = f32(x).view(u32)
        return (bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16)

    return upper_half


@inlined
def exp2(x):
    """2**x for x <= 0 by a polynomial, which becomes vector instructions; np.exp2 would be a call for each number."""
    x = max(x, f32(-126))
    whole = np.floor(x + f32(0.5))
    rest, power = x - whole, f32(1.5403530e-4)
    for c in (
        f32(1.33335581e-3),
        f32(9.61812911e-3),
        f32(5.55041087e-2),
        f32(2.40226507e-1),
        f32(6.93147181e-1),
        f32(1),
    ):
        power = power * rest + c
    return power * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(f32)  # 2**whole, by its bits


# --- vectors --------------------------------------------------------------------------------------------------------

_I32 = ir.IntType(32)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(_I32, LANES)


class VectorType(types.Type):
    """numba's type of a vector of :data:`LANES` float32."""

    def __init__(self) -> None:
        super().__init__(name=f"vector of {LANES} float32")


VECTOR = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, _FLOATS)


def _pointer(context, builder, kind, array, index):
    """Where ``array[index]`` is; of an array of several dimensions, the index is a tuple."""
    data = context.make_array(kind)(context, builder, array)
    indices = cgutils.unpack_tuple(builder, index) if kind.ndim > 1 else [index]
    return cgutils.get_item_pointer(context, builder, kind, data, indices)


def _write(context, builder, signature, arguments, vector):
    """Write a vector of float32 to where the first two arguments, an array and an index, say."""
    where = _pointer(context, builder, signature.args[0], *arguments[:2])
    builder.store(vector, builder.bitcast(where, vector.type.as_pointer())).align = 4
    return context.get_dummy_value()


def _call(builder, result, name, *arguments, **options):
    """Call one of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments, **options)


def _spread(builder, number, kind):
    """A vector of some kind with one number in each lane."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(_INTEGERS, [0] * LANES))


@intrinsic
def spread(typing, x):
    """Give a vector with one number in each lane."""

    def code(context, builder, signature, arguments):
        return _spread(builder, arguments[0], _FLOATS)

    return VECTOR(types.float32), code


@intrinsic
def lanes(typing, array, index, count):
    """Load ``count`` numbers from ``array[index]`` on, widened to float32; zeros follow, and nothing behind is read.

    Where ``count`` is more than a vector has, it is a whole one.
    """

    def code(context, builder, signature, arguments):
        kind = signature.args[0]
        is_wide = isinstance(kind.dtype, types.Float)
        row, align = ir.VectorType(ir.FloatType() if is_wide else ir.IntType(16), LANES), kind.dtype.bitwidth // 8
        where = builder.bitcast(_pointer(context, builder, kind, *arguments[:2]), row.as_pointer())
        count = builder.trunc(arguments[2], _I32)
        with builder.if_else(builder.icmp_unsigned(">=", count, _I32(LANES)), likely=True) as (whole, part):
            with whole:
                all_of_it = builder.load(where)
                all_of_it.align = align
                whole_block = builder.block
            with part:
                mask = builder.icmp_unsigned(
                    "<", ir.Constant(_INTEGERS, list(range(LANES))), _spread(builder, count, _INTEGERS)
                )
                name = f"llvm.masked.load.v{LANES}{'f32' if is_wide else 'i16'}.p0"
                some_of_it = _call(builder, row, name, where, _I32(align), mask, ir.Constant(row, None))
                part_block = builder.block
        loaded = builder.phi(row)
        loaded.add_incoming(all_of_it, whole_block)
        loaded.add_incoming(some_of_it, part_block)
        if is_wide:
            return loaded
        bits = builder.shl(builder.zext(loaded, _INTEGERS), ir.Constant(_INTEGERS, [16] * LANES))
        return builder.bitcast(bits, _FLOATS)

    return VECTOR(array, index, types.uint64), code


@inlined
def vector(array, index):
    """Load :data:`LANES` numbers from ``array[index]`` on."""
    return lanes(array, index, u64(LANES))


@intrinsic
def store(typing, array, index, vector):
    """Write a vector from ``array[index]`` on, float32."""

    def code(context, builder, signature, arguments):
        return _write(context, builder, signature, arguments, arguments[2])

    return types.void(array, index, VECTOR), code


@intrinsic
def fma(typing, a, b, c):
    """``a * b + c``, lane by lane; rounded once where the CPU can."""

    def code(context, builder, signature, arguments):
        return _call(builder, _FLOATS, f"llvm.fmuladd.v{LANES}f32", *arguments)

    return VECTOR(VECTOR, VECTOR, VECTOR), code


@intrinsic
def larger(typing, a, b):
    """The larger of two numbers, lane by lane."""

    def code(context, builder, signature, arguments):
        return _call(builder, _FLOATS, f"llvm.maxnum.v{LANES}f32", *arguments, fastmath=("fast",))

    return VECTOR(VECTOR, VECTOR), code


@intrinsic
def largest_of(typing, vector):
    """The largest of a vector's lanes."""

    def code(context, builder, signature, arguments):
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        return _call(builder, ir.FloatType(), name, arguments[0], fastmath=("fast",))

    return types.float32(VECTOR), code


@intrinsic
def store_sums(typing, array, index, w, x, y, z):
    """Write four numbers from ``array[index]`` on, float32: the sums of four vectors' lanes.

    Two vectors are added crosswise, so that one has numbers of both; then two such, so that one has numbers of all
    four. Its halves are added until four numbers are left. With 16 lanes that is 13 instructions, where four sums
    apart are 32.
    """

    def code(context, builder, signature, arguments):
        def added(a, b, of_a, of_b):
            parts = (builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(i)), i)) for i in (of_a, of_b))
            return builder.fadd(*parts, flags=("fast",))

        fours = range(0, LANES, 4)
        firsts = [i + j for i in fours for j in (0, LANES, 1, LANES + 1)]
        lasts = [i + 2 for i in firsts]
        wx, yz = (added(a, b, firsts, lasts) for a, b in (arguments[2:4], arguments[4:6]))  # w x w x ..., y z y z ...
        firsts = [i + j for i in fours for j in (0, 1, LANES, LANES + 1)]
        sums = added(wx, yz, firsts, [i + 2 for i in firsts])  # w x y z w x y z ...
        width = LANES
        while width > 4:
            width //= 2
            sums = added(sums, sums, list(range(width)), list(range(width, 2 * width)))
        return _write(context, builder, signature, arguments, sums)

    return types.void(array, index, VECTOR, VECTOR, VECTOR, VECTOR), code


# --- memory that is needed soon -------------------------------------------------------------------------------------


@intrinsic
def prefetch_line(typing, array, index):
    """Ask for the cache line of ``array[index]`` without waiting for it."""

    def code(context, builder, signature, arguments):
        where = _pointer(context, builder, signature.args[0], *arguments)
        how = _I32(0), _I32(2), _I32(1)  # to read, into the second-level cache, data
        _call(builder, ir.VoidType(), "llvm.prefetch.p0", where, *how)
        return context.get_dummy_value()

    return types.void(array, types.uint64), code


@inlined
def prefetch(array, first, size):
    """Ask for the cache lines of ``array[first : first + size]``, of one dimension, without waiting for them."""
    for i in range(u64(first), u64(first) + u64(size), u64(64 // array.itemsize)):
        prefetch_line(array, i)
