"""An exception that an answer raised: what it says, the line of the answer, and the way there."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

from pagedattn_lab.exercises.limits import HERE, TimeLimit

MOST_BEFORE = 3
"""Exceptions during whose handling another one came, counted from the last: a recursion leaves thousands."""


class Raised:
    """An exception, seen from the reader's code.

    Args:
        error: what was raised.
        answer: the function that was called.

    Example:
        >>> def answer():
        ...     return [][9]
        >>> try:
        ...     answer()
        ... except IndexError as error:
        ...     Raised(error, answer).rows
        [('raised', 'IndexError: list index out of range'), ('at', 'line 2 of answer: return [][9]')]
    """

    def __init__(self, error: BaseException, answer: Callable[..., Any]) -> None:
        self.name = type(error).__name__
        self.timed_out = isinstance(error, TimeLimit)
        _shorten(error)
        self._told = traceback.TracebackException.from_exception(error)
        frames = list(self._told.stack)
        code = getattr(inspect.unwrap(getattr(answer, "fn", answer)), "__code__", None)  # a kernel's function is its fn
        own = [index for index, frame in enumerate(frames) if code and frame.filename == code.co_filename]
        others = [index for index, frame in enumerate(frames) if not frame.filename.startswith(HERE)]
        first = (own or others or [len(frames)])[0]
        if self.timed_out and own:  # what lies behind the reader's last line is our own interruption
            frames = frames[: own[-1] + 1]
        self._told.stack = traceback.StackSummary.from_list(frames[first:])
        self._line = frames[own[-1]] if own else None

    @property
    def is_stub(self) -> bool:
        """Whether nothing has been written yet."""
        return self.name == "NotImplementedError"

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What was raised, and the last line of the reader's own that led to it."""
        found = [] if self.timed_out else [("raised", "".join(self._told.format_exception_only()).strip())]
        if self._line:
            line = f": {self._line.line}" if self._line.line else ""
            found.append(("at", f"line {self._line.lineno} of {self._line.name}{line}"))
        return found

    @property
    def traceback(self) -> str:
        """The traceback from the reader's code on; none for time that is up, where the line says all."""
        return "" if self.timed_out else "".join(self._told.format())


def _shorten(error: BaseException) -> None:
    """Forget what came long before an exception: each one has a traceback of its own, and all would be formatted."""
    last: BaseException | None = error
    for _ in range(MOST_BEFORE):
        last = last and (last.__cause__ or last.__context__)
    if last:
        last.__cause__ = last.__context__ = None
