"""What an answer prints while it is graded: taken down, since hundreds of calls would bury the verdict."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

MOST_LINES, MOST_LETTERS = 10, 2_000
"""So much of what one call prints is shown."""


class Printed(io.TextIOBase):
    """A stream that counts lines, and keeps the first ones of the call that a verdict tells of.

    Example:
        >>> with taken_down() as printed:
        ...     print("first")
        ...     printed.keep()
        ...     printed.next_call()
        ...     print("second")
        >>> printed.kept, printed.num_lines
        (['first'], 2)
    """

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.num_lines = 0
        self._text = ""
        self._in_line = False

    def write(self, text: str) -> int:
        """Take a text down."""
        self.num_lines += text.count("\n") - self._in_line
        if text:
            self._in_line = not text.endswith("\n")
        self.num_lines += self._in_line
        if len(self._text) < MOST_LETTERS:
            self._text = (self._text + text)[:MOST_LETTERS]
        return len(text)

    def writable(self) -> bool:
        """It is."""
        return True

    def next_call(self) -> None:
        """Forget what the last call printed, but not how many lines."""
        self._text = ""

    def keep(self) -> None:
        """Keep what this call has printed; of a later one nothing is kept."""
        self.kept = self.kept or (self._text.removesuffix("\n").split("\n")[:MOST_LINES] if self._text else [])


@contextmanager
def taken_down() -> Iterator[Printed]:
    """Take down what is printed inside, to standard output and standard error."""
    printed = Printed()
    with redirect_stdout(printed), redirect_stderr(printed):
        yield printed
