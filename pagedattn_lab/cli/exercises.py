"""``exercises``: which of the book's exercises are solved."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from typing import Any

from pagedattn_lab.cli.arguments import add_json
from pagedattn_lab.cli.output import did_you_mean, print_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "exercises",
        help="list the book's exercises, and how far you have come",
        description="List the exercises of the book, and how your answers on this machine were graded.",
        examples=[
            ("exercises", "a list for people"),
            ("exercises ch03", "those of one chapter"),
            ("exercises --json", "the same for programs"),
        ],
    )
    parser.add_argument("chapter", nargs="?", type=_chapter, help="only those of this chapter, such as 03, ch03 or 3")
    add_json(parser)
    parser.set_defaults(run=run)


def _chapter(argument: str) -> str:
    """The number of a chapter that has exercises, in two digits."""
    from pagedattn_lab.exercises import catalogue

    known = sorted({exercise.number[:2] for exercise in catalogue()})
    written = re.fullmatch(r"(?:ch(?:apter)?)?[ _-]?([0-9]{1,2})", argument.lower())
    if written and written[1].zfill(2) in known:
        return written[1].zfill(2)
    meant = did_you_mean(argument, [*known, *(f"ch{number}" for number in known)])
    raise argparse.ArgumentTypeError(
        f"{argument!r} has no exercises{meant or f': choose from {known[0]} to {known[-1]}'}"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the exercises and how each stands."""
    from pagedattn_lab.exercises import progress

    report = progress()
    if arguments.chapter:
        mine = [exercise for exercise in report.exercises if exercise.number.startswith(arguments.chapter)]
        report = replace(report, exercises=mine)
    if arguments.json:
        print_json(report.to_dict())
    else:
        print(report)
        print(f"Kept in {report.kept_in}")
    return 0
