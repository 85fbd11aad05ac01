"""What an argument may be: each function reads one, or says in a sentence what is wrong with it."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pagedattn_lab.arithmetic import num_bytes
from pagedattn_lab.cli.output import did_you_mean


def add_attention(parser: argparse._ActionsContainer) -> None:
    """Add the option that says what computes attention, to a parser or to a group of one."""
    parser.add_argument(
        "--attention",
        choices=("auto", "reference", "cpu", "triton"),
        default="auto",
        metavar="BACKEND",
        help="what computes attention: reference, cpu, triton, or auto, by device (default: %(default)s)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let a command answer in JSON: every one does."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def text(argument: str) -> str:
    """Any text that is not empty."""
    if not argument.strip():
        raise argparse.ArgumentTypeError("it is empty")
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is not valid UTF-8") from None
    return argument


def text_of_file(argument: str) -> str:
    """The name of a file; gives the text in it."""
    try:
        content = Path(argument).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{argument!r} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{argument!r} is not a file of valid UTF-8") from None
    if not content.strip():
        raise argparse.ArgumentTypeError(f"{argument!r} is empty")
    return content


def at_least(least: int, most: float = math.inf) -> Callable[[str], int]:
    """Whole numbers from ``least`` to ``most``: digits, perhaps a sign, and nothing else that ``int`` reads."""
    wanted = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def whole_number(argument: str) -> int:
        number = int(argument) if re.fullmatch(r"[+-]?[0-9]+", argument) else least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{argument!r} is not a whole number {wanted}")
        return number

    return whole_number


positive = at_least(1)
"""Whole numbers from 1 on."""

seed = at_least(0, 2**32 - 1)
"""Of chance, and so small that what ``generate`` makes of it for each output is a seed for torch too."""


def blocks(argument: str) -> int | None:
    """A number of blocks; ``unlimited`` gives ``None``."""
    if argument == "unlimited":
        return None
    try:
        return positive(argument)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor unlimited") from None


def finite(argument: str) -> float:
    """A number that is neither infinite nor none."""
    number = _number(argument)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{argument!r} is not a finite number")
    return number


def share(argument: str) -> float:
    """A number from 0 to below 1."""
    number = finite(argument)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{argument!r} is not a share from 0 to below 1")
    return number


def temperature(argument: str) -> float:
    """A finite number of at least 0."""
    number = finite(argument)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{argument!r} is below 0")
    return number


def read_by(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """What ``read`` gives; the words of its ValueError say what is wrong."""

    def readable(argument: str) -> Any:
        try:
            return read(argument)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return readable


size = read_by(num_bytes)
"""A number of bytes with its unit."""


def rate(argument: str) -> float:
    """A number above 0, or infinity."""
    number = _number(argument)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{argument!r} is neither a number above 0 nor inf")
    return number


def name_or_file(names: Iterable[str]) -> Callable[[str], str]:
    """One of ``names``, or else the name of a file that exists."""

    def known(argument: str) -> str:
        if argument not in names and not Path(argument).is_file():
            names_of_all = ", ".join(names)
            raise argparse.ArgumentTypeError(
                f"{argument!r} is neither a file nor one of {names_of_all}{did_you_mean(argument, names)}"
            )
        return argument

    return known


def _number(argument: str) -> float:
    """Read a number; any other text is none, and so are underscores and other scripts' digits, which Python reads."""
    try:
        return float(argument) if argument.isascii() and "_" not in argument else math.nan
    except ValueError:
        return math.nan
