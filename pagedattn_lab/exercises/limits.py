"""A limit on how long an answer may run, which also ends a loop without an end."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

HERE = str(Path(__file__).parent)
AGAIN = 0.05
"""Seconds from one interruption to the next: an answer may have caught the first."""
ROOM, MOST_ROOM = 200, 2000
"""Frames that one interruption may use beyond the limit on recursion, and all of them: each is an answer's for good."""


class TimeLimit(BaseException):
    """The time is up. No ``Exception``, so that ``except Exception`` in an answer does not swallow it."""


_here = threading.local()


class interruptible:
    """Say whether a limit may interrupt what runs inside; not while something is exchanged that must be put back.

    Example:
        >>> with time_limit(0.05), interruptible(False):
        ...     end = time.monotonic() + 0.2
        ...     while time.monotonic() < end:
        ...         pass
    """

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed

    def __enter__(self) -> None:
        self._before = getattr(_here, "allowed", True)
        _here.allowed = self._allowed

    def __exit__(self, *_: object) -> None:
        _here.allowed = self._before


def time_limit(seconds: float) -> AbstractContextManager[None]:
    """Interrupt what runs inside with :class:`TimeLimit` when the time is up.

    Where the main thread has interval timers (Linux, macOS), a signal interrupts, again and again, also code that
    catches everything, and code that recurses without end and catches ``RecursionError``. Elsewhere a trace function
    looks at the clock before every line, which makes the code inside several times slower, and interrupts once, or once
    more where Python only prints an exception, as that of a finalizer; where recursion leaves it no frame, it falls
    silent. Both leave things as they were: the handler, an older timer with what is left of its time, the trace
    function, the hook for such exceptions, the limit on recursion. Both let an import come to its end. Neither can stop
    code that recurses without end and catches everything at every level, nor code that does not come back to the
    interpreter, such as ``list(itertools.count())``: nor can Ctrl-C.

    Example:
        >>> with time_limit(0.05):
        ...     while True:
        ...         pass
        Traceback (most recent call last):
        pagedattn_lab.exercises.limits.TimeLimit
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    return _BySignal(seconds) if hasattr(signal, "setitimer") and in_main_thread else _by_tracing(seconds)


class _BySignal:
    """A class, since a signal in ``contextlib`` would keep a generator from its ``finally``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._outside = sys._getframe(1)
        self._tracer = sys.gettrace()
        self._depth = sys.getrecursionlimit()
        self._over = threading.Event()
        self._helper = threading.Thread(target=self._give_room, daemon=True)
        self._helper.start()
        self._begin = time.monotonic()
        self._handler = signal.signal(signal.SIGALRM, self._interrupt)
        self._left, self._interval = signal.setitimer(signal.ITIMER_REAL, self._seconds, AGAIN)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._over.set()
        self._helper.join()
        # A handler that was not set from Python cannot be put back from Python: None stands for it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if self._handler is None else self._handler)
        sys.settrace(self._tracer)
        sys.setrecursionlimit(self._depth)
        if self._left:
            left = max(self._left - (time.monotonic() - self._begin), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left, self._interval)

    def _give_room(self) -> None:
        """Let the limit on recursion grow, right before a signal, should the answer outlive the first ones.

        An answer that recurses without end stays at the limit. There an interruption fails as the next call does, with
        a ``RecursionError`` that the answer catches. Another thread has frames of its own, and the limit holds for all.
        """
        wait = self._seconds + 2 * AGAIN
        for depth in range(self._depth + ROOM, self._depth + MOST_ROOM + 1, ROOM):
            if self._over.wait(wait):
                return
            sys.setrecursionlimit(depth)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            wait = AGAIN

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if not getattr(_here, "allowed", True):
            return  # the next signal finds another moment
        inside: list[FrameType] = []
        while frame and frame is not self._outside:
            if frame.f_code.co_filename == __file__:
                return  # the way in or out is gone to its end; should the answer run on, the next signal finds it
            inside.append(frame)
            frame = frame.f_back
        if any(map(_imports, inside)):
            return
        theirs = itertools.dropwhile(_is_ours, inside)  # it may be in the middle of a print, which we take down
        below = list(itertools.takewhile(lambda frame: not _is_ours(frame), theirs))
        answers = [frame for frame in below if not _of_triton(frame)]
        if below and not answers:
            return  # a launch is being prepared, or put back
        _raise_again_in(answers)
        raise TimeLimit


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(HERE)


def _imports(frame: FrameType) -> bool:
    """Whether a frame imports a module. Half of one would stay, and break whoever needs it next."""
    return frame.f_code.co_filename.startswith("<frozen importlib")


def _of_triton(frame: FrameType) -> bool:
    """Whether a frame is Triton's interpreter, which exchanges parts of Triton for a launch and puts them back."""
    return str(frame.f_globals.get("__name__")).startswith("triton.")


def _in_an_import(frame: FrameType | None) -> bool:
    """Whether an answer's frame runs because the answer imports something."""
    while frame and not _is_ours(frame):
        if _imports(frame):
            return True
        frame = frame.f_back
    return False


def _raise_again_in(frames: Iterable[FrameType]) -> None:
    """Let the next line of any of these frames, the answer's, raise once more.

    Whoever catches the first in a loop around it would catch each one that comes while the loop's body runs. A line
    after that, in the handler, is no longer inside the ``try``.
    """

    def strike(_frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":  # it sees the first exception pass, too, and leaves that as it is
            raise TimeLimit
        return strike

    sys.settrace(lambda *_: None)  # without a trace function those of frames are not called
    for frame in frames:
        frame.f_trace = strike


@contextmanager
def _by_tracing(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds

    def look(frame: FrameType, *_: Any) -> Any:
        if time.monotonic() >= end and getattr(_here, "allowed", True) and not _in_an_import(frame):
            raise TimeLimit
        return look

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        # The answer's own frames only: leaving this block, and what calls the answer, must not be interrupted.
        ours = _is_ours(frame) or frame.f_code.co_filename == contextlib.__file__ or _of_triton(frame)
        return None if ours else look(frame, event)

    def again() -> None:
        sys.settrace(enter)
        frame = sys._getframe(2)  # where the answer was when something else of it raised
        while frame and not _is_ours(frame):
            frame.f_trace, frame = look, frame.f_back

    tracer = sys.gettrace()
    with _hearing_what_is_lost(again):
        sys.settrace(enter)
        try:
            yield
        finally:
            sys.settrace(tracer)


_again: dict[int, Callable[[], None]] = {}
"""By thread: what sets its limit again. A trace function that raises is taken away."""
_changing = threading.Lock()
_ours = _before_ours = sys.unraisablehook


@contextmanager
def _hearing_what_is_lost(again: Callable[[], None]) -> Iterator[None]:
    """Call a function when a limit was raised in this thread where Python passes nothing on, and prints it instead.

    There is one hook for all threads, so it stays while any of them has a limit.
    """
    global _ours, _before_ours
    thread = threading.get_ident()
    with _changing:
        if not _again:
            _before_ours = sys.unraisablehook
            _ours = sys.unraisablehook = _hook(_before_ours)
        before = _again.get(thread)
        _again[thread] = again
    try:
        yield
    finally:
        with _changing:
            if before is None:
                del _again[thread]
            else:
                _again[thread] = before
            if not _again and sys.unraisablehook is _ours:
                sys.unraisablehook = _before_ours


def _hook(usual: Callable[[sys.UnraisableHookArgs], Any]) -> Callable[[sys.UnraisableHookArgs], Any]:
    def hear(lost: sys.UnraisableHookArgs) -> None:
        again = _again.get(threading.get_ident())
        if again is not None and issubclass(lost.exc_type, TimeLimit):
            again()
        else:
            usual(lost)

    return hear
