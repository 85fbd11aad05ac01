"""What the tests of commands share: request logs, and what a command must answer."""

from __future__ import annotations

import fcntl
import itertools
import json
import pty
import struct
import sys
import termios
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryFile
from typing import Any

import pytest

from pagedattn_lab.cli import main

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:00:00.0000000,100,50
2023-11-16 18:10:00.0000000,3000,10
2023-11-16 18:20:00.0000000,2000,400
2023-11-16 18:30:00.0000000,10,20
"""


MOONCAKE = """{"timestamp": 0, "input_length": 100, "output_length": 50, "hash_ids": [0]}
{"timestamp": 600000, "input_length": 3000, "output_length": 10, "hash_ids": [1, 2, 3, 4, 5, 6]}
{"timestamp": 1200000, "input_length": 2000, "output_length": 400, "hash_ids": [1, 7, 8, 9]}
{"timestamp": 1800000, "input_length": 10, "output_length": 20, "hash_ids": []}
"""


def strictly(text: str) -> Any:
    """Read JSON without the numbers that only Python's JSON has."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def assert_one_line(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], status: int, message: str) -> None:
    """Run a command that must fail with this status, nothing on standard output, and one line that says who and why."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == status
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert captured.err.startswith(("pagedattn-lab: ", f"pagedattn-lab {' '.join(arguments[:1])}"))


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a command in this process; its report, and what it said on standard error."""
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    return strictly(captured.out), captured.err


def in_terminal(
    *arguments: str, columns: int = 80, only_stderr: bool = False, seconds: float = 0.0, **environment: str
) -> tuple[int, str, str]:
    """Run a command in this process, its streams a terminal; its status, what that was sent, and what went elsewhere.

    Args:
        arguments: of the program.
        columns: the terminal's width.
        only_stderr: standard output is a pipe.
        seconds: that pass, for lines of progress, whenever one looks at the clock; without any, none is ever shown,
            however slow the machine is.
        environment: variables to set; the terminal is no dumb one unless ``TERM`` says so.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with ThreadPoolExecutor() as threads, pytest.MonkeyPatch.context() as patch, TemporaryFile("w+") as elsewhere:
        sent = threads.submit(_sent, ours)
        for name in ("NO_COLOR", "COLUMNS"):
            patch.delenv(name, raising=False)
        for name, value in ({"TERM": "xterm-256color"} | environment).items():
            patch.setenv(name, value)
        clock = itertools.count(0.0, seconds)
        patch.setattr("tqdm.std.time", lambda: next(clock))
        with open(theirs, "w", encoding="utf-8") as terminal:
            for name in ("stdout", "__stdout__"):
                patch.setattr(sys, name, elsewhere if only_stderr else terminal)
            for name in ("stderr", "__stderr__"):
                patch.setattr(sys, name, terminal)
            try:
                status = main(arguments)
            except SystemExit as stop:
                status = stop.code
        elsewhere.seek(0)
        return status, sent.result().decode().replace("\r\n", "\n"), elsewhere.read()


def _sent(ours: int) -> bytes:
    """Read what a terminal is sent, until the other end is closed."""
    sent = b""
    with open(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                part = terminal.read(65536)
            except OSError:  # the last one at the other end has gone
                return sent
            if not part:
                return sent
            sent += part
