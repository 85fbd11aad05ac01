"""``vllm-log``: what each line of a start-up log of vLLM means."""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedattn_lab.arithmetic import count
from pagedattn_lab.cli.arguments import add_json, text
from pagedattn_lab.cli.output import print_json
from pagedattn_lab.cli.terminal import WIDTH, paint, wrap
from pagedattn_lab.vllm_log import LogLine, StartUpLog, read_log

if TYPE_CHECKING:
    from pagedattn_lab.vllm_log.check import Check

LAST_ONLY = ("running", "preempted")
"""Kinds of lines that a server at work goes on to print: only the last is shown."""

COLOURS = {"too small": "red", "nothing left": "red", "card in use": "red", "out of memory": "red"}
"""Of lines after which there is no server."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "vllm-log",
        help="say what each line of vLLM's start-up log means",
        description="Read the log that vLLM writes when it starts, and say of each line about memory what it means, "
        "what it follows from and what to change. Then compute blocks, tokens and concurrency again from the memory "
        "that the log says is left, and say whether they come out. The words of versions 0.6 to 0.33 are known, on "
        "GPUs and CPUs.",
        examples=[
            ("vllm-log server.log", "a log in a file"),
            ("vllm-log -", "from a pipe, behind vllm serve ... 2>&1 | tee server.log |"),
            ("vllm-log server.log --model Qwen3-8B", "the log names another model, or none"),
        ],
    )
    parser.add_argument("log", type=text, metavar="FILE", help="the log; - reads standard input")
    parser.add_argument(
        "--model",
        type=text,
        metavar="MODEL",
        help="whose configuration to compute with, if the log names no well-known model: a name, a folder or a "
        "config.json; any other id is looked up with transformers",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read the log, and print what it means."""
    from pagedattn_lab.vllm_log.check import check

    log = read_log(_decoded(_content(arguments.log)))
    if not log.lines:
        raise ValueError(
            f"{_name(arguments.log)} has no line that vLLM prints about its cache: give what vllm serve wrote when it "
            "started, with its INFO lines"
        )
    checked = check(log, arguments.model)
    if arguments.json:
        print_json(_report(log, checked))
        return 0
    _print(log)
    _print_check(checked)
    return 0


def _name(argument: str) -> str:
    return "standard input" if argument == "-" else argument


def _content(argument: str) -> bytes:
    if argument != "-":
        try:
            return Path(argument).read_bytes()
        except OSError as error:
            raise ValueError(f"{argument!r} cannot be read: {error.strerror or error}") from None
    if sys.stdin is None:
        return b""
    return sys.stdin.buffer.read()


def _decoded(content: bytes) -> str:
    """The text of a log; PowerShell writes its files in UTF-16, and a byte that is no text spoils only its own line."""
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_wide else "utf-8-sig", errors="replace")


def _report(log: StartUpLog, checked: Check) -> dict[str, Any]:
    figures = {name: value for name, value in vars(log).items() if name != "lines"}
    return {
        **figures,
        "available_by_rank": [{"rank": rank, "bytes": size} for rank, size in log.available_by_rank],
        "lines": [vars(line) for line in log.lines],
        "check": {
            "comes_out": checked.comes_out,
            "said": checked.said,
            "figures": [vars(figure) | {"comes_out": figure.comes_out} for figure in checked.figures],
            "assumed": list(checked.assumed),
        },
    }


def _print(log: StartUpLog) -> None:
    known = [f"vLLM {log.version}"] if log.version else ["vLLM, version not named"]
    known += [log.model] if log.model else []
    starts = f"; the last of {log.num_starts} starts" if log.num_starts > 1 else ""
    print(wrap(f"{', '.join(known)}: {count(len(log.lines), 'line')} about memory{starts}"))
    for lines in _alike(log.lines):
        line = lines[-1]
        print()
        print(_head(lines))
        for name, sentence in (("means", line.meaning), ("from", line.follows_from), ("change", line.change)):
            if sentence:
                print(wrap(f"    {name:<8}{sentence}", indent=" " * 12))


def _alike(lines: Sequence[LogLine]) -> Iterator[list[LogLine]]:
    """Lines that say the same, of several ranks, together; of a server at work all in one."""
    together: dict[tuple[str, str], list[LogLine]] = {}
    for line in lines:
        together.setdefault((line.what, "" if line.what in LAST_ONLY else line.text), []).append(line)
    yield from sorted(together.values(), key=lambda alike: alike[-1 if alike[0].what in LAST_ONLY else 0].number)


def _head(lines: Sequence[LogLine]) -> str:
    """The number of a line and as much of it as fits, with how many are like it."""
    shown = lines[-1] if lines[0].what in LAST_ONLY else lines[0]
    more = f" ({len(lines)} such lines)" if len(lines) > 1 else ""
    room = WIDTH - 8 - len(more)
    message = shown.text if len(shown.text) <= room else shown.text[: room - 3].rstrip() + "..."
    return f"{shown.number:>6}  {paint(message, COLOURS.get(shown.what, 'blue'))}{more}"


def _print_check(checked: Check) -> None:
    colour = {True: "green", False: "yellow", None: "grey"}[checked.comes_out]
    said = f"Not computed again. {checked.said}" if checked.comes_out is None else checked.said
    verdict = said.partition(":" if checked.comes_out is not None else ".")[0]  # short enough to stay on one line
    print("\n" + wrap(said, indent="    ").replace(verdict, paint(verdict, colour), 1))
    for assumed in checked.assumed:
        print(wrap(f"    {assumed}", indent="    "))
