"""Launch one Triton kernel anywhere: compiled on a GPU, under Triton's interpreter elsewhere.

Triton chooses between the two when a kernel is *decorated*, from the environment variable ``TRITON_INTERPRET``. That
is awkward for a book: the reader would have to set it before the first import, and one process could not both run a
kernel on the CPU and compile it for a GPU that is not there. :func:`launch` chooses when the kernel is *launched*,
from where its tensors are.

Source: ``triton/runtime/interpreter.py`` (Triton 3.7), on whose scoped patching of ``triton.language`` this rests.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import triton.experimental.gluon  # noqa: F401  Triton would import it during a launch, while patched
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
from triton.runtime.jit import JITFunction

one_at_a_time = threading.RLock()
"""Held during a launch: what is patched meanwhile, and the interpreter's place in the grid, are the whole process's."""

_rewritten: WeakKeyDictionary[Callable[..., Any], types.CodeType] = WeakKeyDictionary()
"""The interpreter's version of each function, which takes a millisecond to make."""


OPTIONS = ("num_warps", "num_stages")
"""What a launch may say to the compiler beside a kernel's own arguments; the interpreter has no use for it."""


class Launch(NamedTuple):
    """One call of :func:`launch`, kept instead of run."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: dict[str, Any]


_kept: ContextVar[list[Launch] | None] = ContextVar("_kept", default=None)
"""Where this thread's launches go instead of running."""


@contextmanager
def kept_launches() -> Iterator[list[Launch]]:
    """Keep this thread's launches instead of running them, so that they can be compiled for a GPU that is not here.

    What a kernel would have written stays unwritten.

    Yields:
        The launches so far, in order.

    Example:
        >>> import torch, triton
        >>> @triton.jit
        ... def nothing(x_ptr):
        ...     pass
        >>> with kept_launches() as launches:
        ...     launch(nothing, (2,), torch.zeros(1), num_warps=8)
        >>> launches[0].grid, launches[0].constexprs
        ((2,), {'num_warps': 8})
    """
    launches: list[Launch] = []
    token = _kept.set(launches)
    try:
        yield launches
    finally:
        _kept.reset(token)


def runs_natively() -> bool:
    """Say whether a kernel launched here is compiled for a GPU (``True``) or interpreted on the CPU (``False``)."""
    return torch.cuda.is_available()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constexprs: Any) -> None:
    """Run a ``@triton.jit`` kernel on every point of ``grid``: natively for GPU tensors, interpreted for CPU tensors.

    An interpreted kernel may use what a compiled one may: ``@triton.jit`` functions of its own or another module,
    reductions and scans with its own functions, methods of tensors. Arithmetic and ``tl.dot`` on bfloat16 are computed
    in float32 and rounded to nearest, and casts to float8e4nv round to nearest and saturate, as on a GPU. Launches of
    several threads run one after the other.

    Args:
        kernel: a function decorated with ``@triton.jit``.
        grid: one to three positive integers, the number of programs along each axis.
        args: the kernel's positional arguments: tensors, integers, floats.
        constexprs: its ``tl.constexpr`` arguments, by name, and perhaps :data:`OPTIONS` of the compiler.

    Raises:
        TypeError: an argument by name that is neither the kernel's nor one of :data:`OPTIONS`. The interpreter alone
            would drop it.
        ValueError: tensors on more than one device, or none at all.
        triton.runtime.errors.InterpreterError: whatever an interpreted kernel raises, wrapped.

    Example:
        >>> import torch, triton, triton.language as tl
        >>> @triton.jit
        ... def double(x_ptr, BLOCK: tl.constexpr):
        ...     offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        ...     tl.store(x_ptr + offsets, tl.load(x_ptr + offsets) * 2)
        >>> x = torch.arange(4.0)
        >>> launch(double, (2,), x, BLOCK=2)
        >>> x
        tensor([0., 2., 4., 6.])
    """
    unknown = [name for name in constexprs if name not in kernel.arg_names and name not in OPTIONS]
    if unknown:
        raise TypeError(
            f"{kernel.__name__} has no argument {', '.join(unknown)}: it has {', '.join(kernel.arg_names)}, and a "
            f"launch may also give {', '.join(OPTIONS)}"
        )
    devices = {arg.device for arg in args if hasattr(arg, "data_ptr")}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices))) or "no device"
        raise ValueError(f"a launch got tensors on {found}: move them all to one device")
    (device,) = devices
    launches = _kept.get()
    if launches is not None:
        launches.append(Launch(kernel, grid, args, constexprs))
        return
    with one_at_a_time:
        if device.type != "cpu":
            with torch.cuda.device(device):
                kernel[grid](*args, **constexprs)
            return
        with _interpretable() as as_python:
            if isinstance(kernel, interpreter.InterpretedFunction):  # decorated under TRITON_INTERPRET=1
                kernel[grid](*args, **constexprs)
            else:
                interpreter.GridExecutor(as_python(kernel), kernel.arg_names, grid)(*args, **constexprs)


@contextmanager
def _interpretable() -> Iterator[Callable[[JITFunction], Callable[..., Any]]]:
    """Make Triton interpretable for a while, then put every attribute back for a later ``triton.compile``.

    Triton's own patch covers builtins such as ``tl.load``. Functions that are themselves ``@triton.jit``, such as
    ``tl.sum`` and a kernel's helpers, became compiler-only when they were decorated. Here they learn to be called, and
    stay the objects that they are: found by any name, in any module, and recognised by the interpreter's reductions.

    Yields:
        A function that gives a ``@triton.jit`` function as the plain Python which the interpreter runs.
    """
    functions: dict[Callable[..., Any], Callable[..., Any]] = {}  # by plain function: a JITFunction hashes its source

    def as_python(jitted: JITFunction) -> Callable[..., Any]:
        if jitted.fn not in functions:
            functions[jitted.fn] = _isolated(jitted)
        return functions[jitted.fn]

    both = types.FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core})
    scope = interpreter._patch_lang(both)
    try:
        scope.set_attr(JITFunction, "__call__", lambda self, *args, **kwargs: as_python(self)(*args, **kwargs))
        # tl.tensor holds tl.sum and its kind as methods: x.sum(0) must pass x.
        scope.set_attr(JITFunction, "__get__", lambda self, x, owner=None: self if x is None else partial(self, x))
        for name in ("binary_op", "ternary_op", "create_fma", "create_dot"):
            scope.set_attr(InterpreterBuilder, name, _in_float32(getattr(InterpreterBuilder, name)))
        scope.set_attr(InterpreterBuilder, "cast_impl", _cast_through_float32(InterpreterBuilder.cast_impl))
        scope.set_attr(InterpreterBuilder, "create_fp_to_fp", _float8_by_torch(InterpreterBuilder.create_fp_to_fp))
        yield as_python
    finally:
        scope.restore()


def _isolated(jitted: JITFunction) -> Callable[..., Any]:
    """Rewrite a function for the interpreter, which adds names to its namespace: a copy of the function's own."""
    function, namespace = jitted.fn, dict(jitted.get_capture_scope())
    if function not in _rewritten:
        copy = types.FunctionType(
            function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
        )
        copy.__annotations__, copy.__module__ = function.__annotations__, function.__module__
        _rewritten[function] = interpreter.FunctionRewriter(copy).rewrite_ast().__code__
    namespace = {name: value.value if isinstance(value, tl.constexpr) else value for name, value in namespace.items()}
    namespace["interpreter_semantic"] = interpreter.interpreter_semantic
    copy = types.FunctionType(_rewritten[function], namespace, function.__name__, function.__defaults__)
    copy.__annotations__ = function.__annotations__
    return copy


# The interpreter holds a bfloat16 as the integer of its 16 bits, and adds, compares and multiplies those integers
# (triton-lang/triton issue 11584). A bfloat16 is the upper half of a float32, so widening it is exact.


def _widened(handle: TensorHandle) -> TensorHandle:
    """Give the float32 values of a bfloat16 operand; any other operand as it is."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(handle: TensorHandle) -> TensorHandle:
    """Round float32 values to the nearest bfloat16, ties to even."""
    values = torch.from_numpy(np.array(handle.data, dtype=np.float32))
    return TensorHandle(values.to(torch.bfloat16).view(torch.uint16).numpy(), tl.bfloat16)


def _in_float32(operation: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """Let an operation compute on bfloat16 in float32. The last operand, an accumulator, has the result's dtype."""

    @wraps(operation)
    def compute(builder: InterpreterBuilder, *args: Any) -> TensorHandle:
        operands = [arg for arg in args if isinstance(arg, TensorHandle)]
        result = operation(builder, *(_widened(arg) if isinstance(arg, TensorHandle) else arg for arg in args))
        is_comparison = result.data.dtype == np.bool_
        return _rounded(result) if operands[-1].dtype.scalar == tl.bfloat16 and not is_comparison else result

    return compute


def _cast_through_float32(cast: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """Let a cast to bfloat16 round, where the interpreter cuts off, and one from bfloat16 start from its value."""

    @wraps(cast)
    def compute(builder: InterpreterBuilder, source: TensorHandle, dtype: tl.dtype) -> TensorHandle:
        if dtype.scalar == tl.bfloat16:
            return _rounded(cast(builder, _widened(source), tl.float32))
        return cast(builder, _widened(source), dtype)

    return compute


# The interpreter converts a float8 bit by bit: it rounds ties away from zero, loses the carry of 1.11111 into the
# exponent, cuts subnormals off, and takes the code of NaN for 480. A GPU, like torch, rounds to nearest, ties to even,
# and gives the largest number that there is, 448, for all above (PTX: cvt.rn.satfinite.e4m3x2.f32).


def _float8_by_torch(convert: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """Let conversions to and from float8e4nv, torch's float8_e4m3fn, go through torch; any other stays as it is."""

    @wraps(convert)
    def compute(builder: InterpreterBuilder, source: TensorHandle, dtype: tl.dtype, rounding: Any) -> TensorHandle:
        if source.dtype.scalar == tl.float8e4nv:
            values = torch.from_numpy(np.array(source.data)).view(torch.float8_e4m3fn).float()
            return builder.cast_impl(TensorHandle(values.numpy(), tl.float32), dtype)
        if dtype.scalar == tl.float8e4nv:
            values = torch.from_numpy(np.array(builder.cast_impl(source, tl.float32).data))
            bits = values.to(torch.float8_e4m3fn).view(torch.uint8)
            return TensorHandle(bits.numpy(), tl.float8e4nv)
        return convert(builder, source, dtype, rounding)

    return compute
