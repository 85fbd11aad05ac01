"""What a kernel loads and stores, watched while it is interpreted: every lane of every program, by tensor and element.

A watched kernel gets made-up addresses, so far apart for each tensor that an offset gone wild still tells which tensor
it started from. Nothing outside of a tensor is ever read or written: it is noted, and a load gets garbage, as it might
on a GPU.

Source: ``triton/runtime/interpreter.py`` (Triton 3.7), where each access to memory goes through the module
``_interpreter`` and each tensor becomes a pointer in ``_implicit_cvt``.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import torch
from triton.runtime import interpreter

from pagedattn_lab.attention.launch import one_at_a_time
from pagedattn_lab.exercises.limits import interruptible

APART = 2**44
"""Bytes from one tensor's addresses to the next one's: a 32-bit offset never leads that far, nor half as far."""

Program = tuple[int, int, int]
Touched = Mapping[tuple[str, str, Program], set[int]]
"""Elements of tensors by ("load" or "store", name of the tensor, program). Those outside of it are negative or too
large; element 0 is its first. "again" has those that a program loads more than once, be it in two lanes of one load."""


@contextmanager
def watched(tensors: Mapping[str, torch.Tensor]) -> Iterator[Touched]:
    """Note what kernels touch that are launched inside, with arguments out of ``tensors`` only.

    Triton's check of integers for overflow is off meanwhile: it would stop a wild address before it is seen. A time
    limit interrupts the kernel, and not what is exchanged around it.

    Args:
        tensors: contiguous, on the CPU, by the names under which they are noted.

    Raises:
        ValueError: a tensor that is not contiguous or has no elements, or, at a launch, one that is not known.

    Example:
        >>> import triton, triton.language as tl
        >>> from pagedattn_lab.attention.launch import launch
        >>> @triton.jit
        ... def add(x_ptr, y_ptr, N: tl.constexpr):
        ...     i = tl.arange(0, N)
        ...     tl.store(y_ptr + i, tl.load(x_ptr + i) + 1, mask=i < 3)
        >>> x, y = torch.arange(3.0), torch.zeros(3)
        >>> with watched({"x": x, "y": y}) as touched:
        ...     launch(add, (1,), x, y, N=4)
        >>> y, touched["load", "x", (0, 0, 0)]
        (tensor([1., 2., 3.]), {0, 1, 2, 3})
    """
    for name, tensor in tensors.items():
        if not tensor.is_contiguous() or not tensor.numel():
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, strides {tensor.stride()}: make it contiguous")
    touched: defaultdict[tuple[str, str, Program], set[int]] = defaultdict(set)
    memory = _Memory(tensors, touched)
    exchanged = {
        "_interpreter": memory.as_module(interpreter._interpreter),
        "_implicit_cvt": memory.pointers(interpreter._implicit_cvt),
        "GridExecutor": _Interruptible,
    }
    with one_at_a_time, interruptible(False), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN is what a grader looks for
        before = {name: getattr(interpreter, name) for name in exchanged}
        options = interpreter.interpreter_builder.options
        try:
            vars(interpreter).update(exchanged)
            interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
            yield touched
        finally:
            interpreter.interpreter_builder.options = options
            vars(interpreter).update(before)


class _Interruptible(interpreter.GridExecutor):
    """Runs the programs of a grid. What Triton leaves exchanged if it is interrupted here, ``launch`` puts back."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        with interruptible(True):
            super().__call__(*args, **kwargs)


class _Memory:
    """Translates made-up addresses to tensors' own, and notes them."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], touched: defaultdict[tuple[str, str, Program], set[int]]):
        self._names = list(tensors)
        self._places = {tensor.data_ptr(): place for place, tensor in enumerate(tensors.values())}
        self._starts = np.array([tensor.data_ptr() for tensor in tensors.values()], dtype=np.int64)
        self._sizes = np.array([tensor.numel() * tensor.element_size() for tensor in tensors.values()])
        self._touched = touched

    def pointers(self, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Let a tensor argument become a made-up address; other arguments as before."""

        def made_up(argument: Any) -> Any:
            converted = convert(argument)
            if hasattr(argument, "data_ptr"):
                if argument.data_ptr() not in self._places:
                    raise ValueError(f"a tensor of shape {tuple(argument.shape)} is not watched: name it")
                # In the middle, so that negative offsets stay with their tensor.
                converted.handle.data[:] = self._places[argument.data_ptr()] * APART + APART // 2
            return converted

        return made_up

    def as_module(self, inner: Any) -> SimpleNamespace:
        """Stand in for the module that reads and writes memory."""

        def load(addresses: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
            mask = mask.astype(bool)  # of a scalar mask the interpreter makes a row of int8
            own, inside = self._translated("load", addresses, mask, np.dtype(dtype).itemsize)
            garbage = np.array(np.nan if np.issubdtype(dtype, np.floating) else -1).astype(dtype)
            return inner.load(own, mask & inside, np.where(mask & ~inside, garbage, other), dtype)

        def store(addresses: np.ndarray, value: np.ndarray, mask: np.ndarray) -> None:
            mask = mask.astype(bool)
            own, inside = self._translated("store", addresses, mask, value.dtype.itemsize)
            inner.store(own, value, mask & inside)

        def refused(*_: Any) -> NoReturn:
            raise TypeError("atomic operations are not watched: load and store will do here")

        return SimpleNamespace(load=load, store=store, atomic_cas=refused, atomic_rmw=refused)

    def _translated(
        self, access: str, addresses: np.ndarray, mask: np.ndarray, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give the addresses in memory, and which of them lie inside of a tensor; note those that the mask lets by."""
        place, offset = np.divmod(addresses.astype(np.int64), APART)
        offset -= APART // 2
        known = np.clip(place, 0, len(self._names) - 1)
        inside = (place == known) & (offset >= 0) & (offset + width <= self._sizes[known])
        program = tuple(int(index) for index in interpreter.interpreter_builder.grid_idx)
        for index in np.unique(known[mask]):
            self._note(access, self._names[index], program, offset[mask & (known == index)] // width)
        return (self._starts[known] + offset).astype(np.uint64), inside

    def _note(self, access: str, name: str, program: Program, elements: np.ndarray) -> None:
        before = self._touched[access, name, program]
        if access == "load":
            each, lanes = np.unique(elements, return_counts=True)
            again = before.intersection(each.tolist()).union(each[lanes > 1].tolist())
            if again:
                self._touched["again", name, program] |= again
        before.update(elements.tolist())
