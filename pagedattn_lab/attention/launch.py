"""Launch one Triton kernel anywhere: compiled on a GPU, under Triton's interpreter elsewhere.

Triton chooses between the two when a kernel is *decorated*, from the environment variable ``TRITON_INTERPRET``. That
is awkward for a book: the reader would have to set it before the first import, and one process could not both run a
kernel on the CPU and compile it for a GPU that is not there. :func:`launch` chooses when the kernel is *launched*,
from where its tensors are.

Source: ``triton/runtime/interpreter.py`` (Triton 3.7), on whose scoped patching of ``triton.language`` this rests.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import triton.experimental.gluon  # noqa: F401  Triton would import it during a launch, while patched
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction


def runs_natively() -> bool:
    """Say whether a kernel launched here is compiled for a GPU (``True``) or interpreted on the CPU (``False``)."""
    return torch.cuda.is_available()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constexprs: Any) -> None:
    """Run a ``@triton.jit`` kernel on every point of ``grid``: natively for GPU tensors, interpreted for CPU tensors.

    Args:
        kernel: a function decorated with ``@triton.jit``.
        grid: one to three positive integers, the number of programs along each axis.
        args: the kernel's positional arguments: tensors, integers, floats.
        constexprs: its ``tl.constexpr`` arguments, by name.

    Raises:
        ValueError: tensors on more than one device, or none at all.

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
    devices = {arg.device for arg in args if hasattr(arg, "data_ptr")}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices))) or "no device"
        raise ValueError(f"a launch got tensors on {found}: move them all to one device")
    (device,) = devices
    if device.type != "cpu":
        with torch.cuda.device(device):
            kernel[grid](*args, **constexprs)
        return
    if isinstance(kernel, interpreter.InterpretedFunction):  # decorated under TRITON_INTERPRET=1
        kernel[grid](*args, **constexprs)
        return
    with _interpretable(kernel.fn) as function:
        interpreter.InterpretedFunction(function).run(*args, grid=grid, warmup=False, **constexprs)


@contextmanager
def _interpretable(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Make ``triton.language`` interpretable for a while, then put every attribute back.

    Triton's own patch covers builtins such as ``tl.load``. Functions that are themselves ``@triton.jit``, such as
    ``tl.sum``, became compiler-only when ``triton`` was imported; they are exchanged here, and put back so that a
    later ``triton.compile`` in this process finds the originals.
    """
    both = types.FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core})
    scope = interpreter._patch_lang(both)
    try:
        for namespace in (tl, tl.standard, tl.math):
            for name, value in list(vars(namespace).items()):
                # Names with an underscore are combine functions: the interpreter compares them by identity.
                if isinstance(value, JITFunction) and not name.startswith("_"):
                    scope.set_attr(namespace, name, _library_function(value.fn))
        yield _isolated(function)
    finally:
        scope.restore()


def _isolated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a kernel, and the ``@triton.jit`` helpers beside it, into a namespace that the interpreter may fill."""
    namespace = dict(function.__globals__)

    def copy(original: Callable[..., Any]) -> Callable[..., Any]:
        duplicate = types.FunctionType(original.__code__, namespace, original.__name__, original.__defaults__)
        duplicate.__annotations__, duplicate.__module__ = original.__annotations__, original.__module__
        return duplicate

    for name, value in function.__globals__.items():
        if isinstance(value, JITFunction) and value.fn is not function:
            namespace[name] = interpreter.InterpretedFunction(copy(value.fn)).rewrite()
    return copy(function)


@cache
def _library_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``tl.sum`` and its kind as plain Python, which finds its builtins patched."""
    return interpreter.InterpretedFunction(function).rewrite()
