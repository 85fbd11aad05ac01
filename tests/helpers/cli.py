"""What the tests of commands share: request logs, and what a command must answer."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
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
    *arguments: str, columns: int = 80, only_stderr: bool = False, **environment: str
) -> tuple[int, str, str]:
    """Run a command whose streams are a terminal; its status, what the terminal was sent, and what went elsewhere.

    Args:
        arguments: of the program.
        columns: the terminal's width.
        only_stderr: standard output is a pipe.
        environment: variables to set; the terminal is no dumb one unless ``TERM`` says so.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    command = subprocess.Popen(
        [sys.executable, "-m", "pagedattn_lab", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if only_stderr else theirs,
        stderr=theirs,
        text=True,
        env=variables | {"TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    sent = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the last one at the other end has gone
            break
        if not part:
            break
        sent += part
    elsewhere = command.stdout.read() if command.stdout else ""
    os.close(ours)
    return command.wait(), sent.decode().replace("\r\n", "\n"), elsewhere
