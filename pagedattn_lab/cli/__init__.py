"""The command line: ``pagedattn-lab {doctor, generate, waste, ...}``, a module for each command.

``python -m pagedattn_lab`` is the same. Results go to standard output, messages to standard error. Exit status: 0, 1
(it could not), 2 (wrong usage).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pagedattn_lab import __version__
from pagedattn_lab.cli import (
    bench,
    budget,
    doctor,
    exercises,
    fleet,
    generate,
    hits,
    serve,
    vllm_check,
    vllm_log,
    waste,
)
from pagedattn_lab.cli import compile as compile_
from pagedattn_lab.cli.parser import Parser
from pagedattn_lab.cli.terminal import NAME, program, say

COMMANDS = {
    "doctor": doctor,
    "generate": generate,
    "waste": waste,
    "hits": hits,
    "fleet": fleet,
    "budget": budget,
    "bench": bench,
    "compile": compile_,
    "exercises": exercises,
    "serve": serve,
    "vllm-log": vllm_log,
    "vllm-check": vllm_check,
}
"""Each module adds its command to a parser with ``add``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    for stream in ("stdout", "stderr"):  # Python has none where the caller closed it, and print(file=None) means stdout
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
    arguments = _parser().parse_args(_texts_last(sys.argv[1:] if argv is None else argv))
    if hasattr(sys.stdout, "reconfigure"):  # a terminal without UTF-8 gets escapes rather than an error half-way
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe has seen enough; nothing more can be written to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        say("interrupted", arguments.command)
        return 130
    except ModuleNotFoundError as error:
        say(f"{error}: {_other_python()}", arguments.command)
        return 1
    except Exception as error:  # a command line answers with a sentence; a traceback is for the library's callers
        message = " ".join(str(error).split()) or type(error).__name__
        say(message, arguments.command)
        return 1


def _other_python() -> str:
    """Say what to do where this Python lacks a package that the book needs."""
    folder = Path(__file__).parents[2]
    script = next(folder.glob(f".venv/*/{NAME}*"), None)
    if script is None:
        return f"run make setup in {folder}, then .venv/bin/{NAME} there"
    return f"this is {sys.executable}, and the book's packages are elsewhere: run {os.path.relpath(script)} instead"


def _texts_last(argv: Sequence[str]) -> list[str]:
    """Put words with one dash behind ``--``, where a parser takes them for texts: the one option of this kind is -h.

    Example:
        >>> _texts_last(["generate", "-hello", "--json"])
        ['generate', '--json', '--', '-hello']
    """
    end = [*argv, "--"].index("--")
    texts = [word for word in argv[:end] if re.fullmatch(r"-[^-].*", word, re.DOTALL) and word != "-h"]
    texts = [word for word in texts if not re.fullmatch(r"-([0-9]+|[0-9]*\.[0-9]+)", word)]  # perhaps an option's value
    if not texts:
        return [*argv]
    return [*(word for word in argv[:end] if word not in texts), "--", *texts, *argv[end + 1 :]]


def _parser() -> Parser:
    parser = Parser(
        prog=program(),
        description="Paged attention on this machine.",
        examples=[
            ("doctor", "will the book run here?"),
            ('generate "What is a page table?"', "answer a prompt through the paged cache"),
            ("waste", "see where KV memory goes, with and without paging"),
            ("waste --help", "what else a command can do; every one has --json"),
        ],
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add(commands)
    return parser
