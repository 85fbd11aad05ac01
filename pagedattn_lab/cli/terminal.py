"""What people at a terminal see: messages with one prefix, colours, and how long a wait has taken."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

NAME = "pagedattn-lab"
"""What every message begins with, and the script that the package installs."""

WIDTH = 80
"""Columns that everything fits into: a terminal's, unless somebody has made it wider."""

COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "grey": 90}
"""Codes of ANSI's colours, which a terminal shows in shades that its owner can read."""


def program() -> str:
    """Say what the reader can type to get here: the script, with its folder if that is needed, or Python's module."""
    script = Path(sys.argv[0]).absolute()
    if not script.stem.startswith(NAME):
        return "python -m pagedattn_lab"
    found = shutil.which(NAME)
    near = script.is_relative_to(Path.cwd()) and not (found and Path(found).absolute() == script)
    return str(script.relative_to(Path.cwd())) if near else NAME


def say(message: str, command: str = "") -> None:
    """Write a message to standard error: one line in a file or a pipe, and on a terminal broken between words."""
    line = f"{NAME}{command and ' '}{command}: {message}"
    if _is_terminal(sys.stderr):
        line = wrap(line, indent="  ")
    print(line, file=sys.stderr)


def wrap(text: str, indent: str = "") -> str:
    """Break a text between words, so that it fits; a word that is longer stays whole, for it may be a path.

    Example:
        >>> max(map(len, wrap("word " * 50).splitlines()))
        79
    """
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def paint(text: str, colour: str) -> str:
    """Colour what goes to standard output, if that is a terminal whose owner has nothing against it.

    The words must do without: a colour only helps to find them. See https://no-color.org.

    Example:
        >>> paint("ok", "green")  # no terminal here
        'ok'
    """
    if not _is_terminal(sys.stdout) or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on standard error, if that is a terminal, how long a wait has taken: after a second, then every second."""
    if not _is_terminal(sys.stderr):
        yield
        return
    from tqdm import tqdm

    done = threading.Event()
    with tqdm(desc=what, bar_format="{desc} ... {elapsed}", leave=False, delay=1, miniters=0) as line:

        def tick() -> None:
            while not done.wait(1):
                line.update(0)  # writes the line anew, unless the delay is not over yet

        ticking = threading.Thread(target=tick, daemon=True)
        ticking.start()
        try:
            yield
        finally:
            done.set()
            ticking.join()


def _is_terminal(stream: TextIO) -> bool:
    """A terminal that can do more than print: a dumb one knows neither colours nor the way back to a line's start."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
