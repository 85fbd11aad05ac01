"""``exercises``: which of the book's exercises are solved."""

from __future__ import annotations

import argparse
from typing import Any

from pagedattn_lab.cli.arguments import add_json
from pagedattn_lab.cli.output import print_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "exercises",
        help="list the book's exercises, and how far you have come",
        description="List the exercises of the book, and how your answers on this machine were graded.",
        examples=[("exercises", "a list for people"), ("exercises --json", "the same for programs")],
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print every exercise and how it stands."""
    from pagedattn_lab.exercises import progress

    report = progress()
    if arguments.json:
        print_json(report.to_dict())
    else:
        print(report)
        print(f"Kept in {report.kept_in}")
    return 0
